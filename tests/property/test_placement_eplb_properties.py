"""EPLB against its description, slot by slot, and keeping of places against counting."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controlplane.placement.eplb import eplb_global, eplb_hierarchical, keep_places, linear, pack
from controlplane.placement.objective import rank_loads
from controlplane.placement.split import fast_shares
from controlplane.placement.types import Placement, Topology, check_placement
from tests.placement_cases import held_by_rank, loads, placements, topologies


def plainly_packed(weights: list[float], num_packs: int) -> list[int]:
    """One row, item by item."""
    room = len(weights) // num_packs
    load, items, found = [0.0] * num_packs, [0] * num_packs, [0] * len(weights)
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        at = min((pack for pack in range(num_packs) if items[pack] < room), key=lambda pack: load[pack])
        found[item] = at
        load[at] += weights[item]
        items[at] += 1
    return found


@given(st.integers(1, 5), st.integers(2, 4), st.data())
def test_packs_are_those_of_the_plain_way(num_packs: int, room: int, data: st.DataObject) -> None:
    weights = data.draw(loads(3, num_packs * room))
    packs, places = pack(weights, num_packs)
    for row, found, place in zip(weights, packs, places, strict=True):
        assert found.tolist() == plainly_packed(row.tolist(), num_packs)
        assert sorted(zip(found.tolist(), place.tolist(), strict=True)) == [
            (one, at) for one in range(num_packs) for at in range(room)
        ]


@given(st.data())
def test_every_placement_is_one(data: st.DataObject) -> None:
    topology = data.draw(topologies())
    num_experts = data.draw(st.integers(1, len(topology.live_slots)))
    tokens = data.draw(loads(2, num_experts))
    groups = data.draw(st.sampled_from([number for number in range(1, num_experts + 1) if not num_experts % number]))
    for placement in (
        linear(2, num_experts, topology),
        eplb_global(tokens, topology),
        eplb_hierarchical(tokens, topology, groups),
    ):
        check_placement(placement, topology)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_a_group_is_on_one_node(num_nodes: int, groups_a_node: int, size: int, data: st.DataObject) -> None:
    num_experts = num_nodes * groups_a_node * size
    topology = Topology.even(num_nodes, num_nodes * 2, (groups_a_node * size + 2) // 2)
    tokens = data.draw(loads(2, num_experts))
    found = eplb_hierarchical(tokens, topology, num_nodes * groups_a_node)
    on_node = held_by_rank(found).reshape(2, num_nodes, 2, num_experts).sum(axis=2) > 0
    of_group = on_node.reshape(2, num_nodes, -1, size)
    assert (of_group.all(axis=3) == of_group.any(axis=3)).all()
    assert (of_group.any(axis=3).sum(axis=1) == 1).all()


@given(st.data())
def test_as_many_slots_keep_their_expert_as_can(data: st.DataObject) -> None:
    topology = data.draw(topologies(max_slots_per_rank=4))
    num_experts = data.draw(st.integers(1, len(topology.live_slots)))
    old, new = (data.draw(placements(2, num_experts, topology)) for _ in range(2))
    tokens = data.draw(loads(2, num_experts))
    new = Placement(new.slots, num_experts, topology.slots_per_rank, fast_shares(new, topology, tokens))
    kept = keep_places(new, old)
    check_placement(kept, topology)
    assert np.array_equal(held_by_rank(kept), held_by_rank(new))
    both = np.minimum(held_by_rank(new), held_by_rank(old)).sum()
    live = topology.live_slots
    assert (kept.slots[:, live] == old.slots[:, live]).sum() == both
    assert np.allclose(rank_loads(kept, topology, tokens), rank_loads(new, topology, tokens), rtol=1e-12)
    again = keep_places(kept, old)
    assert np.array_equal(again.slots, kept.slots)
