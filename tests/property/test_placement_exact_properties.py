"""Exact placements against every placement there is."""

from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.placement.exact import exact_equal, exact_split
from controlplane.placement.objective import rank_loads
from controlplane.placement.split import split_bound
from controlplane.placement.types import EMPTY, Placement, Tokens, Topology, check_placement
from tests.placement_cases import loads, topologies


def every_placement(num_experts: int, topology: Topology) -> Placement:
    """All of them, each a layer; slots of a rank in order."""
    on_rank = list(combinations_with_replacement(range(num_experts), topology.slots_per_rank))
    found = [
        [expert for held in one for expert in held]
        for one in product(on_rank, repeat=len(topology.live_ranks))
        if len({expert for held in one for expert in held}) == num_experts
    ]
    slots = np.full((len(found), topology.num_slots), EMPTY, dtype=np.int64)
    slots[:, topology.live_slots] = found
    return Placement(slots, num_experts, topology.slots_per_rank)


def repeated(tokens: Tokens, placement: Placement) -> Tokens:
    return np.repeat(tokens, placement.num_layers, axis=0)


@st.composite
def tiny(draw: st.DrawFn) -> tuple[Topology, Tokens]:
    topology = draw(topologies(max_ranks=3, max_slots_per_rank=2))
    num_experts = draw(st.integers(1, min(4, len(topology.live_slots))))
    return topology, draw(loads(1, num_experts))


@settings(max_examples=60)
@given(tiny())
def test_no_placement_is_better_with_equal_shares(case: tuple[Topology, Tokens]) -> None:
    topology, tokens = case
    every = every_placement(tokens.shape[1], topology)
    least = rank_loads(every, topology, repeated(tokens, every)).max(axis=1).min()
    best = exact_equal(tokens, topology)
    check_placement(best.placement, topology)
    assert best.stragglers == pytest.approx([least], rel=1e-5)
    assert best.gap < 1e-5


@settings(max_examples=40)
@given(tiny())
def test_no_placement_is_better_with_the_best_shares(case: tuple[Topology, Tokens]) -> None:
    topology, tokens = case
    every = every_placement(tokens.shape[1], topology)
    least = split_bound(every, topology, repeated(tokens, every)).min()
    best = exact_split(tokens, topology)
    check_placement(best.placement, topology)
    assert best.stragglers == pytest.approx([least], rel=1e-5)
    assert best.gap < 1e-5
