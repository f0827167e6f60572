"""Which rank gets which experts next: one objective in seconds (controlplane.placement.cost). Pure and deterministic.

Layers do not meet in the objective, so each keeps the best plan that it saw. It starts from the best of EPLB's plans,
placements of its own and the last plan, and descends from there (controlplane.placement.local_search); the last plan is
also descended from on its own, one swap at a time. So no plan is worse than the last one or than EPLB's.

With at most `max_moves` slots to move, each layer offers the plans that it saw, and these are bought in order of
seconds saved a slot moved: of each layer the lower convex hull, which is the linear relaxation of the knapsack (Sinha,
Zoltners 1979). Moves without which an expert had no live slot, or a live slot no expert, are made in any case, and
first.

A search fits the loads that it is judged by, and where these are made up, they are not what comes. For such loads the
caller names the candidates (controlplane.placement.rings): then the best of these, EPLB's and the last plan is taken as
it is, and a search only fills in what a bound on moves leaves of the last plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.cost import Aim, Costs, Terms
from controlplane.placement.local_search import Search
from controlplane.placement.objective import Prices
from controlplane.placement.offers import Offers
from controlplane.placement.split import fast_shares
from controlplane.placement.starts import baselines, check_previous, repaired, starts
from controlplane.placement.types import (
    Placement,
    PlacementError,
    Scenario,
    Slots,
    Topology,
    check_placement,
    check_room,
    scenario_tokens,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEFAULT_AIM = Aim()

_WORK = 24_000_000  # elements looked at in all searches: some 0.8 s
_MOST_STEPS, _LEAST_STEPS = 200, 8  # the least of each search and power
_LOG2_POWERS = (3, 5)  # p = 8, then 32: a smoother straggler term first, then one near the true one
_OFFERED = 8  # steps of a search whose plans are not the true cost's


@dataclass(frozen=True, slots=True)
class Plan:
    """What to hold where, and what it is expected to be worth."""

    placement: Placement
    terms: Terms
    kept_s: float | None  # total seconds if the previous plan is kept, with what must be moved; None: there is none
    bound_s: float  # no plan's straggler term is below it
    balancedness: dict[str, Floats]  # (layers,) by scenario
    moved_slots: int
    needed_slots: int  # of these, those without which the previous plan cannot be used at all
    moved_bytes: float
    reasons: tuple[str, ...]

    @property
    def total_s(self) -> float:
        """Over the horizon, all layers."""
        return float(self.terms.total_s.sum())


def plan(
    scenarios: Sequence[Scenario],
    topology: Topology,
    prices: Prices,
    *,
    previous: Placement | None = None,
    max_moves: int | None = None,
    aim: Aim = DEFAULT_AIM,
    candidates: Sequence[Slots] = (),
) -> Plan:
    """The best plan found for these loads. `max_moves`: slots of all layers; None: as many as pay. `candidates`: plans
    to choose from instead of a search."""
    if max_moves is not None and max_moves < 0:
        raise PlacementError(f"max_moves is {max_moves}, allowed is 0 or more")
    if previous is not None:
        check_previous(previous, scenario_tokens(scenarios).shape[1:], topology)
    costs = Costs.of(scenarios, topology, prices, previous, aim)
    check_room(costs.tokens.shape[2], topology)
    base = None if previous is None else repaired(costs, previous)
    offers = Offers(costs, previous, is_bounded=max_moves is not None and previous is not None)
    if base is not None:
        offers.add(np.arange(len(base)), base)
    if candidates:
        _choose(offers, base, candidates)
    else:
        _search(costs, offers, base, max_moves)
    chosen = offers.best_slots if base is None or max_moves is None else offers.within(max_moves)
    return _described(chosen, offers, prices, scenarios, base)


def _search(costs: Costs, offers: Offers, base: Slots | None, max_moves: int | None) -> None:
    """Fill the offers."""
    num_layers = costs.tokens.shape[1]
    every = np.arange(num_layers)
    for slots in starts(costs):
        offers.add(every, slots)
    best = offers.best_slots.copy()
    num_steps = _steps(costs) // (1 if base is None else 2)
    if not offers.is_bounded or int(offers.moves(every, best).sum()) <= (max_moves or 0):
        _descend(offers, best, num_steps, is_frugal=False)
    if base is not None:
        _descend(offers, base, num_steps, is_frugal=offers.is_bounded)


def _choose(offers: Offers, base: Slots | None, candidates: Sequence[Slots]) -> None:
    """Offer what there is."""
    for slots in (*baselines(offers.costs), *candidates):
        offers.add(np.arange(len(slots)), slots)
    if base is not None and offers.is_bounded:
        _descend(offers, base, _steps(offers.costs) // 2, is_frugal=True)


def _descend(offers: Offers, slots: Slots, num_steps: int, *, is_frugal: bool) -> None:
    """Offer what a search finds from here on.

    A split that evens out loads hides which step helps: so the search goes as if tokens were split equally first, and
    on from the best that it saw.
    """
    costs, every = offers.costs, np.arange(len(slots))
    num_steps = max(_LEAST_STEPS, num_steps // len(_LOG2_POWERS))
    equally = replace(costs, aim=replace(costs.aim, splits_best=False))
    for log2_power in _LOG2_POWERS:
        here = slots.copy()
        for number, seen in enumerate(Search(equally, log2_power).descend(slots, num_steps, is_frugal=is_frugal)):
            here[seen.layers] = seen.slots
            if not costs.aim.splits_best:
                offers.add(seen.layers, seen.slots)
            elif number % _OFFERED == 0:
                offers.add(every, here.copy())
        slots = here
    if costs.aim.splits_best:
        offers.add(every, slots)
        slots = offers.best_slots.copy()
        for seen in Search(costs, _LOG2_POWERS[-1]).descend(slots, num_steps, is_frugal=is_frugal):
            offers.add(seen.layers, seen.slots)


def _steps(costs: Costs) -> int:
    """Of a search: fewer where each takes longer. No clock: the same input has the same plan."""
    work = costs.tokens.shape[0] * costs.tokens.shape[1] * costs.topology.num_slots * costs.topology.slots_per_rank
    return int(min(_MOST_STEPS, _WORK // work))


def _described(
    chosen: Slots, offers: Offers, prices: Prices, scenarios: Sequence[Scenario], base: Slots | None
) -> Plan:
    costs, topology, every = offers.costs, offers.costs.topology, np.arange(len(chosen))
    placement = Placement(chosen, costs.tokens.shape[2], topology.slots_per_rank)
    check_placement(placement, topology)
    if costs.aim.splits_best:
        placement = replace(placement, shares=fast_shares(placement, topology, costs.expected))
    slowest = costs.slowest(chosen)
    moves = offers.moves(every, chosen)
    needed = 0 if base is None else int(offers.moves(every, base).sum())
    found = Plan(
        placement,
        Terms(costs.straggler_s(slowest), costs.dispatch_s(chosen), costs.slots_moving_s(chosen)),
        None if base is None else float(costs.terms(base).total_s.sum()),
        float(costs.bound_s().sum()),
        {scenario.name: 1.0 / slowest[number] for number, scenario in enumerate(scenarios)},
        int(moves.sum()),
        needed,
        float(moves.sum() * prices.expert_bytes),
        (),
    )
    return replace(found, reasons=_reasons(found, offers, chosen))


def _reasons(found: Plan, offers: Offers, chosen: Slots) -> tuple[str, ...]:
    terms = found.terms
    lines = [
        f"{found.total_s:.3g} s over {offers.costs.aim.horizon_s:g} s: slowest ranks {terms.straggler_s.sum():.3g}"
        f" (bound {found.bound_s:.3g}), between nodes {terms.dispatch_s.sum():.3g}, moving {terms.moving_s.sum():.3g}"
    ]
    worst = min(found.balancedness, key=lambda name: float(found.balancedness[name].mean()))
    values = found.balancedness[worst]
    lines.append(f"worst load {worst}: balancedness {values.mean():.3f}, {values.min():.3f} in layer {values.argmin()}")
    if found.kept_s is not None:
        lines.append(
            f"{found.moved_slots} slots move ({found.moved_bytes / 1e9:.3g} GB), which saves"
            f" {found.kept_s - found.total_s:.3g} s of {found.kept_s:.3g} s"
        )
    if found.needed_slots:
        lines.append(f"{found.needed_slots} of them had to: experts without a live slot, or live slots without one")
    is_best = (chosen == offers.best_slots).all(axis=1)
    if not is_best.all():
        lines.append(f"{int((~is_best).sum())} layers had a better plan that needs more moves than allowed")
    return tuple(lines)
