"""Plans that a search begins with. Pure.

`vector_lpt` knows several loads at once: replicas in order of what they bring at most, each to the rank whose largest
load over the scenarios stays least. `repaired` is the last plan on the ranks that are alive now: experts that lost
their last slot take the place of replicas, ranks that came back are filled.
"""

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.cost import Costs
from controlplane.placement.eplb import eplb_global, eplb_hierarchical
from controlplane.placement.replicas import envelope, replicate
from controlplane.placement.types import EMPTY, Placement, PlacementError, Slots, Tokens, Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def baselines(costs: Costs) -> list[Slots]:
    """EPLB's, for the mean of all loads."""
    found = [eplb_global(costs.expected, costs.topology).slots]
    if costs.tokens.shape[2] % costs.aim.num_groups == 0:
        found.append(eplb_hierarchical(costs.expected, costs.topology, costs.aim.num_groups).slots)
    return found


def starts(costs: Costs) -> list[Slots]:
    """Plans made from nothing."""
    topology, mean, most = costs.topology, costs.expected, envelope(costs.tokens)
    found = [*baselines(costs), vector_lpt(costs, mean)]
    if len(costs.tokens) > 1:
        found += [eplb_global(most, topology).slots, vector_lpt(costs, most)]
    return found


def vector_lpt(costs: Costs, counted: Tokens) -> Slots:
    """Replica counts from one load, ranks from all."""
    topology = costs.topology
    live, speeds = topology.live_ranks, topology.speeds[topology.live_ranks]
    room = len(live) * topology.slots_per_rank
    most = len(live) if len(live) * counted.shape[1] >= room else None
    counts, expert_of = replicate(counted, room, most=most)
    num_layers = len(counted)
    rows = np.arange(num_layers)
    brings = costs.tokens / counts
    order = np.argsort(-np.take_along_axis(brings.max(axis=0), expert_of, axis=1), axis=1, kind="stable")
    expert_of = np.take_along_axis(expert_of, order, axis=1)
    loads = np.zeros((len(brings), num_layers, len(live)))
    taken = np.zeros((num_layers, len(live)), dtype=np.int64)
    held = np.zeros((num_layers, counted.shape[1], len(live)), dtype=bool)
    slots = np.full((num_layers, topology.num_slots), EMPTY, dtype=np.int64)
    for expert in expert_of.T:
        after = loads + brings[:, rows, expert][:, :, None] / speeds
        score = after.max(axis=0)
        # A second copy on a rank is of no use, but better than none: 1e6 even loads are more than there can be.
        score = np.where(taken >= topology.slots_per_rank, np.inf, score + 1e6 * held[rows, expert])
        rank = score.argmin(axis=1)
        slots[rows, live[rank] * topology.slots_per_rank + taken[rows, rank]] = expert
        loads[:, rows, rank] = after[:, rows, rank]
        taken[rows, rank] += 1
        held[rows, expert, rank] = True
    return slots


def check_previous(previous: Placement, shape: tuple[int, ...], topology: Topology) -> None:
    """Raise PlacementError unless a plan for such loads and ranks can follow it."""
    expected = (shape[0], topology.num_slots)
    if previous.slots.shape != expected or previous.slots_per_rank != topology.slots_per_rank:
        raise PlacementError(f"the previous plan has shape {previous.slots.shape}, expected {expected}")
    if previous.num_experts != shape[1] or previous.slots.min() < EMPTY or previous.slots.max() >= shape[1]:
        raise PlacementError(f"the previous plan is for {previous.num_experts} experts, the loads are for {shape[1]}")


def repaired(costs: Costs, previous: Placement) -> Slots:
    """The previous plan with every expert on a live rank and every live slot filled."""
    topology, num_experts = costs.topology, previous.num_experts
    is_live = np.zeros(topology.num_slots, dtype=bool)
    is_live[topology.live_slots] = True
    slots = np.where(is_live, previous.slots, EMPTY)
    most = envelope(costs.tokens)
    while True:
        counts = Placement(slots, num_experts, topology.slots_per_rank).replica_counts
        lost = np.where(counts == 0, most, -1.0)
        expert = lost.argmax(axis=1)
        needy = np.flatnonzero(lost.max(axis=1) >= 0.0)
        if not len(needy):
            break
        _place(costs, slots, needy, expert[needy], is_live)
    while True:
        vacant = is_live & (slots == EMPTY)
        needy = np.flatnonzero(vacant.any(axis=1))
        if not len(needy):
            return slots
        counts = Placement(slots, num_experts, topology.slots_per_rank).replica_counts
        a_slot = np.where(counts < len(topology.live_ranks), most / counts, -1.0)
        _place(costs, slots, needy, a_slot[needy].argmax(axis=1), is_live)


def _place(costs: Costs, slots: Slots, layers: Ints, experts: Ints, is_live: NDArray[np.bool_]) -> None:
    """Put one expert a layer where it does least harm: in an empty slot, or for a replica."""
    topology = costs.topology
    rows = np.arange(len(layers))
    here = slots[layers]
    placement = Placement(here, costs.tokens.shape[2], topology.slots_per_rank)
    counts = placement.replica_counts
    old = np.maximum(here, 0)
    is_empty = here == EMPTY
    count = np.maximum(counts[rows[:, None], old], 1)
    tokens = costs.tokens[:, layers]
    brings = np.where(is_empty, 0.0, tokens[:, rows[:, None], old] / count)
    num_ranks = len(topology.ranks)
    loads = brings.reshape(len(brings), len(layers), num_ranks, topology.slots_per_rank).sum(axis=3)
    rank = np.arange(topology.num_slots) // topology.slots_per_rank
    pace = 1.0 / np.where(topology.speeds > 0.0, topology.speeds, 1.0)
    gets = tokens[:, rows, experts] / (counts[rows, experts] + 1)
    others = np.where(is_empty, 0.0, brings * count / np.maximum(count - 1, 1))  # of each replica that stays
    harm = np.maximum((loads[:, :, rank] - brings + gets[:, :, None]) * pace[rank], others).max(axis=0)
    held = (here.reshape(len(layers), num_ranks, -1) == experts[:, None, None]).any(axis=2)
    score = harm + 1e6 * held[:, rank]
    score = np.where(is_live & (is_empty | (count > 1)), score, np.inf)
    score = np.where(is_live & is_empty, score - 1e9, score)  # empty slots first
    slots[layers, score.argmin(axis=1)] = experts
