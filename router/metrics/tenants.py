"""Requests by tenant in a bounded number of series: those who ask most have their own, the rest is `other`.

Invariants
 1. Every request counts in exactly one series, the one its tenant has when it ends.
 2. There are at most `num_kept` tenants besides `other`, and `num_known` of whom anything is remembered.
 3. A series never falls while it is there. A tenant that loses its series is `other` from then on; one that gains it
    again starts at 0, as after a restart, which `rate` understands.
"""

from prometheus_client.core import CounterMetricFamily

OTHER = "other"
_JUDGED = {"met": 0, "missed": 0}  # shown from the start: a share of nothing would be no share
_TAKES_OVER = 2  # a series changes hands when the newcomer asks so many times as much: no flapping between equals
_HALVE_AFTER = 100_000  # requests: what counts is who asks of late


class TenantCounts:
    """Outcomes of requests by tenant: two look-ups for each."""

    def __init__(self, num_kept: int = 50, num_known: int = 1000) -> None:
        self._num_kept = num_kept
        self._num_known = num_known
        self._asked: dict[str, int] = {}  # of late, by tenant; halved now and then
        self._num_asked = 0
        self._kept: dict[str, dict[str, int]] = {}  # by tenant and outcome
        self._other = dict(_JUDGED)

    def inc(self, tenant: str, outcome: str) -> None:
        """A request has ended."""
        asked = self._asked
        asked[tenant] = asked.get(tenant, 0) + 1
        self._num_asked += 1
        if self._num_asked >= _HALVE_AFTER or len(asked) > self._num_known:
            self._halve()
        counts = self._kept.get(tenant)
        if counts is None:
            counts = self._other
            if len(self._kept) < self._num_kept and tenant != OTHER:
                counts = self._kept[tenant] = dict(_JUDGED)
        counts[outcome] = counts.get(outcome, 0) + 1

    def collect(self) -> CounterMetricFamily:
        """As they are now; then series change hands, so that the last of those that end has been shown."""
        family = CounterMetricFamily(
            "headrace_tenant_requests",
            "Ended requests by tenant (those who ask most, else other) and outcome",
            labels=("tenant", "outcome"),
        )
        for tenant, counts in (*self._kept.items(), (OTHER, self._other)):
            for outcome, number in counts.items():
                family.add_metric([tenant, outcome], float(number))
        self._hand_over()
        return family

    def _hand_over(self) -> None:
        asked = self._asked
        newcomers = sorted((name for name in asked if name not in self._kept and name != OTHER), key=asked.__getitem__)
        losers = sorted(self._kept, key=lambda name: asked.get(name, 0), reverse=True)
        while newcomers and losers and asked[newcomers[-1]] > _TAKES_OVER * asked.get(losers[-1], 0):
            del self._kept[losers.pop()]
            self._kept[newcomers.pop()] = dict(_JUDGED)

    def _halve(self) -> None:
        """Half the weight of what was asked, and no memory of those who asked once, until half the room is free."""
        while True:
            self._asked = {name: number // 2 for name, number in self._asked.items() if number > 1}
            if len(self._asked) <= self._num_known // 2:
                break
        self._num_asked = sum(self._asked.values())
