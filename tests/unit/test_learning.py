"""What events teach, and what untaught workers are believed to be like."""

import math
from dataclasses import replace
from random import Random

import pytest

from kvstore.types import RequestId, WorkerId
from router.fleet.learning import Learning, attempt_sample
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.latency import LatencyPrior
from router.live_request import ForecastErrors
from tests.builders import make_table, make_worker

A, B = WorkerId("a"), WorkerId("b")


def c1(table: FleetTable, worker_id: WorkerId) -> float:
    return float(table.params[table.row(worker_id)][1])


def test_a_worker_without_samples_is_believed_to_be_like_the_others() -> None:
    workers = [make_worker(name) for name in ("a", "b")]
    table = make_table(*workers)
    learning = Learning(table, LatencyPrior())
    for worker in workers:
        learning.on_worker(None, worker, 0.0)
    before = c1(table, B)
    for at in range(40):
        now_s = 10.0 + at
        work = PrefillWork(1000 + 50 * at, 0.0, 0.1)
        sample = attempt_sample(table, A, work, step_s=0.0, transfer_tokens=0, now_s=now_s)
        learning.on_prefill_over(A, sample, now_s + work.tokens / 50_000, local=False)
    assert c1(table, A) == pytest.approx(0.02, rel=0.2)
    assert c1(table, B) == c1(table, A) != before
    learning.on_worker(workers[1], replace(workers[1], spec=replace(workers[1].spec, epoch=2)), 60.0)
    assert c1(table, B) == c1(table, A)


def test_the_allowance_is_what_nine_of_ten_forecasts_are_short_by() -> None:
    errors, rng = ForecastErrors(), Random(1)
    assert errors.allowance_s("m") == 0.0
    for _ in range(4000):
        errors.observe("m", rng.uniform(-1.0, 1.0))
    assert errors.allowance_s("m") == pytest.approx(0.8, abs=0.15)
    for _ in range(128):
        errors.observe("m", -0.5)
    assert errors.allowance_s("m") == 0.0


def test_the_allowance_forgets_a_bad_moment_however_small_the_errors_after_it() -> None:
    errors = ForecastErrors()
    for late_s in [2.0] * 100 + [0.01] * 128:
        errors.observe("m", late_s)
    assert errors.allowance_s("m") == 0.01


def learned_c1(*, share_steps: bool) -> float:
    """Of a worker that computes 10,000 tokens a second, two prompts at a time or each hidden in a step of others."""
    table = make_table(make_worker("a"))
    learning = Learning(table, LatencyPrior())
    learning.on_worker(None, make_worker("a"), 0.0)
    work = PrefillWork(1000, 0.0, 0.1)
    for at in range(200):
        now_s = 10.0 + at
        if share_steps:
            alone = attempt_sample(table, A, work, step_s=0.2, transfer_tokens=0, now_s=now_s)
            learning.on_prefill_over(A, alone, now_s + 0.2001, local=True)
            continue
        table.promise_prefill(A, RequestId("first"), work, now_s, is_observed=True)
        second = attempt_sample(table, A, work, step_s=0.0, transfer_tokens=0, now_s=now_s + 0.08)
        learning.on_prefill_over(A, second, now_s + 0.2, local=False)
        table.prefill_over(A, RequestId("first"), now_s + 0.1, done=True)
    return c1(table, A)


def test_of_the_prompts_before_one_only_what_is_left_counts() -> None:
    assert learned_c1(share_steps=False) == pytest.approx(0.1, rel=0.15)


def test_a_prompt_whose_time_is_hidden_in_a_step_is_not_believed_to_take_none() -> None:
    assert learned_c1(share_steps=True) > 0.05


def test_the_table_follows_at_once_and_in_a_burst_within_a_twentieth_of_a_second() -> None:
    worker = make_worker("a")
    table = make_table(worker)
    learning = Learning(table, LatencyPrior())
    learning.on_worker(None, worker, 0.0)

    def learn(now_s: float) -> None:
        sample = attempt_sample(table, A, PrefillWork(1000, 0.0, 0.1), step_s=0.0, transfer_tokens=0, now_s=now_s)
        learning.on_prefill_over(A, sample, now_s + 0.02, local=False)

    seen = [c1(table, A)]
    for now_s in (10.0, 11.0, 12.0, 13.0):  # the first three are cold
        learn(now_s)
        seen.append(c1(table, A))
    assert seen[0] == seen[3] != seen[4]
    assert learning.write_at_s == math.inf
    learn(13.01)
    assert c1(table, A) == seen[4]
    assert learning.write_at_s == pytest.approx(13.07)
    learning.write()
    assert c1(table, A) != seen[4]
    assert learning.write_at_s == math.inf
