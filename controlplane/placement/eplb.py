"""The placements that engines make themselves, to be measured against. Pure.

`linear` is vLLM's first placement: experts in order, redundant slots start again from expert 0. The other two are
DeepSeek's EPLB (github.com/deepseek-ai/EPLB), which vLLM and SGLang run, after its description:

 1. Groups of experts are packed onto nodes, a token's experts lying in few groups.
 2. On each node the expert with the most tokens a slot gets the next slot, until there is none left.
 3. The node's replicas are packed onto its ranks.

Packing: the heaviest first, each into the lightest pack with room, every pack taking as many. `eplb_hierarchical` is
this, `eplb_global` the same with all experts one group and all ranks one node. Neither knows speeds, the last placement
or more than one load. With dead ranks both place over the live ones alone, and nodes that are no longer equal are taken
as one, as SGLang does.
"""

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.replicas import replicate
from controlplane.placement.types import EMPTY, Placement, PlacementError, Slots, Tokens, Topology, check_room

Ints = NDArray[np.int64]


def linear(num_layers: int, num_experts: int, topology: Topology) -> Placement:
    """Slot s holds expert s modulo their number, counted over the live slots."""
    check_room(num_experts, topology)
    slots = np.full((num_layers, topology.num_slots), EMPTY, dtype=np.int64)
    live = topology.live_slots
    slots[:, live] = np.arange(len(live)) % num_experts
    return Placement(slots, num_experts, topology.slots_per_rank)


def eplb_global(tokens: Tokens, topology: Topology) -> Placement:
    """EPLB without regard to nodes."""
    check_room(tokens.shape[1], topology)
    return _laid_out(_arrange(tokens, topology, topology.live_ranks, 1, 1), tokens, topology, topology.live_ranks)


def eplb_hierarchical(tokens: Tokens, topology: Topology, num_groups: int) -> Placement:
    """EPLB with groups kept on a node. The global one where groups do not divide over the nodes, or nodes differ."""
    num_experts = tokens.shape[1]
    if num_groups < 1 or num_experts % num_groups:
        raise PlacementError(f"{num_experts} experts do not divide into {num_groups} groups")
    check_room(num_experts, topology)
    live = topology.live_ranks
    nodes, ranks_of_node = np.unique(topology.nodes[live], return_counts=True)
    if num_groups % len(nodes) or (ranks_of_node != ranks_of_node[0]).any():
        return eplb_global(tokens, topology)
    by_node = live[np.argsort(topology.nodes[live], kind="stable")]
    return _laid_out(_arrange(tokens, topology, by_node, num_groups, len(nodes)), tokens, topology, by_node)


def pack(weights: NDArray[np.float64], num_packs: int) -> tuple[Ints, Ints]:
    """(rows, items) -> the pack of each item, and its place there. Packs take equally many items."""
    num_rows, num_items = weights.shape
    room = num_items // num_packs
    assert room * num_packs == num_items, "items divide over the packs"
    packs, places = np.zeros((num_rows, num_items), dtype=np.int64), np.zeros((num_rows, num_items), dtype=np.int64)
    if room == 1:
        packs[:] = np.arange(num_items)
        return packs, places
    order = np.argsort(-weights, axis=1, kind="stable")
    rows = np.arange(num_rows)
    load = np.zeros((num_rows, num_packs))  # infinite once a pack is full
    taken = np.zeros((num_rows, num_packs), dtype=np.int64)
    for item in order.T:
        lightest = load.argmin(axis=1)
        place = taken[rows, lightest]
        packs[rows, item], places[rows, item] = lightest, place
        taken[rows, lightest] = place + 1
        load[rows, lightest] += np.where(place + 1 == room, np.inf, weights[rows, item])
    return packs, places


def keep_places(new: Placement, old: Placement) -> Placement:
    """The new placement with its slots reordered within each rank: what was there before keeps its slot.

    As vLLM's preserve_intragpu_slots, but that a slot which agrees already is left alone even where its rank holds the
    expert twice. With other ranks or slots than before nothing is reordered.
    """
    if new.slots.shape != old.slots.shape or new.slots_per_rank != old.slots_per_rank:
        return new
    after, before = (placement.slots.reshape(-1, new.slots_per_rank) for placement in (new, old))
    source = _sources(after, before)
    slots = np.take_along_axis(after, source, axis=1).reshape(new.slots.shape)
    shares = new.shares
    if shares is not None:
        shares = np.take_along_axis(shares.reshape(after.shape), source, axis=1).reshape(new.slots.shape)
    return Placement(slots, new.num_experts, new.slots_per_rank, shares)


def _sources(after: Ints, before: Ints) -> Ints:
    """(rows, places) from which place of `after` each place is filled: where `before` agrees, with the same."""
    rows = np.arange(len(after))
    is_kept = after == before  # places of `before`
    is_used = is_kept.copy()  # places of `after`
    source = np.tile(np.arange(after.shape[1]), (len(after), 1))
    for place in range(after.shape[1]):
        same = (after == before[:, place, None]) & ~is_used & ~is_kept[:, place, None]
        found = rows[same.any(axis=1)]
        first = same[found].argmax(axis=1)
        source[found, place] = first
        is_used[found, first] = True
        is_kept[found, place] = True
    # What is left goes, in order, where there is room: as many of one as of the other in each row.
    source[~is_kept] = np.nonzero(~is_used)[1]
    return source


def _arrange(tokens: Tokens, topology: Topology, ranks: Ints, num_groups: int, num_nodes: int) -> Slots:
    """(layers, slots of these ranks): the expert of each. Ranks of a node follow each other."""
    num_layers, num_experts = tokens.shape
    num_slots = len(ranks) * topology.slots_per_rank
    expert_at = _grouped(tokens, num_groups, num_nodes)
    # From here each node of each layer is a row of its own.
    here = np.take_along_axis(tokens, expert_at, axis=1).reshape(num_layers * num_nodes, -1)
    # A node may have no load at all in a layer: then any replicas are as good.
    is_idle = ~here.any(axis=1, keepdims=True)
    counts, local = replicate(np.where(is_idle, 1.0, here), num_slots // num_nodes)
    rank, place = pack(np.take_along_axis(here / counts, local, axis=1), len(ranks) // num_nodes)
    arranged = np.zeros_like(local)
    np.put_along_axis(arranged, rank * topology.slots_per_rank + place, local, axis=1)
    experts_a_node = num_experts // num_nodes
    first = np.arange(num_nodes)[:, None] * experts_a_node
    at = (arranged.reshape(num_layers, num_nodes, -1) + first).reshape(num_layers, num_slots)
    return np.take_along_axis(expert_at, at, axis=1)


def _grouped(tokens: Tokens, num_groups: int, num_nodes: int) -> Ints:
    """(layers, experts) all experts, node by node."""
    num_layers, num_experts = tokens.shape
    size = num_experts // num_groups
    node, place = pack(tokens.reshape(num_layers, num_groups, size).sum(axis=2), num_nodes)
    group_at = np.zeros_like(node)
    np.put_along_axis(group_at, node * (num_groups // num_nodes) + place, np.arange(num_groups)[None, :], axis=1)
    expert_at: Ints = (group_at[:, :, None] * size + np.arange(size)).reshape(num_layers, num_experts)
    return expert_at


def _laid_out(arranged: Slots, tokens: Tokens, topology: Topology, ranks: Ints) -> Placement:
    slots = np.full((len(tokens), topology.num_slots), EMPTY, dtype=np.int64)
    at = (ranks[:, None] * topology.slots_per_rank + np.arange(topology.slots_per_rank)).ravel()
    slots[:, at] = arranged
    return Placement(slots, tokens.shape[1], topology.slots_per_rank)
