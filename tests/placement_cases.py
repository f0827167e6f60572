"""Loads, ranks and placements for tests of expert placement."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from controlplane.placement.types import EMPTY, Placement, Rank, Scenario, Tokens, Topology

# The example of DeepSeek's EPLB (deepseek-ai/EPLB @ d52c72d, README.md, MIT): 4 groups, 2 nodes, 8 ranks, 16 slots.
EPLB_TOKENS = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    dtype=np.float64,
)
EPLB_SLOTS = np.array(
    [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
)
EPLB_TOPOLOGY = Topology.even(2, 8, 2)


def domains(seed: int = 1, num_layers: int = 3, num_experts: int = 64) -> dict[str, Tokens]:
    """Loads of four kinds of text in one model: experts that all of them like, and each its own.

    As skewed, and as far apart, as those published of OLMoE-1B-7B: balancedness of 0.7 on 8 ranks as they come, and 0.7
    where EPLB planned for another domain.
    """
    rng = np.random.default_rng(seed)
    liked = rng.lognormal(0.0, 0.35, (num_layers, num_experts))
    found = {}
    for name in ("chat", "code", "law", "prose"):
        shares = liked * rng.lognormal(0.0, 0.65, liked.shape)
        found[name] = np.rint(1.6e6 * shares / shares.sum(axis=1, keepdims=True))
    return found


def domain_loads(seed: int = 1) -> list[Scenario]:
    """`domains` as scenarios."""
    return [Scenario(name, load) for name, load in domains(seed).items()]


def skewed(seed: int, num_layers: int = 58, num_experts: int = 256, concentration: float = 0.5) -> Tokens:
    """Loads of DeepSeek-V3's shape: shares of a Dirichlet distribution."""
    shares = np.random.default_rng(seed).dirichlet(np.full(num_experts, concentration), num_layers)
    return shares * 1e6 + 1.0


def placed(slots: list[list[int]], num_experts: int, slots_per_rank: int) -> Placement:
    """A placement by its slots."""
    return Placement(np.array(slots, dtype=np.int64), num_experts, slots_per_rank)


@st.composite
def topologies(draw: st.DrawFn, *, max_ranks: int = 4, max_slots_per_rank: int = 3) -> Topology:
    """A few ranks of several speeds and nodes, some dead."""
    ranks = draw(
        st.lists(
            st.builds(Rank, st.integers(0, 1), st.sampled_from((1.0, 0.5, 2.0)), st.booleans()),
            min_size=1,
            max_size=max_ranks,
        ).filter(lambda ranks: any(rank.is_alive for rank in ranks))
    )
    return Topology(tuple(ranks), draw(st.integers(1, max_slots_per_rank)))


@st.composite
def loads(draw: st.DrawFn, num_layers: int, num_experts: int, most: int = 40) -> Tokens:
    """Whole tokens, some experts idle, no layer."""
    row = st.lists(st.integers(0, most), min_size=num_experts, max_size=num_experts).filter(any)
    return np.array(draw(st.lists(row, min_size=num_layers, max_size=num_layers)), dtype=np.float64)


@st.composite
def placements(draw: st.DrawFn, num_layers: int, num_experts: int, topology: Topology) -> Placement:
    """Any that is allowed."""
    live = topology.live_slots
    slots = np.full((num_layers, topology.num_slots), EMPTY, dtype=np.int64)
    for row in slots:
        more = draw(
            st.lists(
                st.integers(0, num_experts - 1), min_size=len(live) - num_experts, max_size=len(live) - num_experts
            )
        )
        row[live] = draw(st.permutations([*range(num_experts), *more]))
    return Placement(slots, num_experts, topology.slots_per_rank)


@st.composite
def cases(draw: st.DrawFn, *, max_ranks: int = 4) -> tuple[Placement, Topology, Tokens]:
    """A placement, its ranks and a load."""
    topology = draw(topologies(max_ranks=max_ranks))
    num_layers, num_experts = draw(st.integers(1, 2)), draw(st.integers(1, len(topology.live_slots)))
    placement = draw(placements(num_layers, num_experts, topology))
    return placement, topology, draw(loads(num_layers, num_experts))


def held_by_rank(placement: Placement) -> NDArray[np.int64]:
    """(layers, ranks, experts) slots of each rank that hold each expert."""
    by_rank = placement.slots.reshape(placement.num_layers, -1, placement.slots_per_rank)
    held: NDArray[np.int64] = (by_rank[..., None] == np.arange(placement.num_experts)).sum(axis=2)
    return held
