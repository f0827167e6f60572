"""What vLLM's CPU backend lacks for expert parallelism: the parts that need no engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.expert_placement import EXPERTS_ENV

torch = pytest.importorskip("torch")
from workers.cpu_experts import UnsupportedVllmError, choose_slots, expect_parameters, local_pairs  # noqa: E402

TABLE = torch.full((3, 4), -1)
TABLE[0, :1], TABLE[1, :3], TABLE[2, :2] = torch.tensor([2]), torch.tensor([0, 3, 4]), torch.tensor([1, 1])
REPLICAS = torch.tensor([1, 3, 2])


def choose(ids: list[list[int]], record: bool = True, unpadded: int | None = None) -> tuple[list[list[int]], list[int]]:
    """Slots and counts."""
    counts = torch.zeros(5, dtype=torch.int32)
    real = None if unpadded is None else torch.tensor(unpadded)
    topk = torch.tensor(ids, dtype=torch.int32)
    slots = choose_slots(topk, counts, TABLE, REPLICAS, torch.tensor(record), real)
    assert slots.dtype == torch.int32
    return slots.tolist(), counts.tolist()


def test_each_choice_goes_to_a_slot_of_its_expert_and_is_counted() -> None:
    slots, counts = choose([[0, 1], [1, 2], [2, 0]] * 50)
    of_expert = {0: {2}, 1: {0, 3, 4}, 2: {1}}
    for chosen, row in zip([[0, 1], [1, 2], [2, 0]] * 50, slots, strict=True):
        assert all(slot in of_expert[expert] for expert, slot in zip(chosen, row, strict=True))
    assert sum(counts) == 300
    assert counts[2] == counts[1] == 100
    assert min(counts[0], counts[3], counts[4]) >= 20, "an expert's slots share its tokens"


def test_the_choice_is_that_of_the_gpu_kernel() -> None:
    """router/base_router.py: Knuth's hash of the token's place, modulo the number of entries."""
    slots, _ = choose([[1, 0]] * 8)
    assert [row[0] for row in slots] == [[0, 3, 4][(token * 2654435769 & 0xFFFFFFFF) % 3] for token in range(8)]


def test_padding_is_mapped_and_not_counted_and_so_is_everything_while_not_recording() -> None:
    assert choose([[0, 2]] * 4, unpadded=1)[1] == [0, 1, 1, 0, 0]
    assert choose([[0, 2]] * 4, record=False) == ([[2, 1]] * 4, [0] * 5)


def test_only_pairs_of_this_rank_are_computed() -> None:
    expert_map = torch.tensor([-1, 0, -1, 1])
    ids = torch.tensor([[1, 0], [2, 0], [3, 1]], dtype=torch.int32)
    weights = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.3, 0.7]])
    tokens, local, local_weights = local_pairs(ids, weights, expert_map)
    assert tokens.tolist() == [0, 2, 2]
    assert local.tolist() == [[0], [1], [0]]
    assert local.dtype == ids.dtype
    assert local_weights.flatten().tolist() == pytest.approx([0.1, 0.3, 0.7])


def test_a_function_that_has_changed_is_an_error() -> None:
    def changed(self: object, other: int) -> None: ...

    expect_parameters(changed, "self", "other")
    with pytest.raises(UnsupportedVllmError, match=r"changed takes .*'other'.*vLLM 0.32"):
        expect_parameters(changed, "self")


def test_the_installed_vllm_is_the_one_that_the_fixes_were_written_for() -> None:
    """In a process of its own, twice: vLLM may load a plugin more than once."""
    code = "from workers.engine_plugin import register; register(); register(); print('both fine')"
    env = {**os.environ, EXPERTS_ENV: "1", "PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("both fine\n")
