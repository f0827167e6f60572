"""Ranks, loads and placements: what is refused, and what a placement costs."""

from dataclasses import replace

import numpy as np
import pytest

from controlplane.placement.eplb import eplb_global, linear
from controlplane.placement.objective import (
    balancedness,
    dispatch_share,
    equal_shares,
    even_loads,
    moved_slots,
    rank_loads,
)
from controlplane.placement.types import (
    EMPTY,
    Placement,
    PlacementError,
    Rank,
    Scenario,
    Topology,
    check_placement,
    check_room,
    check_tokens,
    scenario_tokens,
)
from tests.placement_cases import domains, placed

TWO = Topology.even(2, 2, 2)
DEAD = Topology((Rank(0), Rank(0, is_alive=False), Rank(1, speed=2.0)), 2)


def test_ranks_are_counted_with_dead_ones_and_used_without() -> None:
    assert DEAD.num_slots == 6
    assert DEAD.live_ranks.tolist() == [0, 2]
    assert DEAD.live_slots.tolist() == [0, 1, 4, 5]
    assert DEAD.speeds.tolist() == [1.0, 0.0, 2.0]
    assert DEAD.nodes.tolist() == [0, 0, 1]
    assert Topology.even(2, 4, 1).nodes.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("ranks", "slots_per_rank", "message"),
    [
        ((Rank(0),), 0, "slots_per_rank is 0: a rank has at least one slot"),
        ((), 1, "no rank is alive"),
        ((Rank(0, is_alive=False),), 1, "no rank is alive"),
        ((Rank(0), Rank(0, speed=0.0)), 1, "rank 1: speed is 0.0, allowed is above 0"),
        ((Rank(0, speed=float("nan")),), 1, "rank 0: speed is nan, allowed is above 0"),
    ],
)
def test_ranks_without_a_meaning_are_an_error(ranks: tuple[Rank, ...], slots_per_rank: int, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        Topology(ranks, slots_per_rank)


@pytest.mark.parametrize(("num_nodes", "num_ranks"), [(0, 4), (1, 0), (3, 4)])
def test_ranks_divide_over_nodes(num_nodes: int, num_ranks: int) -> None:
    with pytest.raises(PlacementError, match=f"{num_ranks} ranks do not divide over {num_nodes} nodes"):
        Topology.even(num_nodes, num_ranks, 1)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1.0, 2.0], r"load: shape \(2,\), expected \(layers, experts\)"),
        ([[]], r"load: shape \(1, 0\), expected"),
        ([[1.0, 2.0], [3.0, np.inf]], "load: layer 1: expert 1 has load inf, not a finite number"),
        ([[1.0, -0.5]], "load: layer 0: expert 1 has load -0.5, below 0"),
        ([[1.0, 2e18]], "load: layer 0: expert 1 has load 2e.18, above 1e.18"),
        ([[1.0], [0.0]], "load: layer 1: all experts have load 0"),
    ],
)
def test_loads_that_no_plan_can_be_made_from_are_an_error(tokens: list[list[float]], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        check_tokens(np.array(tokens))


def test_scenarios_are_checked_and_scaled() -> None:
    one, other = Scenario("one", np.array([[1.0, 3.0]])), Scenario("other", np.array([[30.0, 10.0]]))
    assert scenario_tokens([one, other]).tolist() == [[[0.25, 0.75]], [[0.75, 0.25]]]
    with pytest.raises(PlacementError, match="no load to plan for"):
        scenario_tokens([])
    with pytest.raises(PlacementError, match=r"bad: shape \(1, 1\), the other loads have \(1, 2\)"):
        scenario_tokens([one, Scenario("bad", np.array([[1.0]]))])
    with pytest.raises(PlacementError, match="bad: layer 0"):
        Scenario("bad", np.array([[0.0]]))


def test_room_is_that_of_live_ranks() -> None:
    check_room(4, DEAD)
    with pytest.raises(PlacementError, match="5 experts need as many slots, 2 of 3 ranks alive with 2 each have 4"):
        check_room(5, DEAD)


@pytest.mark.parametrize(
    ("slots", "num_experts", "message"),
    [
        ([[0, 1, 2]], 3, r"a plan of shape \(1, 3\), expected \(layers, 6 slots\)"),
        ([[0, 1, -1, -1, 2, 3]], 3, "layer 0: every slot of a live rank holds one of 3 experts"),
        ([[0, 1, -1, -1, 2, -1]], 3, "layer 0: every slot of a live rank holds one of 3 experts"),
        ([[0, 1, 2, -1, 2, 2]], 3, "layer 0: a dead rank holds nothing"),
        ([[0, 1, -1, -1, 2, 2], [0, 1, -1, -1, 1, 1]], 3, "layer 1: expert 2 has no slot"),
    ],
)
def test_what_is_no_placement_is_an_error(slots: list[list[int]], num_experts: int, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        check_placement(placed(slots, num_experts, 2), DEAD)


def test_a_placement_for_other_slots_or_with_wrong_shares_is_an_error() -> None:
    good = placed([[0, 1, 1, 2]], 3, 2)
    check_placement(good, TWO)
    with pytest.raises(PlacementError, match="a plan for 4 slots a rank, not 2"):
        check_placement(Placement(good.slots, 3, 4), TWO)
    with pytest.raises(PlacementError, match="layer 0: the shares of expert 1 do not add up to 1"):
        check_placement(replace(good, shares=np.array([[1.0, 0.5, 0.4, 1.0]])), TWO)
    for bad in (np.ones((1, 3)), np.array([[1.0, 1.5, -0.5, 1.0]]), np.full((1, 4), np.nan)):
        with pytest.raises(PlacementError, match="shares of shape"):
            check_placement(replace(good, shares=bad), TWO)


def test_equal_shares_are_over_all_slots_of_an_expert() -> None:
    slots = np.array([[0, 0, EMPTY, EMPTY, 0, 1]])
    assert equal_shares(slots, 2) == pytest.approx(np.array([[1 / 3, 1 / 3, 0, 0, 1 / 3, 1]]))


def test_loads_are_over_speeds() -> None:
    placement = placed([[0, 1, EMPTY, EMPTY, 1, 2]], 3, 2)
    tokens = np.array([[3.0, 4.0, 6.0]])
    assert rank_loads(placement, DEAD, tokens).tolist() == [[5.0, 0.0, 4.0]]
    assert even_loads(DEAD, tokens) == pytest.approx([13 / 3])
    assert balancedness(placement, DEAD, tokens) == pytest.approx([13 / 15])
    shared = replace(placement, shares=np.array([[1.0, 0.25, 0.0, 0.0, 0.75, 1.0]]))
    assert rank_loads(shared, DEAD, tokens).tolist() == [[4.0, 0.0, 4.5]]


def test_tokens_cross_nodes_where_there_is_no_copy() -> None:
    tokens = np.array([[6.0, 2.0, 2.0]])
    assert dispatch_share(placed([[0, 1, 0, 2]], 3, 2), TWO, tokens) == pytest.approx([0.2])
    assert dispatch_share(placed([[0, 1, 2, 1]], 3, 2), TWO, tokens) == pytest.approx([0.4])
    assert dispatch_share(placed([[0, 1, 0, 2]], 3, 2), Topology.even(1, 2, 2), tokens) == [0.0]


def test_a_swap_within_a_rank_moves_nothing() -> None:
    old = placed([[0, 1, EMPTY, EMPTY, 1, 2]], 3, 2)
    assert not moved_slots(placed([[1, 0, EMPTY, EMPTY, 2, 1]], 3, 2), old).any()
    assert moved_slots(placed([[0, 2, EMPTY, EMPTY, 1, 0]], 3, 2), old).tolist() == [
        [False, True, False, False, False, True]
    ]


def test_planning_for_a_domain_evens_it_out_and_not_another() -> None:
    topology = Topology.even(1, 8, 9)
    loads = domains()
    linear_found = [balancedness(linear(3, 64, topology), topology, tokens).mean() for tokens in loads.values()]
    same: list[float] = []
    other: list[float] = []
    for planned in loads.values():
        placement = eplb_global(planned, topology)
        for served in loads.values():
            (same if served is planned else other).append(balancedness(placement, topology, served).mean())
    assert np.mean(linear_found) < 0.8
    assert np.mean(same) > 0.97
    assert np.mean(other) < 0.8
