"""Requests and tokens by tenant in few series: those who ask most have their own, the rest is `other`.

Invariants
 1. Every request counts in exactly one series, the one its tenant has when it ends; so do its tokens.
 2. There are at most `num_kept` tenants besides `other`, and `num_known` of whom anything is remembered.
 3. A series never falls while it is there. A tenant that loses its series is `other` from then on; one that gains it
    again starts at 0, as after a restart, which `rate` understands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily

from kvstore.usage_store import Used

OTHER = "other"
_JUDGED = {"met": 0, "missed": 0}  # shown from the start: a share of nothing would be no share
_TAKES_OVER = 2  # a series changes hands when the newcomer asks so many times as much: no flapping between equals
_HALVE_AFTER = 100_000  # requests: what counts is who asks of late


@dataclass(slots=True)
class _Counts:
    """One tenant's."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict(_JUDGED))
    refused: dict[str, int] = field(default_factory=dict)  # by reason
    tokens: dict[str, int] = field(default_factory=dict)  # by kind

    def add(self, used: Used) -> None:
        for kind, number in (
            ("prompt", used.prompt_tokens),
            ("cached", used.cached_tokens),
            ("output", used.output_tokens),
        ):
            self.tokens[kind] = self.tokens.get(kind, 0) + number


class TenantCounts:
    """Outcomes of requests by tenant: two look-ups for each; and the tokens that they are charged."""

    def __init__(self, num_kept: int = 50, num_known: int = 1000) -> None:
        self._num_kept = num_kept
        self._num_known = num_known
        self._asked: dict[str, int] = {}  # of late, by tenant; halved now and then
        self._num_asked = 0
        self._kept: dict[str, _Counts] = {}  # by tenant
        self._other = _Counts()

    @property
    def shown(self) -> Sequence[str]:
        """Tenants with series of their own."""
        return tuple(self._kept)

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        """Of these, requests that were refused before they were decided on, by reason."""
        return {name: dict(counts.refused) for name, counts in self._kept.items() if counts.refused}

    def inc(self, tenant: str, outcome: str) -> None:
        """A request has ended."""
        asked = self._asked
        asked[tenant] = asked.get(tenant, 0) + 1
        self._num_asked += 1
        if self._num_asked >= _HALVE_AFTER or len(asked) > self._num_known:
            self._halve()
        outcomes = self._of(tenant).outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def refuse(self, tenant: str, reason: str) -> None:
        """A request has ended before anything was decided about it."""
        self.inc(tenant, "rejected")
        refused = self._of(tenant).refused
        refused[reason] = refused.get(reason, 0) + 1

    def charge(self, tenant: str, used: Used) -> None:
        """A tenant has been charged for a request."""
        self._of(tenant).add(used)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """As they are now; then series change hands, so that the last of those that end has been shown."""
        requests = CounterMetricFamily(
            "headrace_tenant_requests",
            "Ended requests by tenant (those who ask most, else other) and outcome",
            labels=("tenant", "outcome"),
        )
        refused = CounterMetricFamily(
            "headrace_tenant_refused",
            "Of the rejected, those refused before anything was decided about them: over a limit, not allowed",
            labels=("tenant", "reason"),
        )
        tokens = CounterMetricFamily(
            "headrace_tenant_tokens",
            "Tokens charged: prompt, cached (of the prompt's), output; budgets count prompt and output",
            labels=("tenant", "kind"),
        )
        for tenant, counts in (*self._kept.items(), (OTHER, self._other)):
            for family, numbers in ((requests, counts.outcomes), (refused, counts.refused), (tokens, counts.tokens)):
                for label, number in numbers.items():
                    family.add_metric([tenant, label], float(number))
        yield from (requests, refused, tokens)
        self._hand_over()

    def _of(self, tenant: str) -> _Counts:
        counts = self._kept.get(tenant)
        if counts is not None:
            return counts
        if len(self._kept) < self._num_kept and tenant != OTHER:
            counts = self._kept[tenant] = _Counts()
            return counts
        return self._other

    def _hand_over(self) -> None:
        asked = self._asked
        newcomers = sorted((name for name in asked if name not in self._kept and name != OTHER), key=asked.__getitem__)
        losers = sorted(self._kept, key=lambda name: asked.get(name, 0), reverse=True)
        while newcomers and losers and asked[newcomers[-1]] > _TAKES_OVER * asked.get(losers[-1], 0):
            del self._kept[losers.pop()]
            self._kept[newcomers.pop()] = _Counts()

    def _halve(self) -> None:
        """Half the weight of what was asked, and no memory of those who asked once, until half the room is free."""
        while True:
            self._asked = {name: number // 2 for name, number in self._asked.items() if number > 1}
            if len(self._asked) <= self._num_known // 2:
                break
        self._num_asked = sum(self._asked.values())
