"""The best placement of small cases."""

import numpy as np
import pytest

from controlplane.placement.eplb import eplb_global
from controlplane.placement.exact import exact_equal, exact_split
from controlplane.placement.lp import INF, Program
from controlplane.placement.objective import even_loads, rank_loads
from controlplane.placement.types import PlacementError, Rank, Topology, check_placement
from tests.placement_cases import EPLB_TOKENS, EPLB_TOPOLOGY, skewed


def test_a_case_that_eplb_does_not_solve() -> None:
    """4 1 1 | 2 2 2; the heaviest first into the lightest with room ends at 4 2 1 | 2 2 1."""
    topology = Topology.even(1, 2, 3)
    tokens = np.array([[4.0, 2.0, 2.0, 2.0, 1.0, 1.0]])
    assert rank_loads(eplb_global(tokens, topology), topology, tokens).max() == 7.0
    best = exact_equal(tokens, topology)
    check_placement(best.placement, topology)
    assert best.stragglers == pytest.approx([6.0])
    assert best.gap < 1e-6


def test_a_hot_expert_gets_replicas() -> None:
    topology = Topology.even(1, 3, 2)
    tokens = np.array([[12.0, 3.0, 2.0, 1.0]])
    equal, divided = exact_equal(tokens, topology), exact_split(tokens, topology)
    assert equal.stragglers == pytest.approx([6.5])  # 6 + 0.5 | 6 + 0.5 | 3 + 2
    assert divided.stragglers == pytest.approx([6.0])  # 12 tokens of expert 0 on three ranks, where there is room
    assert divided.placement.shares is not None
    check_placement(divided.placement, topology)


def test_slow_and_dead_ranks() -> None:
    topology = Topology((Rank(0, 2.0), Rank(0, is_alive=False), Rank(0, 1.0)), 2)
    tokens = np.array([[6.0, 4.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    for solve in (exact_equal, exact_split):
        best = solve(tokens, topology)
        check_placement(best.placement, topology)
        assert best.stragglers == pytest.approx([5.0, 2.0])


def test_of_one_layer_more_slots_than_experts_on_a_rank() -> None:
    topology = Topology.even(1, 2, 3)
    for solve in (exact_equal, exact_split):
        best = solve(np.array([[5.0, 1.0]]), topology)
        check_placement(best.placement, topology)
        assert best.stragglers == pytest.approx([3.0])


def test_the_published_example_is_solved_to_a_percent() -> None:
    best = exact_split(EPLB_TOKENS[:1], EPLB_TOPOLOGY, limit_s=20.0, gap=0.01)
    assert best.gap <= 0.01
    assert even_loads(EPLB_TOPOLOGY, EPLB_TOKENS[:1]) / best.stragglers >= 0.99


def test_out_of_time_it_is_no_worse_than_eplb_and_says_how_near() -> None:
    topology = Topology.even(1, 8, 3)
    tokens = skewed(1, 1, 20)
    for solve in (exact_equal, exact_split):
        best = solve(tokens, topology, limit_s=0.0)
        check_placement(best.placement, topology)
        assert best.stragglers <= rank_loads(eplb_global(tokens, topology), topology, tokens).max()
        assert best.bounds >= even_loads(topology, tokens)
        assert 0.0 <= best.gap < 1.0


def test_what_cannot_be_placed_is_an_error() -> None:
    with pytest.raises(PlacementError, match="8 experts need as many slots"):
        exact_equal(skewed(1, 1, 8), Topology.even(1, 2, 3))


def test_a_program_without_a_solution_is_an_error() -> None:
    program = Program()
    column = program.column(0.0, 1.0, cost=1.0)
    program.row([column], [1.0], 2.0, INF)
    with pytest.raises(PlacementError, match="Infeasible"):
        program.solve()


def test_a_linear_program_has_prices() -> None:
    program = Program()
    columns = [program.column(cost=cost) for cost in (2.0, 3.0)]
    program.row(columns, [1.0, 1.0], 4.0, INF)
    solved = program.solve()
    assert (solved.value, solved.bound) == (8.0, 8.0)
    assert solved.columns.tolist() == [4.0, 0.0]
    assert solved.row_duals.tolist() == [2.0]
