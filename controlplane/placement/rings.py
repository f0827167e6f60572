"""A placement for a load that is like none seen: no made-up load decides it, so it fits none by chance. Pure.

Which expert will be busy is hardly known, so little is left to choose; two things serve any load alike.

Links. An expert on two ranks can take load off one of them and put it on the other. Ranks linked in one closed ring,
each to the next, pass load on all the way round: nearly what was reached if every expert were on every rank (the long
chain: Jordan, Graves 1995). So of the redundant slots each as many as there are ranks make a ring, the first to the
next rank, any further one so many ranks on that ranks come nearest to each other. The experts with two ranks are those
of which most is expected.

Samples. What an expert will get is unknown, but experts that were alike in all loads seen will be alike in the next. So
each rank is a fair sample of all experts, by what they got in the loads seen: then it gets its part of whatever depends
on that smoothly. With s_e an expert's loads, each load with mean 0 and deviation 1 over the experts, and x_er the part
of expert e that is on rank r, 1/2 where it has two ranks, the energy distance between a rank's sample and all experts
(Szekely, Rizzo 2013; it needs no scale), summed over the ranks, is but for a factor

    sum_r x_r' K x_r        K = -|s_e - s_f|, its rows and columns centred

It is also the expected square of what ranks are above the mean, if the next load is a Gaussian process with covariance
K: the limit of infinitely many loads made up. Experts are placed one by one, each where it makes that least, and then
swapped in pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import EMPTY, Slots, Tokens, Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SWEEPS = 2  # over all experts; a third finds next to nothing
_LEAST_GAIN = 1e-9


def rings(seen: Floats, expected: Tokens, topology: Topology) -> Slots | None:
    """A plan from loads seen (loads, layers, experts). `expected` (layers, experts) says which experts to link.

    Neighbours in a ring are on different nodes, so that fewer tokens have to cross. None for ranks of unequal speed, of
    which none is to be like the other, and where an expert would need more than two slots.
    """
    live = topology.live_ranks
    nodes = topology.nodes[live]
    number_on_node = np.array([int((nodes[:number] == node).sum()) for number, node in enumerate(nodes)])
    order = live[np.lexsort((nodes, number_on_node))]
    num_links = len(topology.live_slots) - seen.shape[2]
    pairs = links(len(live), num_links)
    degree = np.bincount(pairs.ravel(), minlength=len(live))
    is_even = len(set(topology.speeds[live])) == 1
    if not is_even or num_links > seen.shape[2] or len(pairs) < num_links or degree.max() > topology.slots_per_rank:
        return None
    kernel = _kernel(seen)
    by_load = np.argsort(-expected, axis=1, kind="stable")
    rank_of = _Samples.of(kernel, by_load, pairs, topology.slots_per_rank - degree).rank_of
    return _slots(by_load[:, :num_links], rank_of, pairs, order, topology)


def links(num_ranks: int, num_links: int) -> Ints:
    """(links, 2) places in the ring. No two of one rank; none at all with one rank."""
    found: list[tuple[int, int]] = []
    steps = _steps(num_ranks, -(-num_links // num_ranks))
    for number, step in enumerate(steps):
        left = min(num_ranks, num_links - number * num_ranks)
        # Along the ring, which is several if the step divides the ranks: a part of it is spread over all.
        along = [start + at * step for start in range(np.gcd(step, num_ranks)) for at in range(num_ranks)]
        along = list(dict.fromkeys(place % num_ranks for place in along))
        found += [
            (along[at * num_ranks // left], (along[at * num_ranks // left] + step) % num_ranks) for at in range(left)
        ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _steps(num_ranks: int, num_rings: int) -> list[int]:
    """Of each ring from a rank to its next. All steps in turn once they are used up."""
    found: list[int] = []
    possible = list(range(1, num_ranks // 2 + 1))
    while possible and len(found) < num_rings:
        left = [step for step in possible if step not in found]
        found += (
            found[: num_rings - len(found)]
            if not left
            else [min(left, key=lambda step: _far(num_ranks, [*found, step]))]
        )
    return found


def _far(num_ranks: int, steps: list[int]) -> int:
    """Links from one rank to each of the others, added up; as many as there are ranks to one out of reach."""
    distance, reached, far = 0, {0}, 0
    edge = reached
    while edge:
        distance += 1
        edge = {(place + sign * step) % num_ranks for place in edge for step in steps for sign in (1, -1)} - reached
        reached = reached | edge
        far += distance * len(edge)
    return far + num_ranks * (num_ranks - len(reached))


def _kernel(seen: Floats) -> Floats:
    """(layers, experts, experts)."""
    deviation = seen.std(axis=2, keepdims=True)
    scaled = (seen - seen.mean(axis=2, keepdims=True)) / np.where(deviation > 0.0, deviation, 1.0)
    products = np.einsum("kle,klf->lef", scaled, scaled)
    squares = np.einsum("lee->le", products)
    found: Floats = -np.sqrt(np.maximum(squares[:, :, None] + squares[:, None, :] - 2.0 * products, 0.0))
    found -= found.mean(axis=1, keepdims=True)
    found -= found.mean(axis=2, keepdims=True)
    return found


@dataclass(slots=True)
class _Samples:
    """Experts of one rank on ranks, layer by layer."""

    kernel: Floats
    rank_of: Ints  # (layers, experts); -1 if linked, or not placed yet
    pull: Floats  # (layers, ranks, experts) K x_r

    @classmethod
    def of(cls, kernel: Floats, by_load: Ints, pairs: Ints, room: Ints) -> "_Samples":
        """The first experts take the links, the others the room."""
        num_layers, num_experts = by_load.shape
        rows = np.arange(num_layers)
        pull = np.zeros((num_layers, len(room), num_experts))
        for number, pair in enumerate(pairs):
            pull[:, pair] += 0.5 * kernel[rows, by_load[:, number]][:, None, :]
        found = cls(kernel, np.full((num_layers, num_experts), -1), pull)
        left = np.tile(room, (num_layers, 1))
        for expert in by_load[:, len(pairs) :].T:
            rank = np.where(left > 0, pull[rows, :, expert], np.inf).argmin(axis=1)
            found.rank_of[rows, expert] = rank
            left[rows, rank] -= 1
            pull[rows, rank] += kernel[rows, expert]
        for expert in np.tile(by_load[:, len(pairs) :], _SWEEPS).T:
            found._swap(expert)
        return found

    def _swap(self, expert: Ints) -> None:
        """One expert a layer for the one of another rank with which that helps most."""
        kernel, pull, rank_of = self.kernel, self.pull, self.rank_of
        rows = np.arange(len(rank_of))
        here, column = rank_of[rows, expert], expert[:, None]
        there, everyone = np.maximum(rank_of, 0), np.arange(rank_of.shape[1])
        mine, own = pull[rows, here], kernel[rows, expert]
        gain = mine[rows, expert][:, None] + pull[rows[:, None], there, everyone] - mine
        gain -= pull[rows[:, None], there, column]
        gain -= own[rows, expert][:, None] + np.einsum("lee->le", kernel) - 2.0 * own
        gain = np.where((rank_of < 0) | (rank_of == here[:, None]), 0.0, gain)
        other = gain.argmax(axis=1)
        at = np.flatnonzero(gain[rows, other] > _LEAST_GAIN)
        one, two = expert[at], other[at]
        change = kernel[at, two] - kernel[at, one]
        pull[at, here[at]] += change
        pull[at, rank_of[at, two]] -= change
        rank_of[at, one], rank_of[at, two] = rank_of[at, two], here[at]


def _slots(linked: Ints, rank_of: Ints, pairs: Ints, order: Ints, topology: Topology) -> Slots:
    """Experts in the slots of the ranks that stand in this order in the ring."""
    slots = np.full((len(linked), topology.num_slots), EMPTY, dtype=np.int64)
    for place, rank in enumerate(order):
        at = slice(rank * topology.slots_per_rank, (rank + 1) * topology.slots_per_rank)
        mine = linked[:, (pairs == place).any(axis=1)]
        rest = np.nonzero(rank_of == place)[1].reshape(len(linked), -1)
        slots[:, at] = np.concatenate([mine, rest], axis=1)
    return slots
