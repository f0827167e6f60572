"""The latency model of one worker: its prior, what it learns from and what it refuses to."""

import math

import pytest

from router.latency import LatencyParams, LatencyPrior, WorkerLatency
from router.latency.fitted_time import COLD_S, COLD_SAMPLES, EPOCH_WEIGHT, SECONDS_MAX
from router.latency.least_squares import REGIME_RUN, RecursiveLeastSquares
from router.latency.margin import MARGIN_MAX, WINDOW, PredictionErrors

PRIOR = LatencyPrior()
TRUE = LatencyParams(c0=0.02, c1=0.4, c2=0.01, d0=0.04, d1=0.002, d2=0.001, t0=0.03, t1=0.02)
STARTED_AT_S = 100.0
WARM_AT_S = STARTED_AT_S + COLD_S
PROMPTS = [(1, 300, 300), (1, 4_000, 4_000), (2, 1_000, 6_000), (1, 50, 8_000), (3, 9_000, 3_000)] * 12


def started() -> WorkerLatency:
    latency = WorkerLatency(PRIOR)
    latency.new_epoch(STARTED_AT_S)
    return latency


def warm() -> WorkerLatency:
    """Cold samples are over."""
    latency = started()
    for _ in range(COLD_SAMPLES):
        assert not latency.observe_prefill(1.0, 1, 100, 0.01, WARM_AT_S)
        assert not latency.observe_step(1.0, 1, 100, 10, WARM_AT_S)
        assert not latency.observe_transfer(1.0, 100, WARM_AT_S)
    return latency


def prefill_s(prompts: int, new: int, context: int) -> float:
    return TRUE.c0 * prompts + TRUE.c1 * new / 1e3 + TRUE.c2 * new * context / 1e6


def taught() -> WorkerLatency:
    """A warm model that has seen much of a worker with the coefficients TRUE."""
    latency = warm()
    for index, (prompts, new, context) in enumerate(PROMPTS * 3):
        latency.observe_prefill(prefill_s(prompts, new, context), prompts, new, new * context / 1e6, WARM_AT_S)
        seqs, kv, prompt = 1 + index % 30, index % 7 * 9_000, index % 3 * 200
        step_s = TRUE.d0 + TRUE.d1 * seqs + TRUE.d2 * kv / 1e3 + TRUE.c1 * prompt / 1e3
        latency.observe_step(step_s, seqs, kv, 20, WARM_AT_S, prompt_tokens=prompt)
        latency.observe_transfer(TRUE.t0 + TRUE.t1 * new / 1e3, new, WARM_AT_S)
    return latency


def test_without_samples_it_is_the_prior() -> None:
    latency = WorkerLatency(PRIOR)
    assert latency.params() == PRIOR.params()
    assert latency.predict_prefill_s(5_000, 5_000) == pytest.approx(0.010 + 1.0 + 0.125)
    assert latency.predict_step_s(4, 10_000) == pytest.approx(0.025 + 0.004 + 0.002)
    assert latency.predict_transfer_s(2_000) == pytest.approx(0.010 + 0.020)
    assert (latency.prefill_margin(), latency.step_margin()) == (1.0, 1.0)
    assert latency.stall_s_per_1k_tokens() == PRIOR.params().c1


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_a_prior_of_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="decode_step_per_seq_s"):
        LatencyPrior(decode_step_per_seq_s=rate)


def test_it_finds_the_coefficients_of_a_worker() -> None:
    latency = taught()
    assert latency.params() == pytest.approx(tuple(TRUE), rel=0.02)
    assert latency.stall_s_per_1k_tokens() == pytest.approx(TRUE.c1, rel=0.02)
    assert latency.predict_prefill_s(700, 2_000) == pytest.approx(prefill_s(1, 700, 2_000), rel=0.01)


def test_prompts_beside_a_decode_are_not_learned_as_part_of_its_step() -> None:
    """A worker that does both has longer steps while it computes prompts."""
    latency = warm()
    for index in range(200):
        prompt, seqs = index % 4 * 500, 1 + index % 9
        latency.observe_step(0.03 + 0.001 * seqs + 0.5 * prompt / 1e3, seqs, 0, 30, WARM_AT_S, prompt_tokens=prompt)
    assert latency.predict_step_s(5, 0) == pytest.approx(0.035, rel=0.02)


def test_the_first_samples_of_an_epoch_and_its_first_seconds_are_cold() -> None:
    """Invariant 1 of fitted_time.py; both have to be over."""
    latency = started()
    for _ in range(COLD_SAMPLES + 5):
        assert not latency.observe_prefill(15.0, 1, 100, 0.01, WARM_AT_S - 0.001)
    assert latency.params() == PRIOR.params()
    assert latency.prefill_margin() == 1.0
    assert latency.observe_prefill(0.05, 1, 100, 0.01, WARM_AT_S)
    late = started()
    taken = [late.observe_prefill(0.05, 1, 100, 0.01, WARM_AT_S + 60) for _ in range(COLD_SAMPLES + 1)]
    assert taken == [False] * COLD_SAMPLES + [True]


def test_a_cold_first_call_does_not_poison() -> None:
    latency = started()
    latency.observe_prefill(15.0, 1, 100, 0.01, STARTED_AT_S + 20)
    for _ in range(30):
        latency.observe_prefill(0.05, 1, 100, 0.01, STARTED_AT_S + 30)
    assert latency.predict_prefill_s(100, 100) == pytest.approx(0.05, rel=0.01)
    assert latency.prefill_margin() == pytest.approx(1.0, abs=0.05)


def test_a_late_outlier_is_bounded() -> None:
    """Invariant 3 of least_squares.py."""
    latency = taught()
    before_s = latency.predict_prefill_s(500, 500)
    latency.observe_prefill(15.0, 1, 500, 0.25, WARM_AT_S)
    assert before_s <= latency.predict_prefill_s(500, 500) <= 1.01 * before_s


def test_a_new_epoch_keeps_the_old_fit_as_a_guess() -> None:
    latency = taught()
    before = latency.params()
    latency.new_epoch(500.0)
    assert latency.params() == pytest.approx(tuple(before), rel=0.1)
    assert not latency.observe_prefill(9.0, 1, 100, 0.01, 600.0)
    for index in range(40):  # the engine came back with twice the tensor parallelism
        new = 200 + index % 8 * 500
        latency.observe_prefill(prefill_s(1, new, new) / 2, 1, new, new * new / 1e6, 600.0)
    assert latency.predict_prefill_s(1_000, 1_000) == pytest.approx(prefill_s(1, 1_000, 1_000) / 2, rel=0.05)


def test_after_a_new_epoch_a_few_samples_weigh_as_much_as_all_before_it() -> None:
    latency = taught()
    latency.new_epoch(500.0)
    usual_s = latency.predict_transfer_s(1_000)
    for _ in range(COLD_SAMPLES + int(EPOCH_WEIGHT)):
        latency.observe_transfer(1.2 * usual_s, 1_000, 600.0)
    assert latency.predict_transfer_s(1_000) == pytest.approx(1.1 * usual_s, rel=0.03)


def test_relaxing_lets_all_that_was_learned_count_as_a_few_samples() -> None:
    fit = RecursiveLeastSquares((1.0,), memory=1_000.0)
    for _ in range(200):
        fit.observe((1.0,), 2.0)
    fit.relax(weight=8.0)
    assert fit.predict_s((1.0,)) == pytest.approx(2.0, rel=1e-3)
    for _ in range(8):
        fit.observe((1.0,), 2.4)
    assert fit.predict_s((1.0,)) == pytest.approx(2.2, rel=0.01)


def test_a_changed_worker_is_not_held_to_the_errors_before() -> None:
    """Invariant 4 of least_squares.py."""
    latency = taught()
    for _ in range(REGIME_RUN):
        latency.observe_prefill(3 * prefill_s(1, 800, 800), 1, 800, 0.64, WARM_AT_S)
    assert latency.predict_prefill_s(800, 800) == pytest.approx(3 * prefill_s(1, 800, 800), rel=0.01)
    assert latency.predict_prefill_s(4_000, 4_000) == pytest.approx(3 * prefill_s(1, 4_000, 4_000), rel=0.05)
    assert latency.prefill_margin() == 1.0


@pytest.mark.parametrize("duration_s", [math.nan, math.inf, -math.inf, -0.001, SECONDS_MAX * 1.01])
def test_what_is_no_duration_is_ignored(duration_s: float) -> None:
    latency = warm()
    assert not latency.observe_prefill(duration_s, 1, 100, 0.01, WARM_AT_S)
    assert not latency.observe_step(duration_s, 1, 100, 10, WARM_AT_S)
    assert not latency.observe_transfer(duration_s, 100, WARM_AT_S)
    assert latency.params() == PRIOR.params()
    assert latency.mean_abs_errors() == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("tokens", [math.nan, math.inf, -1.0, 1e20])
def test_work_that_cannot_be_is_a_bug(tokens: float) -> None:
    latency = warm()
    with pytest.raises(AssertionError):
        latency.observe_prefill(0.1, 1, tokens, 1.0, WARM_AT_S)
    with pytest.raises(AssertionError):
        latency.observe_step(0.1, 1, tokens, 10, WARM_AT_S)
    with pytest.raises(AssertionError):
        latency.observe_transfer(0.1, tokens, WARM_AT_S)
    with pytest.raises(AssertionError):
        latency.observe_prefill(0.1, 0, 100, 1.0, WARM_AT_S)
    with pytest.raises(AssertionError):
        latency.observe_step(0.1, 1, 100, 0, WARM_AT_S)


def test_a_transfer_that_took_no_time_is_a_sample() -> None:
    latency = warm()
    for _ in range(50):
        assert latency.observe_transfer(0.0, 1_000, WARM_AT_S)
    assert 0.0 <= latency.predict_transfer_s(1_000) < 0.001


def test_margins_stretch_what_was_predicted_too_short() -> None:
    latency = taught()
    assert latency.step_margin() == 1.0  # it has been right
    for index in range(WINDOW):  # every fifth step takes 1.4 times as long
        latency.observe_step(latency.predict_step_s(4, 0) * (1.4 if index % 5 == 0 else 1.0), 4, 0, 10, WARM_AT_S)
    assert latency.step_margin() == pytest.approx(1.39, abs=0.03)
    assert latency.prefill_margin() == 1.0


def test_the_margin_of_perfect_predictions_is_exactly_one_and_of_useless_ones_two() -> None:
    errors = PredictionErrors()
    assert errors.margin() == 1.0
    for _ in range(WINDOW):
        errors.record(0.1, 0.1009)
        errors.record(0.1, 0.05)
    assert errors.margin() == 1.0
    for _ in range(WINDOW // 5):
        errors.record(0.0, 7.0)
    assert errors.margin() == MARGIN_MAX
    errors.clear()
    assert (errors.margin(), errors.mean_abs_error) == (1.0, 0.0)


def test_the_mean_error_is_a_mean_and_one_sample_counts_no_more_than_tenfold() -> None:
    errors = PredictionErrors()
    errors.record(0.8, 1.0)
    errors.record(1.0, 1.0)
    assert errors.mean_abs_error == pytest.approx(0.1)
    errors.record(0.0, 0.0)
    assert errors.mean_abs_error == pytest.approx(0.2 / 3)
    errors.record(1.0, 0.0)
    assert errors.mean_abs_error == pytest.approx((0.2 + 10.0) / 4)
