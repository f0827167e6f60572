"""Placements made better slot by slot, all layers at once. Pure and deterministic.

Two kinds of steps. Swaps: the half of the ranks that matters most is paired with the other half, another way each time,
and every pair exchanges the two slots that help most. Pairs share no rank, so all of a layer's swaps are made at once;
a frugal search makes the best one alone. Replacements: an expert of a hot rank gets one more replica, in the place of a
replica that its expert misses least. No step puts two copies of an expert on one rank. A layer is done
when `_MOST_FAILS` steps in a row were in vain.

The straggler term is flat: with several loads, or several ranks at the top, no single step changes the largest load. So
steps are judged by a smooth one, (sum_r load_r^p)^(1/p) instead of max_r, and the plans on the way by the true cost:
the caller picks among them. Steps are judged in single precision.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.cost import Costs
from controlplane.placement.types import EMPTY, Slots

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

_RANKS_TRIED = 3
_CYCLE = 4  # steps, of which the last is a replacement
_MOST_FAILS = _CYCLE * _RANKS_TRIED  # in a row: by then each of the replacements has been tried, and nine pairings
_LEAST_GAIN = 1e-5  # of the even load
_KEPT = 6  # replicas a layer that are looked at in full


@dataclass(frozen=True, slots=True)
class Visited:
    """A plan on the way, for some layers."""

    layers: Ints
    slots: Slots  # (these layers, slots)


@dataclass(slots=True)
class _State:
    """Of the layers that still get better."""

    layers: Ints
    slots: Slots
    held: Ints  # (layers, experts, ranks) copies
    tokens: Floats  # (scenarios, layers, slots)
    loads: Floats  # (scenarios, layers, ranks)
    fails: Ints  # steps in vain since the last that was not


class Search:
    """Descent from a plan."""

    def __init__(self, costs: Costs, log2_power: int) -> None:
        self._costs = costs
        self._log2_power = log2_power
        topology = costs.topology
        self._per_rank = topology.slots_per_rank
        self._rank_of = np.arange(topology.num_slots) // self._per_rank
        self._node_of_rank = costs.node_of_slot[:: self._per_rank]
        self._is_dead = topology.speeds == 0.0
        self._num_ranks = len(topology.ranks)
        self._num_live = len(topology.live_ranks)
        self._pace = (1.0 / np.where(self._is_dead, 1.0, topology.speeds)).astype(np.float32)
        self._tokens = costs.tokens.astype(np.float32)
        self._weights = ((1.0 - costs.aim.risk) * costs.even_s * costs.parts).astype(np.float32)
        self._expected = costs.expected.astype(np.float32)
        num_nodes = int(self._node_of_rank.max()) + 1
        self._node_s = costs.crossing_s / (num_nodes * topology.speeds.sum()) if num_nodes > 1 else 0.0
        self._has_moving = bool(costs.moving_s.any())
        self._least_gain = _LEAST_GAIN * costs.even_s

    def descend(self, slots: Slots, steps: int, *, is_frugal: bool) -> Iterator[Visited]:
        """Every plan on the way, the first included. Frugal: one swap a step, so that the plans lie close."""
        state = self._state(np.arange(len(slots)), slots)
        yield Visited(state.layers, state.slots.copy())
        for step in range(steps):
            is_swap = step % _CYCLE != _CYCLE - 1
            better = self._swap(state, step - step // _CYCLE, is_frugal) if is_swap else self._replace(state)
            state.fails = np.where(better, 0, state.fails + 1)
            going = np.flatnonzero(state.fails < _MOST_FAILS)
            if better.any():
                yield Visited(state.layers[better], state.slots[better].copy())
            if not len(going):
                return
            if better.any() or len(going) < len(state.layers):
                state = self._state(state.layers[going], state.slots[going], state.fails[going])

    def _state(self, layers: Ints, slots: Slots, fails: Ints | None = None) -> _State:
        costs = self._costs
        held = np.zeros((len(layers), costs.tokens.shape[2], len(costs.topology.ranks)), dtype=np.int64)
        layer, slot = np.nonzero(slots != EMPTY)
        np.add.at(held, (layer, slots[layer, slot], self._rank_of[slot]), 1)
        tokens = self._slot_tokens(slots, layers, held)
        fails = np.zeros(len(layers), dtype=np.int64) if fails is None else fails
        return _State(layers, slots.copy(), held, tokens, self._rank_loads(tokens), fails)

    def _slot_tokens(self, slots: Slots, layers: Ints, held: Ints) -> Floats:
        if self._costs.aim.splits_best:
            costs = self._costs.at(layers)
            return costs.tokens[:, np.arange(len(layers))[:, None], np.maximum(slots, 0)] * costs.shares(slots)
        rows = np.arange(len(layers))[:, None]
        counts = held.sum(axis=2)
        shares = np.where(slots == EMPTY, 0.0, 1.0 / np.maximum(counts, 1)[rows, np.maximum(slots, 0)])
        tokens = self._tokens[:, layers[:, None], np.maximum(slots, 0)]
        return tokens * shares.astype(np.float32)

    def _rank_loads(self, slot_tokens: Floats) -> Floats:
        by_rank = slot_tokens.reshape(*slot_tokens.shape[:2], -1, self._per_rank).sum(axis=3)
        loads: Floats = by_rank * self._pace
        return loads

    def _by_heat(self, state: _State) -> Ints:
        """(layers, live ranks) those first whose load matters most."""
        peak = state.loads.max(axis=2, keepdims=True)
        slope = self._power(state.loads / peak) * self._scenario_slope(state.loads)[:, :, None]
        heat = np.where(self._is_dead, -1.0, slope.sum(axis=0))
        return np.argsort(-heat, axis=1, kind="stable")[:, : self._num_live]

    def _scenario_slope(self, loads: Floats) -> Floats:
        slowest = loads.max(axis=2)
        worst = (slowest / slowest.max(axis=0)) ** (2**self._log2_power)
        risk = self._costs.aim.risk
        found: Floats = (1.0 - risk) * self._costs.parts[:, None] + risk * worst / worst.sum(axis=0)
        return found

    def _smooth(self, powers: Floats, peak: Floats) -> Floats:
        """(layers, ...) straggler seconds from (scenarios, layers, ...) sums of (load / peak)^p."""
        smooth = self._root(powers) * peak
        risk = self._costs.aim.risk
        found: Floats = smooth[0] * self._weights[0]
        for item, weight in zip(smooth[1:], self._weights[1:], strict=True):  # few, and long: faster than a reduction
            found += item * weight
        if risk > 0.0:
            top = smooth[0] if len(smooth) == 1 else np.maximum(smooth[0], smooth[1])
            for item in smooth[2:]:
                np.maximum(top, item, out=top)
            found += top * np.float32(risk * self._costs.even_s)
        return found

    def _swap(self, state: _State, step: int, is_frugal: bool) -> NDArray[np.bool_]:
        """Pair the hot half of the ranks with the other, another way each step, and make each pair's best swap."""
        num_pairs = self._num_live // 2
        rows, within = np.arange(len(state.layers)), np.arange(self._per_rank)
        if not num_pairs:
            return np.zeros(len(rows), dtype=bool)
        order = self._by_heat(state)
        hot = order[:, :num_pairs]
        cold = order[:, ::-1][:, (np.arange(num_pairs) + step) % num_pairs]
        mine, theirs = hot[:, :, None] * self._per_rank + within, cold[:, :, None] * self._per_rank + within
        gain = self._swap_gains(state, hot, cold, mine, theirs)
        best = gain.reshape(len(rows), num_pairs, -1).argmax(axis=2)
        one, two = np.divmod(best, self._per_rank)
        won = np.take_along_axis(gain.reshape(len(rows), num_pairs, -1), best[:, :, None], 2)[:, :, 0]
        if is_frugal:
            won = np.where(np.arange(num_pairs) == won.argmax(axis=1)[:, None], won, 0.0)
        chosen = np.asarray(won > self._least_gain, dtype=bool)
        layer, pair = np.nonzero(chosen)
        left, right = mine[layer, pair, one[layer, pair]], theirs[layer, pair, two[layer, pair]]
        slots = state.slots
        slots[layer, left], slots[layer, right] = slots[layer, right], slots[layer, left]
        return np.bincount(layer, minlength=len(rows)) > 0

    def _swap_gains(self, state: _State, hot: Ints, cold: Ints, mine: Ints, theirs: Ints) -> Floats:
        """(layers, pairs, slots of one, slots of the other) seconds."""
        layer = np.arange(len(hot))[:, None]
        peak = state.loads.max(axis=2)
        loads = state.loads / peak[:, :, None]
        powers = self._power(loads)
        total = powers.sum(axis=2)
        tokens = state.tokens / peak[:, :, None]
        layer3 = layer[:, :, None]
        given = tokens[:, layer3, mine][:, :, :, :, None] - tokens[:, layer3, theirs][:, :, :, None, :]
        hot_after = loads[:, layer, hot][:, :, :, None, None] - given * self._pace[hot][:, :, None, None]
        cold_after = loads[:, layer, cold][:, :, :, None, None] + given * self._pace[cold][:, :, None, None]
        rest = np.maximum(total[:, :, None] - powers[:, layer, hot] - powers[:, layer, cold], 0.0)
        after = self._power(hot_after)
        after += self._power(cold_after)
        after += rest[:, :, :, None, None]
        gain = self._smooth(total, peak)[:, None, None, None] - self._smooth(after, peak[:, :, None, None, None])
        e_mine, e_theirs = state.slots[layer3, mine][:, :, :, None], state.slots[layer3, theirs][:, :, None, :]
        layer4, hot4, cold4 = layer3[..., None], hot[:, :, None, None], cold[:, :, None, None]
        if self._has_moving:
            layers = state.layers[:, None, None, None]
            price = self._costs.moving_s
            gain += price[layers, e_mine, hot4] - price[layers, e_mine, cold4]
            gain += price[layers, e_theirs, cold4] - price[layers, e_theirs, hot4]
        if self._node_s:
            gain += self._dispatch_gains(state, (e_mine, e_theirs), self._node_of_rank[hot4], self._node_of_rank[cold4])
        forbidden = (state.held[layer4, e_mine, cold4] > 0) | (state.held[layer4, e_theirs, hot4] > 0)
        found: Floats = np.where(forbidden, -np.inf, gain)
        return found

    def _dispatch_gains(self, state: _State, experts: tuple[Ints, Ints], here: Ints, there: Ints) -> Floats:
        """Seconds: experts leave their node, and come to another."""
        copies, expected = self._copies(state), self._expected[state.layers]
        layer = np.arange(len(state.layers))[:, None, None, None]
        gain = np.zeros(())
        for expert, start, end in ((experts[0], here, there), (experts[1], there, here)):
            change = (copies[layer, expert, end] == 0).astype(np.float32) - (copies[layer, expert, start] == 1)
            gain = gain + change * expected[layer, expert]
        found: Floats = np.where(here == there, 0.0, gain * self._node_s)
        return found

    def _copies(self, state: _State) -> Ints:
        """(layers, experts, nodes)."""
        nodes = self._node_of_rank
        return np.stack([state.held[:, :, nodes == node].sum(axis=2) for node in range(int(nodes.max()) + 1)], axis=2)

    def _replace(self, state: _State) -> NDArray[np.bool_]:
        """Make the best replacement that helps the hottest rank, or the next one after failures."""
        rows = np.arange(len(state.layers))
        counts = state.held.sum(axis=2)
        hot = self._by_heat(state)[rows, state.fails % min(_RANKS_TRIED, self._num_live)]
        experts = state.slots[rows[:, None], hot[:, None] * self._per_rank + np.arange(self._per_rank)]
        peak = state.loads.max(axis=2)
        base = self._smooth(self._power(state.loads / peak[:, :, None]).sum(axis=2), peak)
        targets, removed = self._least_missed(state, counts, peak)
        if not targets.shape[1]:
            return np.zeros(len(rows), dtype=bool)
        # (scenarios, layers, targets, experts, ranks)
        layer, old = rows[:, None], np.maximum(state.slots[rows[:, None], targets], 0)
        at = self._rank_of[targets]
        relief, added = self._relief(state, counts, hot, experts, removed, at)
        loads = removed[:, :, :, None, :] - relief
        spot = np.broadcast_to(at[None, :, :, None, None], (*added.shape, 1))
        np.put_along_axis(loads, spot, np.take_along_axis(loads, spot, 4) + added[..., None], 4)
        powers = self._power(np.maximum(loads, 0.0) / peak[:, :, None, None, None]).sum(axis=4)
        gain = base[:, None, None] - self._smooth(powers, peak[:, :, None, None])
        if self._has_moving:
            price = self._costs.moving_s[state.layers]
            gain += price[layer, old, at][:, :, None] - price[layer[:, :, None], experts[:, None, :], at[:, :, None]]
        if self._node_s:
            gain += self._replacing_dispatch_gain(state, targets, old, experts)
        is_redundant = (counts[layer, old] > 1) & (state.slots[layer, targets] != EMPTY)
        forbidden = state.held[layer[:, :, None], experts[:, None, :], at[:, :, None]] > 0
        gain = np.where(forbidden | ~is_redundant[:, :, None], -np.inf, gain)
        best = gain.reshape(len(rows), -1).argmax(axis=1)
        target, expert = np.divmod(best, gain.shape[2])
        better: NDArray[np.bool_] = gain[rows, target, expert] > self._least_gain
        state.slots[rows[better], targets[rows, target][better]] = experts[rows, expert][better]
        return better

    def _relief(
        self, state: _State, counts: Ints, hot: Ints, experts: Ints, removed: Floats, at: Ints
    ) -> tuple[Floats, Floats]:
        """What one more replica takes off the ranks (scenarios, layers, targets, experts, ranks), and adds to its own.

        Split equally, from all holders alike. Split best, so much from the hot rank that both end level.
        """
        rows = np.arange(len(hot))
        if not self._costs.aim.splits_best:
            layer = rows[:, None]
            weight = self._tokens[:, state.layers[:, None], experts]
            count, held = counts[layer, experts], state.held[layer, experts]
            relief = (weight / count - weight / (count + 1))[:, :, :, None] * held * self._pace
            return relief[:, :, None, :, :], (weight / (count + 1))[:, :, None, :] * self._pace[at][:, :, None]
        own = hot[:, None] * self._per_rank + np.arange(self._per_rank)
        tokens = state.tokens[:, rows[:, None], own][:, :, None, :]
        hots = np.broadcast_to(hot[None, :, None, None], (len(tokens), *at.shape, 1))
        ats = np.broadcast_to(at[None, :, :, None], (len(tokens), *at.shape, 1))
        above = np.take_along_axis(removed, hots, 3) - np.take_along_axis(removed, ats, 3)
        pace_hot, pace_at = self._pace[hot][:, None, None], self._pace[at][:, :, None]
        taken = np.clip(above / (pace_hot + pace_at), 0.0, tokens)
        relief = np.zeros((*taken.shape, removed.shape[3]))
        spot = np.broadcast_to(hot[None, :, None, None, None], (*taken.shape, 1))
        np.put_along_axis(relief, spot, (taken * pace_hot)[..., None], 4)
        return relief, taken * pace_at

    def _replacing_dispatch_gain(self, state: _State, targets: Ints, old: Ints, experts: Ints) -> Floats:
        """(layers, targets, experts)."""
        copies, expected = self._copies(state), self._expected[state.layers]
        layer = np.arange(len(targets))[:, None]
        node = self._node_of_rank[self._rank_of[targets]]
        loses = np.where(copies[layer, old, node] == 1, expected[layer, old], 0.0)[:, :, None]
        is_new = copies[layer[:, :, None], experts[:, None, :], node[:, :, None]] == 0
        found: Floats = (np.where(is_new, expected[layer, experts][:, None, :], 0.0) - loses) * self._node_s
        return found

    def _least_missed(self, state: _State, counts: Ints, peak: Floats) -> tuple[Ints, Floats]:
        """(layers, targets) slots whose expert has others, and the ranks' loads (scenarios, layers, targets, ranks)
        without them."""
        rows = np.arange(len(state.layers))[:, None]
        expert = np.maximum(state.slots, 0)
        spare = (counts[rows, expert] > 1) & (state.slots != EMPTY)
        most = int(spare.sum(axis=1).max(initial=0))
        slots = np.argsort(~spare, axis=1, kind="stable")[:, :most]
        old = expert[rows, slots]
        count = np.maximum(counts[rows, old], 2)
        at = self._rank_of[slots]
        tokens = state.tokens[:, rows, slots]
        others = np.maximum(state.held[rows, old] - (np.arange(self._num_ranks) == at[:, :, None]), 0)
        loads = state.loads[:, :, None, :] + (tokens / (count - 1))[:, :, :, None] * others * self._pace
        spot = np.broadcast_to(at[None, :, :, None], (*tokens.shape, 1))
        gone = (tokens * self._pace[at])[..., None]
        np.put_along_axis(loads, spot, np.take_along_axis(loads, spot, 3) - gone, 3)
        if most <= _KEPT:
            return slots, loads
        cost = self._smooth(self._power(np.maximum(loads, 0.0) / peak[:, :, None, None]).sum(axis=3), peak[:, :, None])
        cost = np.where(spare[rows, slots], cost, np.inf)
        kept = np.argsort(cost, axis=1, kind="stable")[:, :_KEPT]
        return slots[rows, kept], np.take_along_axis(loads, kept[None, :, :, None], axis=2)

    def _power(self, values: Floats) -> Floats:
        """To the power p, by squaring."""
        found = values * values
        for _ in range(self._log2_power - 1):
            np.multiply(found, found, out=found)
        return found

    def _root(self, values: Floats) -> Floats:
        found = np.sqrt(values)
        for _ in range(self._log2_power - 1):
            np.sqrt(found, out=found)
        return found
