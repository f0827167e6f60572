"""Predicted seconds, and the choice that they make."""

from collections import Counter
from random import Random

import pytest

from router.cost import LatencyPrior, decode_step_s, forecast_hand_off, forecast_local, prefill_queue_s
from router.policy import LeastPredictedWork
from router.types import Forecast
from tests.builders import make_candidate, make_decode, make_prefill, make_request, make_worker

PRIOR = LatencyPrior(prefill_tokens_per_s=1000.0, decode_step_s=0.1, decode_step_per_seq_s=0.01, transfer_s=0.5)
IDLE = make_candidate(make_worker())


def policy(seed: int = 0) -> LeastPredictedWork:
    return LeastPredictedWork(Random(seed), PRIOR)


def test_a_forecast_is_the_sum_of_its_causes() -> None:
    assert Forecast(queue_s=1.0, prefill_s=0.5, transfer_s=0.25).ttft_s == 1.75


def test_the_queue_is_what_was_promised_and_what_the_engine_reports() -> None:
    assert prefill_queue_s(IDLE, PRIOR) == 0.0
    assert prefill_queue_s(make_candidate(make_worker(), reserved_prefill_tokens=500), PRIOR) == pytest.approx(0.5)
    assert prefill_queue_s(make_candidate(make_worker(waiting_seqs=3)), PRIOR) == pytest.approx(0.3)


@pytest.mark.parametrize(("reserved", "running", "expected_s"), [(0, 0, 0.1), (2, 0, 0.12), (0, 3, 0.13), (2, 3, 0.13)])
def test_a_sequence_is_not_counted_as_promised_and_as_running(reserved: int, running: int, expected_s: float) -> None:
    candidate = make_candidate(make_worker(running_seqs=running), reserved_seqs=reserved)
    assert decode_step_s(candidate, PRIOR) == pytest.approx(expected_s)


def test_a_local_prefill_waits_for_the_prompts_before_it_and_transfers_nothing() -> None:
    decode = make_candidate(make_worker(), reserved_prefill_tokens=200, reserved_seqs=1)
    forecast = forecast_local(make_request(num_prompt_tokens=400), decode, PRIOR)
    assert forecast.queue_s == pytest.approx(0.2 + 0.11)
    assert forecast.prefill_s == pytest.approx(0.4)
    assert forecast.transfer_s == 0.0


def test_a_hand_off_waits_on_the_prefill_worker_and_pays_for_the_transfer() -> None:
    prefill = make_candidate(make_prefill(), reserved_prefill_tokens=300)
    decode = make_candidate(make_decode(), reserved_prefill_tokens=9_000, reserved_seqs=2)
    forecast = forecast_hand_off(make_request(num_prompt_tokens=400), prefill, decode, PRIOR)
    assert forecast.queue_s == pytest.approx(0.3 + 0.12)
    assert forecast.prefill_s == pytest.approx(0.4)
    assert forecast.transfer_s == 0.5


def test_nobody_can_decode() -> None:
    assert policy().choose(make_request(), [make_candidate(make_prefill())], []) is None


def test_the_least_busy_pair_wins() -> None:
    prefill = [make_candidate(make_prefill("p1"), reserved_prefill_tokens=50), make_candidate(make_prefill("p2"))]
    decode = [make_candidate(make_decode("d1")), make_candidate(make_decode("d2"), reserved_seqs=5)]
    for seed in range(5):
        choice = policy(seed).choose(make_request(), prefill, decode)
        assert choice is not None
        assert choice.prefill is not None
        assert (choice.prefill.spec.id, choice.decode.spec.id) == ("p2", "d1")


def test_the_choice_carries_the_forecast_that_won() -> None:
    decode = [make_candidate(make_worker("m1"), reserved_seqs=5), make_candidate(make_worker("m2"))]
    choice = policy().choose(make_request(), [], decode)
    assert choice is not None
    assert choice.forecast == forecast_local(make_request(), decode[1], PRIOR)


def test_a_decode_worker_does_its_own_prefill_only_without_a_prefill_worker() -> None:
    busy = make_candidate(make_prefill(), reserved_prefill_tokens=1_000_000)
    decode = [make_candidate(make_decode())]
    with_pool = policy().choose(make_request(), [busy], decode)
    without = policy().choose(make_request(), [], decode)
    assert with_pool is not None
    assert without is not None
    assert with_pool.prefill is busy.worker
    assert without.prefill is None


def test_a_mixed_worker_prefills_for_itself_and_competes_with_the_pairs() -> None:
    mixed = make_candidate(make_worker("m1"))
    decode = [make_candidate(make_decode()), mixed]
    idle_pair = policy().choose(make_request(), [make_candidate(make_prefill())], decode)
    assert idle_pair is not None
    assert (idle_pair.prefill, idle_pair.decode) == (None, mixed.worker)  # no transfer to pay for
    busy_mixed = [decode[0], make_candidate(make_worker("m1"), reserved_prefill_tokens=5_000)]
    pair = policy().choose(make_request(), [make_candidate(make_prefill())], busy_mixed)
    assert pair is not None
    assert pair.decode.spec.id == "decode-1"
    assert pair.prefill is not None


def test_equals_share_the_load_and_the_seed_decides() -> None:
    decode = [make_candidate(make_worker(f"m{i}")) for i in range(4)]

    def choices(seed: int) -> list[str]:
        chooser = policy(seed)
        picked = [chooser.choose(make_request(), [], decode) for _ in range(400)]
        return [choice.decode.spec.id for choice in picked if choice is not None]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)
    assert min(Counter(choices(1)).values()) > 60
    assert len(Counter(choices(1))) == 4
