"""The choice that predicted seconds make."""

from collections import Counter
from random import Random

import pytest

from kvstore.types import RequestId, WorkerId
from router.choice.chooser import Chooser, Chosen, HandOff
from router.choice.policy import LeastCost
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.latency import LatencyParams
from router.types import NO_OVERLAP, Choice, Overlap, ReplicaReport
from tests.builders import (
    make_decode,
    make_overlap,
    make_prefill,
    make_request,
    make_table,
    make_terms,
    make_worker,
)

PARAMS = LatencyParams(c0=0.01, c1=0.2, c2=0.0, d0=0.02, d1=0.001, d2=0.0, t0=0.003, t1=0.05)


def choose(
    table: FleetTable,
    *,
    num_prompt_tokens: int = 1000,
    overlap: Overlap = NO_OVERLAP,
    hand_off: HandOff = "cost",
    seed: int = 0,
    can_hand_off: bool = True,
    excluded: tuple[str, ...] = (),
    tpot_s: float = 10.0,
) -> Chosen:
    # With 100 tokens to come, a second of harm is worth a second of TTFT.
    terms = make_terms(ttft_s=100 * tpot_s, tpot_s=tpot_s)
    request = make_request(num_prompt_tokens=num_prompt_tokens, can_hand_off=can_hand_off, terms=terms)
    chooser = Chooser(table, LeastCost(Random(seed)), hand_off)
    return chooser.choose(
        request, overlap, [WorkerId(name) for name in excluded], now_s=0.0, expected_output_tokens=100
    )


def best(chosen: Chosen) -> Choice:
    assert chosen.choice is not None
    return chosen.choice


def busy(table: FleetTable, worker_id: str, work_s: float) -> None:
    table.promise_prefill(
        WorkerId(worker_id), RequestId(f"on {worker_id}"), PrefillWork(1, 0.0, work_s), 0.0, is_observed=True
    )


def way(chosen: Chosen) -> tuple[str | None, str]:
    choice = best(chosen)
    return choice.prefill.spec.id if choice.prefill else None, choice.decode.spec.id


def test_nobody_can_decode() -> None:
    chosen = choose(make_table(make_prefill(), params=PARAMS))
    assert (chosen.choice, chosen.num_eligible) == (None, 0)


def test_an_idle_decode_worker_prefills_for_itself() -> None:
    assert way(choose(make_table(make_prefill(), make_decode(), params=PARAMS))) == (None, "decode-1")


def test_a_decode_worker_with_sequences_hands_the_prompt_to_the_prefill_pool() -> None:
    table = make_table(make_prefill(), make_worker("d", running_seqs=8), params=PARAMS)
    assert way(choose(table)) == ("prefill-1", "d")


def test_a_cached_prompt_is_prefilled_where_it_is_cached() -> None:
    table = make_table(make_prefill(), make_worker("d", running_seqs=8), params=PARAMS)
    assert way(choose(table, overlap=make_overlap({1: 31}))) == (None, "d")


def test_a_congested_prefill_pool_is_avoided() -> None:
    table = make_table(make_prefill(), make_worker("d", running_seqs=8), params=PARAMS)
    busy(table, "prefill-1", 5.0)
    assert way(choose(table)) == (None, "d")


@pytest.mark.parametrize(("hand_off", "expected"), [("always", "prefill-1"), ("never", None), ("cost", None)])
def test_the_operator_may_fix_whether_prompts_are_handed_off(hand_off: HandOff, expected: str | None) -> None:
    table = make_table(make_prefill(), make_decode(), params=PARAMS)
    assert way(choose(table, hand_off=hand_off))[0] == expected


def test_what_cannot_be_handed_off_is_not() -> None:
    table = make_table(make_prefill(), make_decode(), params=PARAMS)
    assert way(choose(table, hand_off="always", can_hand_off=False))[0] is None


def test_overlap_is_worth_its_prefill_seconds_and_no_more() -> None:
    table = make_table(make_worker("holds"), make_worker("idle"), params=PARAMS)
    overlap = make_overlap({0: 25})  # 800 of 1000 tokens: 0.16 s
    assert way(choose(table, overlap=overlap))[1] == "holds"
    busy(table, "holds", 0.14)
    assert way(choose(table, overlap=overlap))[1] == "holds"
    busy2 = make_table(make_worker("holds"), make_worker("idle"), params=PARAMS)
    busy(busy2, "holds", 0.2)
    assert way(choose(busy2, overlap=overlap))[1] == "idle"


def test_workers_that_failed_the_request_are_left_out() -> None:
    table = make_table(make_worker("a"), make_worker("b"), params=PARAMS)
    assert {way(choose(table, excluded=("a",), seed=seed))[1] for seed in range(10)} == {"b"}


def test_near_equals_share_the_load() -> None:
    table = make_table(*(make_worker(f"m{i}") for i in range(4)), params=PARAMS)
    policy = LeastCost(Random(3))
    chooser = Chooser(table, policy, "cost")
    picks = Counter(
        best(chooser.choose(make_request(), NO_OVERLAP, (), now_s=0.0, expected_output_tokens=10)).decode.spec.id
        for _ in range(400)
    )
    assert len(picks) == 4
    assert min(picks.values()) > 60


def test_with_other_routers_near_is_as_wide_as_what_they_may_have_done_meanwhile() -> None:
    table = make_table(*(make_worker(f"m{i}") for i in range(8)), params=PARAMS)
    for i in range(1, 8):
        busy(table, f"m{i}", 0.05)
    alone = {way(choose(table, seed=seed))[1] for seed in range(30)}
    assert alone == {"m0"}
    table.set_remote([ReplicaReport(f"r{i}", ()) for i in range(15)], 16, 0.0)
    assert len({way(choose(table, seed=seed))[1] for seed in range(30)}) == 8


def test_a_worker_where_a_promise_would_break_is_left_out_and_counted() -> None:
    table = make_table(make_worker("a", running_seqs=3), make_worker("b", running_seqs=4), params=PARAMS)
    step_with_one_more_s = 0.02 + 0.001 * 4
    chosen = choose(table, tpot_s=step_with_one_more_s + 1e-9)
    assert way(chosen)[1] == "a"
    assert (chosen.num_eligible, chosen.num_tpot_blocked) == (2, 1)
    assert choose(table, tpot_s=0.001).choice is None


def test_an_explanation_names_the_chosen_way_first_and_its_rivals() -> None:
    table = make_table(
        make_prefill("p1"), make_prefill("p2"), make_worker("d1", running_seqs=8), make_worker("d2", running_seqs=9),
        params=PARAMS,
    )  # fmt: skip
    chosen = choose(table)
    choice, rivals = best(chosen), chosen.rivals()
    first = rivals[0]
    assert (first.prefill, first.decode) == (choice.prefill and choice.prefill.spec.id, choice.decode.spec.id)
    assert first.forecast == choice.forecast
    ways = {(item.prefill, item.decode) for item in rivals}
    assert {(None, "d1"), (None, "d2")} <= ways
    assert {prefill for prefill, _ in ways} == {None, "p1", "p2"}
    assert len(ways) == len(rivals)
    assert choice.num_candidates == 4
