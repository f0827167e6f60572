"""Rings of ranks: who is linked with whom, and what every rank gets a sample of."""

import numpy as np
import pytest
from numpy.typing import NDArray

from controlplane.placement.objective import Prices
from controlplane.placement.rings import links, rings
from controlplane.placement.simulate import served
from controlplane.placement.types import Placement, Rank, Slots, Tokens, Topology, scenario_tokens
from controlplane.placement.unseen import plan_unseen
from tests.placement_cases import domain_loads, skewed

_PRICES = Prices(token_bytes=0.0)


def made(seen: NDArray[np.float64], expected: Tokens, topology: Topology) -> Slots:
    """The rings, which there are."""
    found = rings(seen, expected, topology)
    assert found is not None
    return found


def test_one_ring_is_closed_and_a_second_shortens_the_way() -> None:
    assert links(4, 4).tolist() == [[0, 1], [1, 2], [2, 3], [3, 0]]
    assert links(8, 4).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert links(16, 32)[16:].tolist() == [[at, (at + 6) % 16] for at in (0, 6, 12, 2, 8, 14, 4, 10)] + [
        [at, (at + 6) % 16] for at in (1, 7, 13, 3, 9, 15, 5, 11)
    ]


def test_experts_that_are_alike_are_spread_over_the_ranks() -> None:
    """Eight kinds of eight experts each, told apart by three loads."""
    kinds = np.random.default_rng(0).lognormal(0.0, 1.0, (3, 2, 8))
    order = np.random.default_rng(1).permutation(64)
    seen = np.tile(kinds, 8)[:, :, order]
    slots = made(seen, np.zeros((2, 64)), Topology.even(1, 8, 8))
    of_ranks = (np.arange(64) % 8)[order][slots].reshape(2, 8, 8)
    assert (np.sort(of_ranks, axis=2) == np.arange(8)).all()


def test_the_experts_of_which_most_is_expected_link_neighbours() -> None:
    expected = skewed(1, 2, 64)
    slots = made(skewed(2, 2, 64)[None], expected, Topology.even(1, 8, 9))
    for layer, row in enumerate(slots):
        counts = np.bincount(row)
        assert set(np.flatnonzero(counts == 2)) == set(np.argsort(-expected[layer])[:8])
        held = [set(rank) for rank in row.reshape(8, 9)]
        assert [len(held[rank] & held[(rank + 1) % 8]) for rank in range(8)] == [1] * 8


def test_neighbours_are_on_different_nodes() -> None:
    topology = Topology((Rank(0), Rank(0), Rank(1), Rank(0), Rank(1), Rank(1)), 5)
    slots = made(skewed(1, 1, 24)[None], np.ones((1, 24)), topology)
    held = (slots.reshape(6, 5)[None] == np.arange(24)[:, None, None]).any(axis=2)
    assert all(len(set(topology.nodes[ranks])) == ranks.sum() for ranks in held)


@pytest.mark.parametrize(
    "topology",
    [
        Topology((Rank(0, speed=0.5), *(Rank(0) for _ in range(7))), 9),
        Topology.even(1, 8, 17),
        Topology.even(1, 1, 65),
    ],
    ids=["unequal speeds", "more than two slots for an expert", "nobody to be linked with"],
)
def test_there_are_no_rings(topology: Topology) -> None:
    assert rings(skewed(1, 1, 64)[None], np.ones((1, 64)), topology) is None


def test_ranks_are_a_better_sample_than_by_chance() -> None:
    """Of a load that depends on the loads seen in a way that nobody said: how far ranks are from the mean."""
    topology, generator, found = Topology.even(1, 8, 8), np.random.default_rng(0), []
    for seed in range(10):
        seen = scenario_tokens(domain_loads(seed)[:3])
        depends = np.abs(np.log(seen).sum(axis=0) - np.log(seen).sum(axis=0).mean())
        slots = made(seen, np.zeros(depends.shape), topology)
        at_random = np.array([generator.permutation(64) for _ in depends])
        found.append([served(Placement(held, 64, 8), topology, depends).mean() for held in (slots, at_random)])
    ours, chance = np.mean(found, axis=0)
    assert ours > chance + 0.1


def test_dead_rank_is_left_out() -> None:
    loads = domain_loads()
    topology = Topology.even(1, 9, 9).with_dead([rank != 4 for rank in range(9)])
    found = plan_unseen(loads, topology, _PRICES)
    whole = plan_unseen(loads, Topology.even(1, 8, 9), _PRICES)
    assert np.array_equal(np.delete(found.placement.slots, np.s_[36:45], axis=1), whole.placement.slots)
