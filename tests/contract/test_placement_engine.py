"""Our EPLB places as the engine's does, slot by slot."""

from typing import Any

import numpy as np
import pytest

from controlplane.placement.eplb import eplb_global, eplb_hierarchical, keep_places, linear
from controlplane.placement.types import Topology
from tests.placement_cases import skewed

CASES = [  # experts, nodes, ranks, slots a rank, groups
    (256, 4, 32, 9, 8),
    (256, 4, 32, 10, 1),
    (128, 2, 16, 9, 16),
    (64, 1, 8, 8, 1),
]


@pytest.fixture(scope="module")
def policy() -> Any:
    """vLLM's."""
    module = pytest.importorskip("vllm.distributed.eplb.policy.default")
    return module.DefaultEplbPolicy


@pytest.mark.filterwarnings("ignore")  # the engine's own
@pytest.mark.parametrize(("num_experts", "num_nodes", "num_ranks", "slots_per_rank", "num_groups"), CASES)
def test_placements_are_the_engines(
    policy: Any, num_experts: int, num_nodes: int, num_ranks: int, slots_per_rank: int, num_groups: int
) -> None:
    """Loads in single precision, as the engine has them, and no two alike: its order of equals is not defined."""
    torch = pytest.importorskip("torch")
    topology = Topology.even(num_nodes, num_ranks, slots_per_rank)
    tokens = skewed(1, 8, num_experts, concentration=2.0).astype(np.float32).astype(np.float64)
    theirs = policy.rebalance_experts(
        torch.tensor(tokens), topology.num_slots, num_groups, num_nodes, num_ranks
    ).numpy()
    ours = eplb_hierarchical(tokens, topology, num_groups)
    assert np.array_equal(ours.slots, theirs)
    if num_groups == 1:
        assert np.array_equal(eplb_global(tokens, topology).slots, theirs)
    before = linear(8, num_experts, topology)
    kept = policy.preserve_intragpu_slots(theirs, num_ranks, before.slots)
    assert np.array_equal(keep_places(ours, before).slots, kept)


@pytest.mark.filterwarnings("ignore")
def test_the_first_placement_is_the_engines() -> None:
    state = pytest.importorskip("vllm.distributed.eplb.eplb_state")
    theirs = state.EplbState.build_initial_global_physical_to_logical_map(60, 68)
    assert linear(1, 60, Topology.even(2, 16, 8)).slots[0].tolist() == list(theirs)
