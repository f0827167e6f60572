"""Decode steps from two reports of an engine's counters."""

from dataclasses import replace

import pytest

from router.latency import StepSample, step_sample
from workers.types import WorkerLoad

BEFORE = WorkerLoad(
    running_seqs=4,
    waiting_seqs=0,
    kv_blocks_used=10,
    kv_tokens_used=320,
    itl_sum_s=5.0,
    itl_count=100,
    engine_steps=50,
    computed_prompt_tokens=1_000,
)
AFTER = replace(
    BEFORE,
    running_seqs=0,
    kv_tokens_used=0,
    itl_sum_s=7.4,
    itl_count=180,
    engine_steps=60,
    computed_prompt_tokens=1_500,
)


def test_the_difference_of_two_reports() -> None:
    """80 gaps in 10 steps: eight sequences ran, whatever ran when it was asked."""
    assert step_sample(BEFORE, AFTER) == pytest.approx(
        StepSample(mean_itl_s=0.03, running_seqs=8.0, kv_tokens=160.0, prompt_tokens=50.0, steps=10.0)
    )


def test_where_steps_are_not_counted_the_reported_batch_stands_for_the_mean() -> None:
    sample = step_sample(BEFORE, replace(AFTER, engine_steps=50, running_seqs=2))
    assert sample is not None
    assert sample.running_seqs == 3.0
    assert sample.steps == pytest.approx(80 / 3)


@pytest.mark.parametrize("engine_steps", [50, 1_050])
def test_a_step_has_at_least_one_sequence(engine_steps: int) -> None:
    """Steps that only ended prompts have no gap, and a batch may be over between two reports."""
    sample = step_sample(replace(BEFORE, running_seqs=0), replace(AFTER, engine_steps=engine_steps))
    assert sample is not None
    assert (sample.running_seqs, sample.steps) == (1.0, 80.0)


@pytest.mark.parametrize(
    "later",
    [
        BEFORE,
        replace(AFTER, itl_count=107),
        replace(AFTER, itl_count=20, itl_sum_s=1.0, engine_steps=10, computed_prompt_tokens=30),
        replace(AFTER, itl_sum_s=4.0),
        replace(AFTER, engine_steps=10),
        replace(AFTER, computed_prompt_tokens=10),
    ],
    ids=["nothing", "too few gaps", "restarted", "seconds fell", "steps fell", "prompts fell"],
)
def test_no_sample(later: WorkerLoad) -> None:
    assert step_sample(BEFORE, later) is None


def test_an_engine_without_these_counters_gives_no_samples() -> None:
    assert step_sample(WorkerLoad(1, 0, 1), WorkerLoad(3, 0, 9)) is None
