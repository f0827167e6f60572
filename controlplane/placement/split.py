"""How an expert's tokens are best divided among its replicas, for a placement as it is. Pure.

With y_er the tokens of expert e that rank r takes, in each layer

    minimise  max_r sum_e y_er / v_r     where  sum_r y_er = w_e,  y_er >= 0,  and y_er = 0 unless r holds e

By duality the least is max over sets S of experts of w(S) / (speed of all ranks that hold one of S): those ranks have
S to do among them, whatever the division (Hall's condition with capacities). Engines split equally; what that loses is
seen here.

`optimal_shares` solves the linear program. `fast_shares` takes the experts with several ranks in turn and pours each
anew over its ranks, the lowest filled first, all layers at once. Pouring is exact descent, a block at a time, on
sum_r load_r^2 v_r, whose least point is also that of the largest load (the loads reachable are the bases of a
polymatroid: one of them is least for every such sum; Fujishige 1980). No pour raises the larger of the loads that it
changes, so from equal shares on the slowest rank only gets faster. The ranks in order of load are sets S, and the best
bound of those ends the work early: `fast_shares` knows how near it is.

A second replica on the same rank changes nothing; the pair (expert, rank) is what counts, and its slots share alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.lp import INF, Program
from controlplane.placement.types import (
    EMPTY,
    Placement,
    Scenario,
    Shares,
    Tokens,
    Topology,
    check_tokens,
    scenario_tokens,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SWEEPS = 24
_ENOUGH = 2e-3
_FULL = 1e300  # load of a rank that is not there


@dataclass(frozen=True, slots=True)
class Pairs:
    """The (expert, rank) pairs of all layers, in order of layer, expert and rank."""

    layer: Ints
    expert: Ints
    rank: Ints
    num_slots: Ints  # of the rank that hold the expert
    of_slot: Ints  # (layers, slots) the pair of each; 0 where empty

    @classmethod
    def of(cls, placement: Placement, num_ranks: int) -> "Pairs":
        """Those of a placement."""
        layer, slot = np.nonzero(placement.slots != EMPTY)
        expert, rank = placement.slots[layer, slot], slot // placement.slots_per_rank
        key = (layer * placement.num_experts + expert) * num_ranks + rank
        keys, of_key, num_slots = np.unique(key, return_inverse=True, return_counts=True)
        of_slot = np.zeros_like(placement.slots)
        of_slot[layer, slot] = of_key
        layer_expert, rank = np.divmod(keys, num_ranks)
        layer, expert = np.divmod(layer_expert, placement.num_experts)
        return cls(layer, expert, rank, num_slots, of_slot)

    def shares(self, part: Floats, placement: Placement) -> Shares:
        """(layers, slots) shares from the part of its expert's tokens that each pair takes."""
        found: Shares = np.where(placement.slots == EMPTY, 0.0, (part / self.num_slots)[self.of_slot])
        return found


def optimal_shares(placement: Placement, topology: Topology, tokens: Tokens) -> Shares:
    """(layers, slots) with which the slowest rank is as fast as it can be. Equal where an expert has no tokens."""
    check_tokens(tokens)
    return _solve(placement, topology, tokens[None]).shares


def robust_shares(placement: Placement, topology: Topology, scenarios: Sequence[Scenario]) -> Shares:
    """(layers, slots) with which the slowest rank is as fast as it can be in the worst of several loads.

    For engines that keep their shares while loads change. A load counts by what it is of its even load.
    """
    return _solve(placement, topology, scenario_tokens(scenarios)).shares


def split_bound(placement: Placement, topology: Topology, tokens: Tokens) -> Floats:
    """(layers,) load of the slowest rank with the best shares, proven: from the duals, which hold as they are."""
    check_tokens(tokens)
    return _solve(placement, topology, tokens[None]).bounds


def prefix_bound(placement: Placement, topology: Topology, tokens: Tokens, loads: Floats) -> Floats:
    """(layers,) the best bound of the sets {experts held by the k most loaded ranks alone}. No solver."""
    slots_rank = np.repeat(np.arange(len(topology.ranks)), topology.slots_per_rank)
    by_load = np.argsort(-loads, axis=1, kind="stable")
    place = np.empty_like(by_load)
    np.put_along_axis(place, by_load, np.arange(len(topology.ranks))[None, :], axis=1)
    last = np.zeros(tokens.size, dtype=np.int64)  # place of the least loaded rank that holds each expert
    layer, slot = np.nonzero(placement.slots != EMPTY)
    # Numbers of a flat array: many times faster than two indices.
    np.maximum.at(last, layer * tokens.shape[1] + placement.slots[layer, slot], place[layer, slots_rank[slot]])
    enters = np.arange(len(tokens))[:, None] * loads.shape[1] + last.reshape(tokens.shape)
    entering = np.bincount(enters.ravel(), tokens.ravel(), loads.size).reshape(loads.shape)
    speed = np.cumsum(topology.speeds[by_load], axis=1)
    found: Floats = np.divide(np.cumsum(entering, axis=1), speed, out=np.zeros_like(speed), where=speed > 0.0).max(1)
    return found


def fast_shares(placement: Placement, topology: Topology, tokens: Tokens, *, sweeps: int = _SWEEPS) -> Shares:
    """(layers, slots) with which the slowest rank is nearly as fast as it can be, never slower than with equal ones.

    At most `sweeps` times over all experts. A layer is left alone once its slowest rank is within 0.2 % of the best,
    be it with equal shares.
    """
    equal = Placement(placement.slots, placement.num_experts, placement.slots_per_rank)
    pairs = Pairs.of(placement, len(topology.ranks))
    pour = _Pour.of(pairs, equal, topology, tokens)
    unfinished = np.arange(len(tokens))
    for _ in range(sweeps):
        loads = pour.loads()[unfinished]
        here = replace(equal, slots=placement.slots[unfinished])
        bounds = prefix_bound(here, topology, tokens[unfinished], loads)
        unfinished = unfinished[loads.max(axis=1) > (1.0 + _ENOUGH) * bounds]
        if not len(unfinished):
            break
        pour.sweep(unfinished)
    return pairs.shares(pour.parts(), placement)


@dataclass(slots=True)
class _Pour:
    """Tokens of experts with several ranks on their ranks: (layers, experts of this kind, ranks of one), padded."""

    speeds: Floats  # (ranks + 1,): the last is no rank, for padding
    rank: Ints
    tokens: Floats  # (layers, experts of this kind)
    amount: Floats  # of these tokens on each rank
    on_rank: Floats  # (layers, ranks + 1) all tokens of each rank
    pair_at: tuple[Ints, Ints, Ints]  # where each pair of this kind is
    pair: Ints  # and its number
    part: Floats  # (pairs,) as they were before

    @classmethod
    def of(cls, pairs: Pairs, equal: Placement, topology: Topology, tokens: Tokens) -> "_Pour":
        """From equal shares on. The experts with most tokens are poured first."""
        num_layers, num_ranks = len(tokens), len(topology.ranks)
        part = pairs.num_slots / equal.replica_counts[pairs.layer, pairs.expert]
        ranks_of = np.zeros(tokens.shape, dtype=np.int64)
        np.add.at(ranks_of, (pairs.layer, pairs.expert), 1)
        is_poured = (ranks_of > 1) & (tokens > 0.0)
        num = int(is_poured.sum(axis=1).max())
        order = np.argsort(np.where(is_poured, -tokens, 1.0), axis=1, kind="stable")
        number = np.empty_like(order)
        np.put_along_axis(number, order, np.arange(tokens.shape[1])[None, :], axis=1)
        chosen = np.flatnonzero(is_poured[pairs.layer, pairs.expert])
        layer, expert = pairs.layer[chosen], pairs.expert[chosen]
        at = (layer, number[layer, expert], _place_in_run(layer * tokens.shape[1] + expert))
        shape = (num_layers, num, int(ranks_of.max()))
        rank = np.full(shape, num_ranks, dtype=np.int64)
        rank[at] = pairs.rank[chosen]
        amount = np.zeros(shape)
        amount[at] = tokens[layer, expert] * part[chosen]
        on_rank = np.zeros((num_layers, num_ranks + 1))
        np.add.at(on_rank, (pairs.layer, pairs.rank), tokens[pairs.layer, pairs.expert] * part)
        poured = np.take_along_axis(np.where(is_poured, tokens, 0.0), order, axis=1)[:, :num]
        return cls(np.append(topology.speeds, 0.0), rank, poured, amount, on_rank, at, chosen, part)

    def sweep(self, layers: Ints) -> None:
        """Pour every expert of these layers once, the others being as they are."""
        for expert in range(self.tokens.shape[1]):
            rank = self.rank[layers, expert]
            others = self.on_rank[layers[:, None], rank] - self.amount[layers, expert]
            poured = _poured(others, self.speeds[rank], self.tokens[layers, expert, None])
            self.amount[layers, expert] = poured
            self.on_rank[layers[:, None], rank] = others + poured

    def loads(self) -> Floats:
        """(layers, ranks)."""
        speeds = self.speeds[:-1]
        by_rank = self.on_rank[:, :-1]
        found: Floats = np.divide(by_rank, speeds, out=np.zeros_like(by_rank), where=speeds > 0.0)
        return found

    def parts(self) -> Floats:
        """(pairs,) the part of its expert's tokens that each takes."""
        part = self.part.copy()
        layer, expert, _ = self.pair_at
        part[self.pair] = self.amount[self.pair_at] / self.tokens[layer, expert]
        return part


def _place_in_run(keys: Ints) -> Ints:
    """0, 1, 2... within each run of equal keys."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.append(starts, len(keys)))
    return np.arange(len(keys)) - np.repeat(starts, lengths)


def _poured(others: Floats, speeds: Floats, tokens: Floats) -> Floats:
    """(rows, ranks) what each rank gets so that those that get any end level. Speed 0: no rank.

    Filling the k lowest, the level is (tokens + sum v b) / sum v, and it is least for the right k.
    """
    base = np.divide(others, speeds, out=np.full_like(others, _FULL), where=speeds > 0.0)
    order = np.argsort(base, axis=1)
    speed = np.take_along_axis(speeds, order, axis=1)
    filled = np.cumsum(np.where(speed > 0.0, np.take_along_axis(others, order, axis=1), 0.0), axis=1)
    total = np.cumsum(speed, axis=1)
    level = np.divide(tokens + filled, total, out=np.full_like(total, _FULL), where=total > 0.0).min(1, keepdims=True)
    amount = speeds * np.maximum(level - base, 0.0)
    whole = amount.sum(axis=1, keepdims=True)
    # Too few tokens to be told from none beside the others: all to the lowest.
    to_lowest = np.zeros_like(amount)
    np.put_along_axis(to_lowest, order[:, :1], tokens, axis=1)
    found: Floats = np.divide(amount * tokens, whole, out=to_lowest, where=whole > 0.0)
    return found


@dataclass(frozen=True, slots=True)
class _Best:
    shares: Shares
    bounds: Floats  # (layers,) on the load of the slowest rank, of the worst load if there are several


def _solve(placement: Placement, topology: Topology, loads: Floats) -> _Best:
    """The linear program of each layer for (loads, layers, experts)."""
    pairs = Pairs.of(placement, len(topology.ranks))
    part = pairs.num_slots / placement.replica_counts[pairs.layer, pairs.expert]
    bounds = np.zeros(placement.num_layers)
    ends = np.searchsorted(pairs.layer, np.arange(placement.num_layers + 1))
    for layer in range(placement.num_layers):
        here = slice(ends[layer], ends[layer + 1])
        even = loads[:, layer].sum(axis=1).max() / topology.speeds.sum()
        part[here], bound = _solve_layer(
            pairs.expert[here], pairs.rank[here], part[here], loads[:, layer] / even, topology.speeds
        )
        bounds[layer] = bound * even
    return _Best(pairs.shares(part, placement), bounds)


def _solve_layer(expert: Ints, rank: Ints, part: Floats, loads: Floats, speeds: Floats) -> tuple[Floats, float]:
    """Parts of the pairs, and the bound. `loads` (loads, experts) with the even load as 1; `part` for idle experts."""
    program = Program()
    slowest = program.column(cost=1.0)
    is_used = loads[:, expert].max(axis=0) > 0.0
    columns = [program.column() if used else -1 for used in is_used]
    for one in np.unique(expert[is_used]):
        held = [columns[at] for at in np.flatnonzero(expert == one)]
        program.row(held, [1.0] * len(held), 1.0, 1.0)
    rows = []  # (load, rank, row)
    for number, load in enumerate(loads):
        for one in np.unique(rank):
            held_at = np.flatnonzero((rank == one) & is_used)
            at = [columns[pair] for pair in held_at]
            row = program.row([slowest, *at], [speeds[one], *(-load[expert[held_at]])], 0.0, INF)
            rows.append((number, int(one), row))
    solved = program.solve()
    found = np.where(is_used, np.maximum(solved.columns[columns], 0.0), part)
    whole = np.bincount(expert, weights=found)
    prices = np.zeros((len(loads), len(speeds)))
    for number, one, row in rows:
        prices[number, one] = max(solved.row_duals[row], 0.0)
    return found / whole[expert], _dual_bound(expert, rank, loads, prices, speeds)


def _dual_bound(expert: Ints, rank: Ints, loads: Floats, prices: Floats, speeds: Floats) -> float:
    """With prices p_lr >= 0 and sum p_lr v_r = 1 none is below sum_e min over its ranks of sum_l w_le p_lr."""
    total = float((prices * speeds).sum())
    cost = (loads[:, expert] * prices[:, rank]).sum(axis=0) / total
    least = np.full(loads.shape[1], INF)
    np.minimum.at(least, expert, cost)
    return float(least[np.isfinite(least)].sum())
