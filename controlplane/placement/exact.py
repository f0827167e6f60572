"""The best placement there is, for small cases: what heuristics are measured against. Pure.

Each layer is a mixed-integer program, minimise T over placements with k slots on every live rank of speed v_r. Tokens
may be divided freely among replicas (`exact_split`): x_er is whether rank r holds expert e, y_er its tokens there,

    sum_r y_er = w_e    y_er <= w_e x_er    sum_r x_er >= 1    sum_e x_er <= k    sum_e y_er <= v_r T

or equally, as engines do (`exact_equal`). Then a replica's tokens depend on how many there are, which is made linear by
an index for it: z_ec is whether expert e has c slots, u_ecr how many of them lie on rank r, if so:

    sum_c z_ec = 1    sum_r u_ecr = c z_ec    u_ecr <= k z_ec    sum_ec u_ecr = k    sum_ec (w_e / c) u_ecr <= v_r T

Ranks of one speed are alike: the lower its number the more it has. EPLB's placement bounds T from above. Seconds to
minutes for a dozen experts; equal-cardinality partition is strongly NP-hard, so no more is promised.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.eplb import eplb_global
from controlplane.placement.lp import INF, Program, Solved
from controlplane.placement.objective import even_loads, rank_loads
from controlplane.placement.split import optimal_shares
from controlplane.placement.types import EMPTY, Placement, Slots, Tokens, Topology, check_room, check_tokens

Floats = NDArray[np.float64]

_SLACK = 1e-6  # the solver's feasibility tolerance
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Exact:
    """The best placement found, and how much better any other can be."""

    placement: Placement
    stragglers: Floats  # (layers,) load of the slowest rank
    bounds: Floats  # (layers,) that of no placement is below it, but for the solver's tolerance of a millionth

    @property
    def gap(self) -> float:
        """The most that a layer's is above its bound, relative to it; 0 if proven best."""
        return max(0.0, float((self.stragglers / self.bounds).max()) - 1.0)


def exact_equal(tokens: Tokens, topology: Topology, *, limit_s: float = _LIMIT_S, gap: float = 0.0) -> Exact:
    """The best with tokens divided equally. `limit_s` for a layer; it stops within `gap` of the best (relative)."""
    return _exact(_solve_equal, tokens, topology, _Effort(limit_s, gap), lambda placement: placement)


def exact_split(tokens: Tokens, topology: Topology, *, limit_s: float = _LIMIT_S, gap: float = 0.0) -> Exact:
    """The best with tokens divided at will, with these shares."""

    def divided(placement: Placement) -> Placement:
        return replace(placement, shares=optimal_shares(placement, topology, tokens))

    return _exact(_solve_split, tokens, topology, _Effort(limit_s, gap), divided)


@dataclass(frozen=True, slots=True)
class _Effort:
    limit_s: float
    gap: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, with the even load as 1."""

    tokens: Floats  # (experts,)
    speeds: Floats  # (live ranks,)
    num_places: int  # slots of a rank
    most: float  # load of the slowest rank that can be had
    effort: _Effort


def _exact(
    solve: Callable[[_Layer], tuple[Slots, float]],
    tokens: Tokens,
    topology: Topology,
    effort: _Effort,
    divided: Callable[[Placement], Placement],
) -> Exact:
    check_tokens(tokens)
    check_room(tokens.shape[1], topology)
    known = eplb_global(tokens, topology)
    known_most = rank_loads(divided(known), topology, tokens).max(axis=1)
    even = even_loads(topology, tokens)
    slots, bounds = known.slots.copy(), np.zeros(len(tokens))
    speeds, live = topology.speeds[topology.live_ranks], topology.live_slots
    for number, row in enumerate(tokens):
        most = float(known_most[number] / even[number])
        found, bound = solve(_Layer(row / even[number], speeds, topology.slots_per_rank, most, effort))
        bounds[number] = max(bound, 1.0) * even[number]
        if len(found):
            slots[number] = EMPTY
            slots[number, live] = found
    best = divided(replace(known, slots=slots))
    stragglers = rank_loads(best, topology, tokens).max(axis=1)
    is_known_better = known_most < stragglers  # by the solver's tolerance
    slots[is_known_better] = known.slots[is_known_better]
    best = divided(replace(known, slots=slots))
    return Exact(best, rank_loads(best, topology, tokens).max(axis=1), bounds)


def _solve_split(layer: _Layer) -> tuple[Slots, float]:
    program, slowest = _program(layer)
    ranks, experts = range(len(layer.speeds)), range(len(layer.tokens))
    holds = [[program.column(0.0, 1.0, is_integer=True) for _ in ranks] for _ in experts]
    takes = [[program.column() for _ in ranks] for _ in experts]
    for expert, load in enumerate(layer.tokens):
        program.row(holds[expert], [1.0] * len(ranks), 1.0, INF)
        program.row(takes[expert], [1.0] * len(ranks), load, load)
        for rank in ranks:
            program.row([takes[expert][rank], holds[expert][rank]], [1.0, -load], -INF, 0.0)
    for rank in ranks:
        program.row([holds[expert][rank] for expert in experts], [1.0] * len(experts), -INF, layer.num_places)
    on_rank = [([takes[expert][rank] for expert in experts], [1.0] * len(experts)) for rank in ranks]
    _bound_loads(program, layer, slowest, on_rank)
    solved = program.solve(limit_s=layer.effort.limit_s, gap=layer.effort.gap)
    if not len(solved.columns):
        return np.zeros(0, dtype=np.int64), solved.bound
    held = [[expert for expert in experts if _whole(solved, holds[expert][rank])] for rank in ranks]
    # A place left over goes to an expert that is there already, or to any: it takes nothing or its own.
    padded = [(here + (here[:1] or [0]) * layer.num_places)[: layer.num_places] for here in held]
    return np.array(padded, dtype=np.int64).ravel(), solved.bound


def _solve_equal(layer: _Layer) -> tuple[Slots, float]:
    program, slowest = _program(layer)
    ranks, experts = range(len(layer.speeds)), range(len(layer.tokens))
    most_slots = len(ranks) * layer.num_places - len(experts) + 1
    counts = range(1, most_slots + 1)
    has = {(e, c): program.column(0.0, 1.0, is_integer=True) for e in experts for c in counts}
    lies = {
        (e, c, r): program.column(0.0, min(c, layer.num_places), is_integer=True)
        for e in experts
        for c in counts
        for r in ranks
    }
    for e in experts:
        program.row([has[e, c] for c in counts], [1.0] * most_slots, 1.0, 1.0)
        for c in counts:
            program.row([has[e, c], *(lies[e, c, r] for r in ranks)], [-c, *[1.0] * len(ranks)], 0.0, 0.0)
            for r in ranks:
                program.row([lies[e, c, r], has[e, c]], [1.0, -min(c, layer.num_places)], -INF, 0.0)
    on_rank = []
    for r in ranks:
        here = [(lies[e, c, r], layer.tokens[e] / c) for e in experts for c in counts]
        program.row([column for column, _ in here], [1.0] * len(here), layer.num_places, layer.num_places)
        on_rank.append(([column for column, _ in here], [load for _, load in here]))
    _bound_loads(program, layer, slowest, on_rank)
    solved = program.solve(limit_s=layer.effort.limit_s, gap=layer.effort.gap)
    if not len(solved.columns):
        return np.zeros(0, dtype=np.int64), solved.bound
    found = [[e for e in experts for c in counts for _ in range(_whole(solved, lies[e, c, r]))] for r in ranks]
    return np.array(found, dtype=np.int64).ravel(), solved.bound


def _program(layer: _Layer) -> tuple[Program, int]:
    """A new program, and the column of the slowest rank's load."""
    program = Program()
    return program, program.column(1.0, layer.most * (1.0 + _SLACK), cost=1.0)


def _bound_loads(program: Program, layer: _Layer, slowest: int, on_rank: list[tuple[list[int], list[float]]]) -> None:
    """No rank is slower than the slowest; of two with one speed the first has no less."""
    last_of_speed: dict[float, int] = {}
    for rank, (columns, loads) in enumerate(on_rank):
        speed = float(layer.speeds[rank])
        program.row([slowest, *columns], [speed, *(-load for load in loads)], 0.0, INF)
        if speed in last_of_speed:
            before_columns, before_loads = on_rank[last_of_speed[speed]]
            program.row([*before_columns, *columns], [*before_loads, *(-load for load in loads)], 0.0, INF)
        last_of_speed[speed] = rank


def _whole(solved: Solved, column: int) -> int:
    return round(float(solved.columns[column]))
