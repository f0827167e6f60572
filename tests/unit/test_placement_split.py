"""How an expert's tokens are divided among its replicas."""

from dataclasses import replace

import numpy as np
import pytest

from controlplane.placement.eplb import eplb_global, eplb_hierarchical, linear
from controlplane.placement.objective import balancedness, even_loads, rank_loads
from controlplane.placement.split import fast_shares, optimal_shares, prefix_bound, robust_shares, split_bound
from controlplane.placement.types import (
    Placement,
    PlacementError,
    Rank,
    Scenario,
    Shares,
    Tokens,
    Topology,
    check_placement,
)
from tests.placement_cases import EPLB_TOKENS, EPLB_TOPOLOGY, domains, placed, skewed

LOADS = domains()


def slowest(placement: Placement, topology: Topology, tokens: Tokens, shares: Shares | None = None) -> Tokens:
    """(layers,) load of the slowest rank."""
    found: Tokens = rank_loads(replace(placement, shares=shares), topology, tokens).max(axis=1)
    return found


def test_the_published_example_divided_at_best() -> None:
    placement = eplb_hierarchical(EPLB_TOKENS, EPLB_TOPOLOGY, 4)
    shared = replace(placement, shares=optimal_shares(placement, EPLB_TOPOLOGY, EPLB_TOKENS))
    assert balancedness(shared, EPLB_TOPOLOGY, EPLB_TOKENS) == pytest.approx([0.839, 0.835], abs=1e-3)
    even = even_loads(EPLB_TOPOLOGY, EPLB_TOKENS)
    assert even / split_bound(placement, EPLB_TOPOLOGY, EPLB_TOKENS) == pytest.approx([0.839, 0.835], abs=1e-3)


def test_the_bound_is_that_of_the_experts_which_have_too_few_ranks() -> None:
    """Experts 0 and 1 are on ranks 0 and 1 alone: 30 tokens for two ranks."""
    topology = Topology.even(1, 3, 2)
    placement = placed([[0, 1, 1, 0, 2, 3]], 4, 2)
    tokens = np.array([[20.0, 10.0, 4.0, 4.0]])
    assert split_bound(placement, topology, tokens) == pytest.approx([15.0])
    shares = fast_shares(placement, topology, tokens)
    assert slowest(placement, topology, tokens, shares) == pytest.approx([15.0])
    loads = rank_loads(replace(placement, shares=shares), topology, tokens)
    assert prefix_bound(placement, topology, tokens, loads) == pytest.approx([15.0])


def test_a_slow_rank_takes_less() -> None:
    topology = Topology((Rank(0, speed=1.0), Rank(0, speed=3.0)), 1)
    placement = placed([[0, 0]], 1, 1)
    tokens = np.array([[8.0]])
    for shares in (optimal_shares(placement, topology, tokens), fast_shares(placement, topology, tokens)):
        assert shares[0] == pytest.approx([0.25, 0.75], rel=5e-3)


def test_slots_of_one_rank_share_alike() -> None:
    topology = Topology.even(1, 2, 3)
    placement = placed([[0, 0, 1, 0, 2, 2]], 3, 3)
    tokens = np.array([[12.0, 1.0, 5.0]])
    for shares in (optimal_shares(placement, topology, tokens), fast_shares(placement, topology, tokens)):
        check_placement(replace(placement, shares=shares), topology)
        assert shares[0] == pytest.approx([1 / 3, 1 / 3, 1.0, 1 / 3, 0.5, 0.5])


def test_an_expert_without_tokens_is_shared_equally() -> None:
    topology = Topology.even(1, 2, 2)
    placement = placed([[0, 1, 0, 2]], 3, 2)
    tokens = np.array([[0.0, 3.0, 1.0]])
    for shares in (optimal_shares(placement, topology, tokens), fast_shares(placement, topology, tokens)):
        assert shares.tolist() == [[0.5, 1.0, 0.5, 1.0]]


def test_too_few_tokens_to_be_told_from_none_go_to_the_lowest() -> None:
    topology = Topology.even(1, 3, 2)
    placement = placed([[0, 1, 0, 2, 2, 3]], 4, 2)
    tokens = np.array([[1e-12, 9e9, 6e9, 1e9]])
    shares = fast_shares(placement, topology, tokens)
    check_placement(replace(placement, shares=shares), topology)


def test_dead_ranks_take_nothing() -> None:
    topology = Topology((Rank(0), Rank(0, is_alive=False), Rank(0)), 2)
    placement = placed([[0, 1, -1, -1, 0, 2]], 3, 2)
    tokens = np.array([[6.0, 4.0, 2.0]])
    for shares in (optimal_shares(placement, topology, tokens), fast_shares(placement, topology, tokens)):
        check_placement(replace(placement, shares=shares), topology)
        assert slowest(placement, topology, tokens, shares) == pytest.approx([6.0], rel=2e-3)


def test_without_redundancy_there_is_nothing_to_divide() -> None:
    topology = Topology.even(1, 4, 4)
    placement = linear(2, 16, topology)
    tokens = skewed(1, 2, 16)
    assert (fast_shares(placement, topology, tokens) == 1.0).all()
    assert split_bound(placement, topology, tokens) == pytest.approx(slowest(placement, topology, tokens))


@pytest.mark.parametrize(("num_ranks", "redundant"), [(8, 8), (8, 16), (8, 32), (32, 32), (32, 64)])
@pytest.mark.parametrize("planned", ["law", "code"])
def test_fast_is_within_a_percent_on_loads_of_several_domains(num_ranks: int, redundant: int, planned: str) -> None:
    topology = Topology.even(2, num_ranks, (64 + redundant) // num_ranks)
    placement = eplb_global(LOADS[planned], topology)
    for served in LOADS.values():
        bound = split_bound(placement, topology, served)
        fast = slowest(placement, topology, served, fast_shares(placement, topology, served))
        optimal = slowest(placement, topology, served, optimal_shares(placement, topology, served))
        assert (optimal <= bound * (1.0 + 1e-6)).all()
        assert (fast <= bound * 1.01).all()
        assert (fast <= slowest(placement, topology, served) * (1.0 + 1e-12)).all()


@pytest.mark.parametrize("slots_per_rank", [9, 10])
@pytest.mark.parametrize("concentration", [0.2, 2.0])
def test_fast_is_within_a_percent_on_a_large_model(slots_per_rank: int, concentration: float) -> None:
    """Half of the load is as planned, half has drifted."""
    topology = Topology.even(4, 32, slots_per_rank)
    planned = skewed(2, concentration=concentration)
    served = planned + skewed(3, concentration=concentration)
    placement = eplb_global(planned, topology)
    shares = fast_shares(placement, topology, served)
    check_placement(replace(placement, shares=shares), topology)
    fast = slowest(placement, topology, served, shares)
    assert (fast <= split_bound(placement, topology, served) * 1.01).all()
    assert fast.mean() < 0.95 * slowest(placement, topology, served).mean()


def test_without_a_sweep_shares_are_equal() -> None:
    placement, topology = eplb_global(LOADS["law"], Topology.even(1, 8, 10)), Topology.even(1, 8, 10)
    shares = fast_shares(placement, topology, LOADS["code"], sweeps=0)
    assert slowest(placement, topology, LOADS["code"], shares) == pytest.approx(
        slowest(placement, topology, LOADS["code"])
    )


def test_robust_shares_are_best_in_the_worst_load() -> None:
    """Expert 0 is on both ranks; rank 0 has expert 1 besides, rank 1 expert 2: half of it for each."""
    topology = Topology.even(1, 2, 2)
    placement = placed([[0, 1, 0, 2]], 3, 2)
    scenarios = [Scenario("a", np.array([[4.0, 4.0, 0.0]])), Scenario("b", np.array([[40.0, 0.0, 40.0]]))]
    shares = robust_shares(placement, topology, scenarios)
    assert shares[0] == pytest.approx([0.5, 1.0, 0.5, 1.0])


def test_robust_shares_lose_less_when_the_load_changes() -> None:
    topology = Topology.even(2, 32, 3)
    placement = eplb_global(sum(LOADS.values()), topology)  # type: ignore[arg-type]
    scenarios = [Scenario(name, tokens) for name, tokens in LOADS.items()]
    robust = robust_shares(placement, topology, scenarios)
    check_placement(replace(placement, shares=robust), topology)

    def worst(shares: Shares | None) -> float:
        """Over loads, of the slowest rank's load by the even one; mean over layers."""
        found = [slowest(placement, topology, load, shares) / even_loads(topology, load) for load in LOADS.values()]
        return float(np.max(found, axis=0).mean())

    for_one = [worst(optimal_shares(placement, topology, load)) for load in LOADS.values()]
    assert worst(robust) < min(*for_one, worst(None))


def test_loads_that_say_nothing_are_an_error() -> None:
    topology = Topology.even(1, 2, 1)
    with pytest.raises(PlacementError, match="layer 0: all experts have load 0"):
        split_bound(placed([[0, 0]], 1, 1), topology, np.zeros((1, 1)))
