"""What a placement costs, in seconds. Pure.

Every step waits in every layer for its slowest rank, so with w_e the tokens of expert e, x_s the share of its tokens
that slot s takes, and v_r a rank's relative speed:

    load_r       = sum over the rank's slots s of w_e(s) x_s / v_r
    straggler    = max_r load_r                       even = sum_e w_e / sum_r v_r: no placement is below it
    balancedness = even / straggler                   in (0, 1]; mean over max where ranks are equal
    dispatch     = sum_e w_e (1 - nodes holding e / nodes)    tokens that have to cross nodes at least: tokens start on
                   every node alike and stay where there is a copy
    moved        = slots whose expert was not on that rank before

As seconds of a horizon of T tokens (expert choices) a layer:

    cost = expert_s_per_token * T * straggler + token_bytes * T * dispatch / (bandwidth of a node * nodes)
           + expert_bytes * moved / (link from the nearest copy * nodes)

Nodes send at the same time; within one, engines move experts one after another.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.parts import shares_of
from controlplane.placement.types import EMPTY, Placement, Shares, Slots, Tokens, Topology


@dataclass(frozen=True, slots=True)
class Prices:
    """What turns tokens and bytes into seconds. Defaults: DeepSeek-V3 in FP8 on nodes of eight H800."""

    expert_s_per_token: float = 2.2e-7  # of a rank of speed 1 for one token in one expert
    expert_bytes: float = 44e6
    token_bytes: float = 7168.0  # that a token takes to another node
    cross_node_bytes_per_s: float = 360e9  # of tokens, between nodes, for each node: eight links of 45 GB/s
    link_bytes_per_s: float = 160e9  # of experts that move, between two ranks of a node
    cross_link_bytes_per_s: float = 45e9  # the same, between two ranks of different nodes
    tokens_per_s: float = 1e5  # expert choices a layer; a plan is used for a horizon of these


def equal_shares(slots: Slots, num_experts: int) -> Shares:
    """Engines without a say split an expert's tokens equally among its replicas."""
    return shares_of(slots, np.ones_like(slots), num_experts)


def rank_loads(placement: Placement, topology: Topology, tokens: Tokens) -> NDArray[np.float64]:
    """(layers, ranks): tokens of each rank over its speed; 0 on a dead one."""
    shares = placement.shares
    if shares is None:
        shares = equal_shares(placement.slots, placement.num_experts)
    layers = np.arange(placement.num_layers)[:, None]
    held = np.where(placement.slots == EMPTY, 0.0, tokens[layers, np.maximum(placement.slots, 0)])
    by_rank = (held * shares).reshape(placement.num_layers, len(topology.ranks), topology.slots_per_rank).sum(axis=2)
    speeds = topology.speeds
    loads: NDArray[np.float64] = np.divide(by_rank, speeds, out=np.zeros_like(by_rank), where=speeds > 0.0)
    return loads


def even_loads(topology: Topology, tokens: Tokens) -> NDArray[np.float64]:
    """(layers,): the load of every rank if tokens could be cut at will."""
    even: NDArray[np.float64] = tokens.sum(axis=1) / topology.speeds.sum()
    return even


def balancedness(placement: Placement, topology: Topology, tokens: Tokens) -> NDArray[np.float64]:
    """(layers,): even load over the slowest rank's."""
    slowest = rank_loads(placement, topology, tokens).max(axis=1)
    found: NDArray[np.float64] = even_loads(topology, tokens) / slowest
    return found


def dispatch_share(placement: Placement, topology: Topology, tokens: Tokens) -> NDArray[np.float64]:
    """(layers,): part of the tokens that have to cross nodes at least."""
    nodes = topology.nodes
    live_nodes = np.unique(nodes[topology.live_ranks])
    held_by = np.zeros(tokens.shape)  # nodes that hold each expert
    slot_node = np.repeat(nodes, topology.slots_per_rank)
    for node in live_nodes:
        on_node = np.zeros(tokens.shape, dtype=bool)
        layer, at = np.nonzero((placement.slots != EMPTY) & (slot_node == node))
        on_node[layer, placement.slots[layer, at]] = True
        held_by += on_node
    crossing: NDArray[np.float64] = (tokens * (1.0 - held_by / len(live_nodes))).sum(axis=1) / tokens.sum(axis=1)
    return crossing


def moved_slots(new: Placement, old: Placement) -> NDArray[np.bool_]:
    """(layers, slots): those whose expert the rank did not hold. A swap of slots within a rank moves nothing."""
    num_layers, num_slots = new.slots.shape
    shape = (num_layers, num_slots // new.slots_per_rank, new.slots_per_rank)
    after, before = new.slots.reshape(shape), old.slots.reshape(shape)
    was_there = (after[:, :, :, None] == before[:, :, None, :]).any(axis=3)
    moved: NDArray[np.bool_] = (~was_there & (after != EMPTY)).reshape(num_layers, num_slots)
    return moved
