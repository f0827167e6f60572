"""The placements that engines make themselves."""

from dataclasses import replace

import numpy as np
import pytest

from controlplane.placement.eplb import eplb_global, eplb_hierarchical, keep_places, linear, pack
from controlplane.placement.objective import balancedness, moved_slots, rank_loads
from controlplane.placement.types import EMPTY, PlacementError, Rank, Topology, check_placement
from tests.placement_cases import EPLB_SLOTS, EPLB_TOKENS, EPLB_TOPOLOGY, placed, skewed

ONE_DEAD = Topology((Rank(0), Rank(0, is_alive=False), Rank(1), Rank(1)), 2)


def test_the_published_example_slot_by_slot() -> None:
    found = eplb_hierarchical(EPLB_TOKENS, EPLB_TOPOLOGY, 4)
    assert np.array_equal(found.slots, EPLB_SLOTS)
    assert balancedness(found, EPLB_TOPOLOGY, EPLB_TOKENS) == pytest.approx([0.828, 0.805], abs=5e-4)


def test_the_published_example_without_regard_to_nodes() -> None:
    found = eplb_global(EPLB_TOKENS, EPLB_TOPOLOGY)
    assert balancedness(found, EPLB_TOPOLOGY, EPLB_TOKENS) == pytest.approx([0.932, 0.840], abs=5e-4)


def test_linear_is_what_vllm_starts_with() -> None:
    """list(range(experts)) + [i % experts for i in range(redundant)]."""
    found = linear(2, 5, Topology.even(1, 4, 3))
    assert found.slots.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]] * 2


def test_linear_passes_over_dead_ranks() -> None:
    assert linear(1, 5, ONE_DEAD).slots.tolist() == [[0, 1, EMPTY, EMPTY, 2, 3, 4, 0]]


def test_groups_stay_on_a_node() -> None:
    tokens = skewed(3, num_layers=6, num_experts=32)
    topology = Topology.even(4, 8, 5)
    slots = eplb_hierarchical(tokens, topology, 8).slots.reshape(6, 4, 10)
    for layer in slots:
        groups_of_node = [set((node // 4).tolist()) for node in layer]
        assert [len(groups) for groups in groups_of_node] == [2] * 4
        assert set().union(*groups_of_node) == set(range(8))


def test_ranks_of_a_node_need_not_follow_each_other() -> None:
    topology = Topology((Rank(0), Rank(1), Rank(0), Rank(1)), 2)
    tokens = np.array([[9.0, 8.0, 1.0, 1.0]])
    found = eplb_hierarchical(tokens, topology, 2)
    nodes = [
        {int(expert) for slot, expert in enumerate(found.slots[0]) if slot // 2 in ranks} for ranks in ((0, 2), (1, 3))
    ]
    assert nodes == [{0, 1}, {2, 3}]


def test_a_node_without_any_load_is_placed_all_the_same() -> None:
    topology = Topology.even(2, 4, 2)
    tokens = np.array([[5.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = eplb_hierarchical(tokens, topology, 2)
    check_placement(found, topology)


@pytest.mark.parametrize("num_groups", [3, 4])
def test_where_nodes_differ_or_groups_do_not_divide_it_is_the_global_one(num_groups: int) -> None:
    tokens = skewed(4, num_layers=2, num_experts=12)
    topology = Topology.even(2, 8, 2)
    if num_groups == 4:
        topology = Topology((*topology.ranks[:-1], Rank(1, is_alive=False)), 2)
    assert np.array_equal(eplb_hierarchical(tokens, topology, num_groups).slots, eplb_global(tokens, topology).slots)


def test_dead_ranks_hold_nothing_and_the_others_everything() -> None:
    tokens = np.array([[9.0, 3.0, 2.0, 1.0]])
    found = eplb_global(tokens, ONE_DEAD)
    check_placement(found, ONE_DEAD)
    assert found.replica_counts.tolist() == [[3, 1, 1, 1]]


def test_a_dead_node_leaves_the_others_hierarchical() -> None:
    ranks = tuple(Rank(number // 2, is_alive=number < 4) for number in range(6))
    topology = Topology(ranks, 2)
    found = eplb_hierarchical(skewed(5, 3, 8), topology, 4)
    check_placement(found, topology)
    for layer in found.slots[:, :8].reshape(3, 2, 4):
        assert not set((layer[0] // 2).tolist()) & set((layer[1] // 2).tolist())


def test_what_cannot_be_placed_is_an_error() -> None:
    tokens = skewed(6, 1, 8)
    with pytest.raises(PlacementError, match="8 experts do not divide into 3 groups"):
        eplb_hierarchical(tokens, Topology.even(1, 4, 2), 3)
    with pytest.raises(PlacementError, match="8 experts need as many slots, 3 of 4 ranks alive with 2 each have 6"):
        eplb_global(tokens, ONE_DEAD)


def test_packing_takes_the_heaviest_first_into_the_lightest_with_room() -> None:
    packs, places = pack(np.array([[1.0, 9.0, 4.0, 6.0]]), 2)
    assert packs.tolist() == [[0, 0, 1, 1]]
    assert places.tolist() == [[1, 0, 1, 0]]
    assert pack(np.array([[1.0, 9.0]]), 2)[0].tolist() == [[0, 1]]  # one item a pack: as they come


def test_what_stays_on_its_rank_keeps_its_slot() -> None:
    old = placed([[0, 1, 2, 3, 4, 5]], 6, 3)
    new = placed([[2, 5, 0, 4, 1, 3]], 6, 3)
    kept = keep_places(new, old)
    assert kept.slots.tolist() == [[0, 5, 2, 3, 4, 1]]
    assert moved_slots(kept, old).sum() == 2


def test_shares_go_with_their_slots() -> None:
    topology = Topology.even(1, 2, 2)
    old = placed([[0, 1, 2, 0]], 3, 2)
    new = replace(placed([[1, 0, 0, 2]], 3, 2), shares=np.array([[1.0, 0.75, 0.25, 1.0]]))
    kept = keep_places(new, old)
    assert kept.slots.tolist() == [[0, 1, 2, 0]]
    assert kept.shares is not None
    assert kept.shares.tolist() == [[0.75, 1.0, 1.0, 0.25]]
    tokens = np.array([[8.0, 4.0, 2.0]])
    assert np.array_equal(rank_loads(kept, topology, tokens), rank_loads(new, topology, tokens))


def test_places_of_other_ranks_tell_nothing() -> None:
    new = placed([[1, 0, 0, 1]], 2, 2)
    assert keep_places(new, placed([[0, 1, 1, 0, 0, 1]], 2, 2)) is new
    assert keep_places(new, placed([[0, 1, 1, 0]], 2, 4)) is new


def test_a_large_model() -> None:
    tokens, topology = skewed(7), Topology.even(4, 32, 9)
    found, grouped = eplb_global(tokens, topology), eplb_hierarchical(tokens, topology, 8)
    for placement in (found, grouped):
        check_placement(placement, topology)
    means = [balancedness(one, topology, tokens).mean() for one in (linear(58, 256, topology), grouped, found)]
    assert means == sorted(means)
    assert means[2] > 0.99
