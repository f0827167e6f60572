"""What is left of tenants' budgets, and whether what says who may ask can be read. As it is at a scrape."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.identity.doorkeeper import Doorkeeper
from router.identity.usage_ledger import UsageLedger

_MOST_SHOWN = 50  # tenants: those with the least left


class IdentityCollector(Collector):
    """Every router tells the same of a budget, as far as it knows: take `min by (tenant)`, never a sum."""

    def __init__(
        self,
        door: Doorkeeper,
        ledger: UsageLedger,
        sources: Callable[[], Mapping[str, bool]],
        asking: Callable[[], Sequence[str]],
    ) -> None:
        """`asking`: tenants who ask most; one that is held to the budget of `default` is known only by that."""
        self._door = door
        self._ledger = ledger
        self._sources = sources
        self._asking = asking

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        budget = GaugeMetricFamily(
            "headrace_tenant_budget_tokens", "Tokens a period; of the tenants with the least left", labels=("tenant",)
        )
        left = GaugeMetricFamily(
            "headrace_tenant_budget_left_tokens",
            "Tokens left of it in this period, requests in flight taken off",
            labels=("tenant",),
        )
        for _, name, tokens, tokens_left in sorted(self._budgets())[:_MOST_SHOWN]:
            budget.add_metric([name], float(tokens))
            left.add_metric([name], float(tokens_left))
        up = GaugeMetricFamily(
            "headrace_identity_up",
            "1 while keys_file, jwks_file, jwks_url can be read; at 0 what was known before goes on",
            labels=("source",),
        )
        for source, is_up in self._sources().items():
            up.add_metric([source], float(is_up))
        yield from (budget, left, up)

    def _budgets(self) -> Iterator[tuple[float, str, int, int]]:
        """Share that is left, name, budget and what is left of it."""
        now_s = time.time()
        for name in {*self._door.limited_tenants, *self._asking()}:
            allowance = self._door.allowance_of(name)
            if allowance.budget_tokens is not None:
                used = self._ledger.use(name, allowance.budget_period, now_s)
                left = max(0, allowance.budget_tokens - used)
                yield left / allowance.budget_tokens, name, allowance.budget_tokens, left
