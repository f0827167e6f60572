"""Plans for loads not seen, for any ranks: what must hold of each, and that none is worse than what is known."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.placement.cost import Aim, Costs
from controlplane.placement.eplb import eplb_global, eplb_hierarchical
from controlplane.placement.objective import Prices, moved_slots
from controlplane.placement.rings import links, rings
from controlplane.placement.types import Placement, Rank, Scenario, Topology, check_placement
from controlplane.placement.unseen import plan_unseen, with_unseen
from tests.placement_cases import loads, placements, topologies

EXAMPLES = settings(max_examples=30, deadline=None)
AIM = Aim(risk=0.0, splits_best=True, num_groups=1)
PRICES = st.sampled_from([Prices(token_bytes=0.0), Prices(), Prices(expert_bytes=4e12)])


@EXAMPLES
@given(st.integers(1, 40), st.integers(0, 120))
def test_links_join_different_ranks_alike(num_ranks: int, num_links: int) -> None:
    pairs = links(num_ranks, num_links)
    assert len(pairs) == (num_links if num_ranks > 1 else 0)
    assert (pairs[:, 0] != pairs[:, 1]).all() and ((pairs >= 0) & (pairs < num_ranks)).all()
    degree = np.bincount(pairs.ravel(), minlength=num_ranks)
    assert num_ranks == 1 or degree.max() - degree.min() <= 2
    if num_ranks > 1 and num_links >= num_ranks:
        reached = {0}
        while more := {int(two) for pair in pairs for one, two in (pair, pair[::-1]) if int(one) in reached} - reached:
            reached |= more
        assert len(reached) == num_ranks


@st.composite
def equal_ranks(draw: st.DrawFn) -> tuple[Topology, int]:
    """Ranks of one speed, some dead, and how many experts."""
    alive = draw(st.lists(st.booleans(), min_size=2, max_size=7).filter(lambda alive: sum(alive) > 1))
    ranks = tuple(Rank(draw(st.integers(0, 1)), is_alive=is_alive) for is_alive in alive)
    topology = Topology(ranks, draw(st.integers(1, 4)))
    room = len(topology.live_slots)
    return topology, draw(st.integers(-(-room // 2), room))


@EXAMPLES
@given(st.data())
def test_rings_are_allowed_and_link_what_is_expected_most(data: st.DataObject) -> None:
    topology, num_experts = data.draw(equal_ranks())
    seen = np.stack([data.draw(loads(2, num_experts)) for _ in range(data.draw(st.integers(1, 3)))])
    expected = np.array([data.draw(st.permutations(range(num_experts))) for _ in range(2)], dtype=np.float64)
    slots = rings(seen, expected, topology)
    num_links = len(topology.live_slots) - num_experts
    if slots is None:
        assert num_links % len(topology.live_ranks)
        return
    placement = Placement(slots, num_experts, topology.slots_per_rank)
    check_placement(placement, topology)
    assert ((placement.replica_counts == 2) == (expected >= num_experts - num_links)).all()
    for rank in slots.reshape(2 * len(topology.ranks), -1):
        held = rank[rank >= 0]
        assert len(set(held)) == len(held)
    assert np.array_equal(rings(seen, expected, topology), slots)  # type: ignore[arg-type]  # None is not equal


@EXAMPLES
@given(st.data(), PRICES, st.none() | st.integers(0, 12), st.booleans())
def test_plan_for_the_unseen_is_allowed_and_no_worse_than_what_is_known(
    data: st.DataObject, prices: Prices, max_moves: int | None, has_previous: bool
) -> None:
    topology = data.draw(topologies())
    num_experts = data.draw(st.integers(1, min(12, len(topology.live_slots))))
    scenarios = [
        Scenario(str(number), data.draw(loads(2, num_experts))) for number in range(data.draw(st.integers(1, 3)))
    ]
    before = topology.with_dead([True] * len(topology.ranks))
    previous = data.draw(placements(2, num_experts, before)) if has_previous else None
    found = plan_unseen(scenarios, topology, prices, previous=previous, max_moves=max_moves, aim=AIM)
    check_placement(found.placement, topology)
    costs = Costs.of(with_unseen(scenarios), topology, prices, previous, AIM)
    if previous is not None:
        assert found.kept_s is not None and found.total_s <= found.kept_s * (1.0 + 1e-9)
        assert found.moved_slots == int(moved_slots(found.placement, previous).sum())
        if max_moves is not None:
            assert found.moved_slots <= max(max_moves, found.needed_slots)
            return
    for made in (eplb_global(costs.expected, topology), eplb_hierarchical(costs.expected, topology, 1)):
        assert found.total_s <= costs.terms(made.slots).total_s.sum() * (1.0 + 1e-9)
