"""The plans that each layer could have, and the choice among them. Pure."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.cost import Costs
from controlplane.placement.objective import moved_slots
from controlplane.placement.types import Placement, Slots

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(slots=True)
class Offers:
    """Each layer keeps the cheapest plan it saw; if moves are bounded, all that it saw."""

    costs: Costs
    previous: Placement | None
    is_bounded: bool
    best_slots: Slots = field(init=False)
    best_s: Floats = field(init=False)
    _layers: list[Ints] = field(default_factory=list)
    _slots: list[Slots] = field(default_factory=list)
    _total_s: list[Floats] = field(default_factory=list)
    _moves: list[Ints] = field(default_factory=list)
    _is_whole: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        num_layers = self.costs.tokens.shape[1]
        self.best_slots = np.zeros((num_layers, self.costs.topology.num_slots), dtype=np.int64)
        self.best_s = np.full(num_layers, np.inf)

    def add(self, layers: Ints, slots: Slots) -> None:
        """Offer these layers a plan each."""
        total_s = self.costs.at(layers).terms(slots).total_s
        better = np.flatnonzero(total_s < self.best_s[layers])
        self.best_s[layers[better]] = total_s[better]
        self.best_slots[layers[better]] = slots[better]
        if self.is_bounded:
            self._layers.append(layers)
            self._slots.append(slots)
            self._total_s.append(total_s)
            self._moves.append(self.moves(layers, slots))
            self._is_whole.append(len(layers) == len(self.best_s))

    def moves(self, layers: Ints, slots: Slots) -> Ints:
        """(layers,) slots that the previous plan does not hold there."""
        if self.previous is None:
            return np.zeros(len(layers), dtype=np.int64)
        of = self.previous.num_experts, self.previous.slots_per_rank
        moved: Ints = moved_slots(Placement(slots, *of), Placement(self.previous.slots[layers], *of)).sum(axis=1)
        return moved

    def within(self, max_moves: int) -> Slots:
        """The best choice found that moves no more slots, or no more than the first offer, which all layers have."""
        layer, moves = np.concatenate(self._layers), np.concatenate(self._moves)
        total_s = np.concatenate(self._total_s)
        num_layers = len(self.best_s)
        chosen = np.arange(num_layers)  # the first offer
        left = max(0, max_moves - int(moves[chosen].sum()))
        chosen, left = _buy_hulls(layer, total_s, moves, chosen, left)
        chosen = _buy_rest(layer, total_s, moves, chosen, left)
        allowed = max(max_moves, int(moves[:num_layers].sum()))
        start = 0
        for rows, is_whole in zip(self._layers, self._is_whole, strict=True):
            whole = np.arange(start, start + len(rows))
            start += len(rows)
            if is_whole and moves[whole].sum() <= allowed and total_s[whole].sum() < total_s[chosen].sum():
                chosen = whole
        slots: Slots = np.concatenate(self._slots)[chosen]
        return slots


def _buy_hulls(layer: Ints, total_s: Floats, moves: Ints, chosen: Ints, left: int) -> tuple[Ints, int]:
    """Steps along each layer's convex hull of (moves, seconds), the best seconds a move first of all layers."""
    steps: list[tuple[float, int, int, int]] = []  # (-seconds a move, layer, number in it, offer)
    for number, first in enumerate(chosen):
        mine = np.flatnonzero(layer == number)
        at, count = int(first), 0
        while True:
            further = mine[(moves[mine] > moves[at]) & (total_s[mine] < total_s[at])]
            if not len(further):
                break
            rate = (total_s[at] - total_s[further]) / (moves[further] - moves[at])
            at = int(further[rate.argmax()])
            steps.append((-float(rate.max()), number, count, at))
            count += 1
    chosen = chosen.copy()
    is_stopped = np.zeros(len(chosen), dtype=bool)
    for _, number, _, offer in sorted(steps):
        more = int(moves[offer] - moves[chosen[number]])
        if is_stopped[number] or more > left:
            is_stopped[number] = True
            continue
        chosen[number] = offer
        left -= more
    return chosen, left


def _buy_rest(layer: Ints, total_s: Floats, moves: Ints, chosen: Ints, left: int) -> Ints:
    """With the moves that are left, the best single change again and again. Changes that free moves count too."""
    chosen = chosen.copy()
    while True:
        gain = total_s[chosen][layer] - total_s
        more = moves - moves[chosen][layer]
        gain = np.where(more <= left, gain, -np.inf)
        best = int(gain.argmax())
        if gain[best] <= 1e-12 * total_s[chosen].sum():
            return chosen
        left -= int(more[best])
        chosen[layer[best]] = best
