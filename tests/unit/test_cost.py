"""Predicted seconds, term by term, against the formulas of router/choice/cost.py."""

import numpy as np
import pytest

from kvstore.types import RequestId, WorkerId
from router.choice.cost import Costs, exchange_rate
from router.choice.terms import HOST_FETCH_S_PER_TOKEN
from router.fleet.prefill_work import PrefillWork
from router.latency import LatencyParams
from router.types import NO_OVERLAP, UNPROMISED, Slo
from tests.builders import make_decode, make_overlap, make_prefill, make_request, make_table, make_view, make_worker

PARAMS = LatencyParams(c0=0.01, c1=0.2, c2=0.005, d0=0.02, d1=0.001, d2=0.0002, t0=0.003, t1=0.05)
PROMPT = 3200
WHOLE_PREFILL_S = 0.01 + 0.2 * 3.2 + 0.005 * 3200 * 3200 / 1e6


def test_a_local_way_is_queue_prefill_and_one_step() -> None:
    table = make_table(make_worker(), params=PARAMS)
    table.promise_prefill(WorkerId("mixed-1"), RequestId("x"), PrefillWork(1, 0.0, 0.5), 0.0, is_observed=True)
    forecast = Costs(make_view(table, make_request(num_prompt_tokens=PROMPT)), 8).forecast(None, 0)
    assert forecast.queue_s == pytest.approx(0.5)
    assert forecast.prefill_s == pytest.approx(WHOLE_PREFILL_S)
    assert forecast.step_s == pytest.approx(0.02 + 0.001 + 0.0002 * 3.2)
    assert (forecast.transfer_s, forecast.fetch_s, forecast.harm_s, forecast.overlap_tokens) == (0, 0, 0, 0)
    assert forecast.ttft_s == pytest.approx(0.5 + WHOLE_PREFILL_S + 0.02164)
    assert forecast.cost_s == forecast.ttft_s


def test_cached_blocks_are_not_computed_but_the_last_token_is() -> None:
    table = make_table(make_worker(), params=PARAMS)
    for blocks, cached in ((10, 320), (100, 3168)):
        view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap({0: blocks}))
        forecast = Costs(view, 8).forecast(None, 0)
        new = PROMPT - cached
        assert forecast.overlap_tokens == cached
        assert forecast.prefill_s == pytest.approx(0.01 + 0.2 * new / 1e3 + 0.005 * new * PROMPT / 1e6)


def test_a_lower_tier_costs_its_fetch() -> None:
    table = make_table(make_worker(), params=PARAMS)
    table.set_slots(WorkerId("mixed-1"), (0, 7, -1))
    view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap({0: 10, 7: 50}))
    forecast = Costs(view, 8).forecast(None, 0)
    assert forecast.overlap_tokens == 1600
    assert forecast.fetch_s == pytest.approx((1600 - 320) * HOST_FETCH_S_PER_TOKEN)


def test_a_hand_off_moves_only_what_the_decode_worker_has_not() -> None:
    table = make_table(make_prefill(), make_decode(), params=PARAMS)
    view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap({1: 10}))
    forecast = Costs(view, 8).forecast(0, 0)
    assert forecast.overlap_tokens == 0
    assert forecast.prefill_s == pytest.approx(WHOLE_PREFILL_S)
    assert forecast.transfer_s == pytest.approx(0.003 + 0.05 * (3200 - 320) / 1e3)


def test_harm_is_what_the_running_sequences_lose() -> None:
    table = make_table(make_worker(running_seqs=10), params=PARAMS)
    forecast = Costs(make_view(table, make_request(num_prompt_tokens=PROMPT)), shared_steps=8).forecast(None, 0)
    stall_s = 10 * 0.2 * 3.2  # the prior's stall is the prefill rate
    slow_down_s = (0.001 + 0.0002 * 3.2) * 10 * 8
    assert forecast.harm_s == pytest.approx(stall_s + slow_down_s)


def test_harm_of_a_hand_off_is_only_the_longer_step() -> None:
    table = make_table(make_prefill(), make_worker("d", running_seqs=10), params=PARAMS)
    forecast = Costs(make_view(table, make_request(num_prompt_tokens=PROMPT)), shared_steps=8).forecast(0, 0)
    assert forecast.harm_s == pytest.approx((0.001 + 0.0002 * 3.2) * 10 * 8)


def test_slots_that_came_after_the_match_hold_nothing() -> None:
    table = make_table(*(make_worker(f"w{i}") for i in range(3)), params=PARAMS)
    view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap({0: 5}))
    assert view.decode.device_tokens.tolist() == [160.0, 0.0, 0.0]
    assert make_view(table, overlap=NO_OVERLAP).decode.device_tokens.tolist() == [0.0] * 3


def test_many_holders_and_few_are_read_alike() -> None:
    table = make_table(*(make_worker(f"w{i:03}") for i in range(100)), params=PARAMS)
    depths = {i: 1 + i % 7 for i in range(100)}
    view = make_view(table, make_request(num_prompt_tokens=PROMPT), make_overlap(depths))
    assert view.decode.device_tokens.tolist() == [32.0 * depths[i] for i in range(100)]


def test_promises_are_kept_when_the_longer_step_stays_within_the_tightest_of_them() -> None:
    table = make_table(make_worker("a", running_seqs=4), make_worker("b", running_seqs=4), params=PARAMS)
    step_s = 0.02 + 0.001 * 5 + 0.0002 * 0.1
    table.promise_seq(WorkerId("a"), 0, step_s - 1e-6)
    table.promise_seq(WorkerId("b"), 0, step_s + 1e-6)
    view = Costs(make_view(table), 8)
    assert list(view.keeps_promises(1.0)) == [False, True]
    assert list(view.keeps_promises(step_s - 1e-6)) == [False, False]
    table.step_margin[:] = 1.5
    assert list(Costs(make_view(table), 8).keeps_promises(1.0)) == [False, False]
    assert list(Costs(make_view(table), 8).keeps_promises(1.0, with_margin=False)) == [False, True]


def test_room_is_for_prompt_and_answer_and_an_idle_worker_always_has_it() -> None:
    table = make_table(make_worker("busy", running_seqs=1), make_worker("idle"), params=PARAMS)
    table.kv_total_tokens[:] = 1000.0
    table.promise_seq(WorkerId("busy"), 600, np.inf)
    view = Costs(make_view(table), 8)
    assert list(view.has_room(400)) == [True, True]
    assert list(view.has_room(401)) == [False, True]


def test_speculation_yields_several_tokens_a_step_and_so_allows_longer_steps() -> None:
    table = make_table(make_worker("a", running_seqs=4), params=PARAMS)
    step_s = 0.02 + 0.001 * 5 + 0.0002 * 0.1
    assert list(Costs(make_view(table), 8).keeps_promises(step_s / 2)) == [False]
    table.set_tokens_per_step(WorkerId("a"), 2.5)
    costs = Costs(make_view(table), 8)
    assert list(costs.keeps_promises(step_s / 2)) == [True]
    assert costs.forecast(None, 0).tpot_s == pytest.approx(step_s / 2.5)
    assert costs.forecast(None, 0).step_s == pytest.approx(step_s)


def test_a_second_of_harm_is_worth_what_it_uses_up_of_a_target() -> None:
    assert exchange_rate(Slo(1.0, 0.05), 200) == pytest.approx(0.1)
    assert exchange_rate(Slo(100.0, 0.05), 200) == 1.0
    assert exchange_rate(Slo(0.1, 1.0), 1000) == pytest.approx(0.03)
    assert exchange_rate(UNPROMISED.slo, 200) == pytest.approx(0.1)
    table = make_table(make_worker(running_seqs=10), params=PARAMS)
    view = make_view(table, make_request(num_prompt_tokens=PROMPT))
    whole, tenth = Costs(view, 8).forecast(None, 0), Costs(view, 8, 0.1).forecast(None, 0)
    assert tenth.harm_s == pytest.approx(whole.harm_s / 10)
    assert tenth.ttft_s == whole.ttft_s


def test_prompts_in_the_same_steps_lengthen_the_gaps_between_tokens() -> None:
    table = make_table(make_worker(), params=PARAMS)
    table.set_prompt_tokens_per_step(WorkerId("mixed-1"), 100.0)
    forecast = Costs(make_view(table), 8).forecast(None, 0)
    assert forecast.tpot_s == pytest.approx(forecast.step_s + 0.2 * 0.1)


def test_blocks_that_are_held_need_no_room() -> None:
    table = make_table(make_worker(running_seqs=1), params=PARAMS)
    table.kv_total_tokens[:] = 1000.0
    request = make_request(num_prompt_tokens=1100)
    assert list(Costs(make_view(table, request), 8).has_room(1110)) == [False]
    assert list(Costs(make_view(table, request, make_overlap({0: 30})), 8).has_room(1110)) == [True]
