"""Shares against the bound of every set of experts."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.placement.objective import rank_loads
from controlplane.placement.split import Pairs, fast_shares, optimal_shares, prefix_bound, robust_shares, split_bound
from controlplane.placement.types import Placement, Scenario, Shares, Tokens, Topology, check_placement
from tests.placement_cases import cases, held_by_rank, loads


def bound_of_sets(placement: Placement, topology: Topology, tokens: Tokens) -> list[float]:
    """By layer: the most, over sets of experts, of their tokens over the speed of all ranks that hold one of them."""
    found = []
    for holds, load in zip(held_by_rank(placement) > 0, tokens, strict=True):
        experts = range(placement.num_experts)
        sets = [list(one) for size in range(1, len(load) + 1) for one in combinations(experts, size)]
        found.append(max(load[one].sum() / topology.speeds[holds[:, one].any(axis=1)].sum() for one in sets))
    return found


def slowest(placement: Placement, topology: Topology, tokens: Tokens, shares: Shares | None) -> Tokens:
    found: Tokens = rank_loads(replace(placement, shares=shares), topology, tokens).max(axis=1)
    return found


@given(cases())
def test_the_optimum_is_the_bound_of_the_worst_set(case: tuple[Placement, Topology, Tokens]) -> None:
    placement, topology, tokens = case
    shares = optimal_shares(placement, topology, tokens)
    check_placement(replace(placement, shares=shares), topology)
    best = pytest.approx(bound_of_sets(placement, topology, tokens), rel=1e-6)
    assert slowest(placement, topology, tokens, shares) == best
    assert split_bound(placement, topology, tokens) == best


@given(cases(max_ranks=5))
def test_fast_is_between_equal_and_optimal(case: tuple[Placement, Topology, Tokens]) -> None:
    placement, topology, tokens = case
    shares = fast_shares(placement, topology, tokens)
    check_placement(replace(placement, shares=shares), topology)
    fast, equal = slowest(placement, topology, tokens, shares), slowest(placement, topology, tokens, None)
    assert (fast <= equal * (1.0 + 1e-12)).all()
    assert (fast <= np.array(bound_of_sets(placement, topology, tokens)) * 1.01).all()


@given(cases(), st.data())
def test_the_bound_of_prefixes_holds(case: tuple[Placement, Topology, Tokens], data: st.DataObject) -> None:
    """Whatever the order of ranks is."""
    placement, topology, tokens = case
    ranks = len(topology.ranks)
    order = np.array([data.draw(st.lists(st.integers(0, 5), min_size=ranks, max_size=ranks)) for _ in tokens])
    bounds = prefix_bound(placement, topology, tokens, order * (topology.speeds > 0.0))
    assert (bounds <= np.array(bound_of_sets(placement, topology, tokens)) * (1.0 + 1e-12)).all()


@given(cases(), st.data())
def test_slots_come_back_from_pairs(case: tuple[Placement, Topology, Tokens], data: st.DataObject) -> None:
    placement, topology, _ = case
    pairs = Pairs.of(placement, len(topology.ranks))
    held = held_by_rank(placement)
    assert np.array_equal(
        np.argwhere(held.transpose(0, 2, 1)), np.column_stack((pairs.layer, pairs.expert, pairs.rank))
    )
    assert np.array_equal(pairs.num_slots, held[pairs.layer, pairs.rank, pairs.expert])


@settings(max_examples=50)
@given(cases(), st.data(), st.integers(1, 3))
def test_no_shares_are_better_in_the_worst_load(
    case: tuple[Placement, Topology, Tokens], data: st.DataObject, more: int
) -> None:
    placement, topology, tokens = case
    several = [tokens, *(data.draw(loads(*tokens.shape)) for _ in range(more))]
    robust = robust_shares(placement, topology, [Scenario(str(at), load) for at, load in enumerate(several)])
    check_placement(replace(placement, shares=robust), topology)

    def worst(shares: Shares | None) -> Tokens:
        by_load = [slowest(placement, topology, load, shares) / load.sum(axis=1) for load in several]
        found: Tokens = np.max(by_load, axis=0)
        return found

    for other in (None, *(optimal_shares(placement, topology, load) for load in several)):
        assert (worst(robust) <= worst(other) * (1.0 + 1e-6)).all()
    bounds = [split_bound(placement, topology, load) / load.sum(axis=1) for load in several]
    assert (worst(robust) >= np.max(bounds, axis=0) * (1.0 - 1e-6)).all()
