"""Move experts now, or wait: seconds against seconds. Pure; time is an argument.

A plan says what it saves over the horizon and what its moves take. Moving pays only if the first is more, and that is
known only from a forecast. So what was lost until now by not having moved is added up, and experts move once it reaches
what the moves take (ski rental: Karlin, Manasse, Rudolph, Sleator 1988): never more than twice the seconds that one who
knew the future needed, for one such choice. A single odd window can thus not start moves that take longer than it did
harm; no threshold is involved.

The plan is for two loads: the forecast of the next window (controlplane.placement.forecast) and the last window; and
for what else may come, where the caller knows (controlplane.placement.class_scenarios).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.placement.cost import Aim
from controlplane.placement.forecast import Forecast
from controlplane.placement.objective import Prices
from controlplane.placement.planner import DEFAULT_AIM, Plan, plan
from controlplane.placement.types import Placement, PlacementError, Scenario, Tokens, Topology


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a window, and why."""

    at_s: float
    is_move: bool
    plan: Plan  # the best found; carried out only if is_move
    gain_s: float  # that it saves over the horizon, without the moves
    lost_s: float  # lost so far by not having moved
    reason: str


@dataclass(slots=True)
class Rebalancer:
    """Of one engine. `placement` is what its ranks hold; `topology` is set anew when ranks die or come back."""

    topology: Topology
    prices: Prices
    placement: Placement
    aim: Aim = DEFAULT_AIM
    max_moves: int | None = None  # at a time
    forecast: Forecast = field(default_factory=Forecast)
    _lost_s: float = 0.0
    _last_at_s: float | None = None

    def observe(self, tokens: Tokens, at_s: float, window_s: float, others: Sequence[Scenario] = ()) -> Decision:
        """A window of so many seconds ended. `others`: loads that a plan should be good for besides."""
        if not 0.0 < window_s < float("inf") or (self._last_at_s is not None and at_s < self._last_at_s):
            raise PlacementError(f"a window of {window_s} s that ended at {at_s} s, after {self._last_at_s}")
        self._last_at_s = at_s
        self.forecast.observe(tokens)
        ahead = self.forecast.next()
        assert ahead is not None
        found = plan(
            [Scenario("forecast", ahead), Scenario("last window", tokens), *others],
            self.topology,
            self.prices,
            previous=self.placement,
            max_moves=self.max_moves,
            aim=self.aim,
        )
        assert found.kept_s is not None
        moving_s = float(found.terms.moving_s.sum())
        gain_s = found.kept_s - (found.total_s - moving_s)
        self._lost_s = self._lost_s + max(0.0, gain_s) * window_s / self.aim.horizon_s if found.moved_slots else 0.0
        lost_s = self._lost_s
        must = found.needed_slots > 0
        is_move = must or (found.moved_slots > 0 and gain_s > moving_s and lost_s >= moving_s)
        reason = self._reason(found, gain_s, moving_s, is_move=is_move)
        if is_move:
            self.placement = found.placement
            self._lost_s = 0.0
        return Decision(at_s, is_move, found, gain_s, lost_s, reason)

    def _reason(self, found: Plan, gain_s: float, moving_s: float, *, is_move: bool) -> str:
        moves = f"{found.moved_slots} slots ({found.moved_bytes / 1e9:.3g} GB, {moving_s:.3g} s)"
        horizon = f"{gain_s:.3g} s over the next {self.aim.horizon_s:g} s"
        if found.needed_slots and is_move:
            return f"move {moves}: {found.needed_slots} of them hold experts or ranks that serve nothing as it is"
        if not found.moved_slots:
            return "keep: no move was found that saves more than it takes"
        if is_move:
            return f"move {moves}: saves {horizon}, and {self._lost_s:.3g} s were lost by waiting"
        return f"keep: moving {moves} would save {horizon}, but waiting has lost only {self._lost_s:.3g} s so far"
