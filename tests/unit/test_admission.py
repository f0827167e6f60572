"""The rules of router/admission/admission.py, one by one."""

from math import inf

import numpy as np
import pytest

from kvstore.types import RequestId
from router.admission.admission import Admit, Cause, Decision, Outlook, Reject, Rules, Standing, Wait, decide
from router.admission.appointments import Offer
from router.admission.demand import Aside
from router.admission.fairness import Share
from router.admission.queue import PoolWork, QueueEntry, WaitingQueue
from router.choice.decode_room import DecodeRoom

NOW_S = 100.0
RULES = Rules(margin=0.25, over_share_fill=0.5, lower_value_fill=0.8, top_value=2.0, max_queued=3)
CHAT = Standing(ttft_s=10.0, tpot_s=0.1, value=2.0, expires_at_s=NOW_S + 60.0, best_effort_ok=False)
BATCH = CHAT._replace(best_effort_ok=True)
OPEN = Outlook(ttft_s=1.0, cost_s=1.0, own_s=1.0)
BUSY = Outlook(ttft_s=5.0, cost_s=1.0, own_s=1.0, is_open=False)


def waiting(*cost_and_due_s: tuple[float, float | None]) -> WaitingQueue:
    queue = WaitingQueue(best_effort_every=1000)
    for number, (cost_s, due_s) in enumerate(cost_and_due_s):
        deadline_at_s = None if due_s is None else NOW_S + due_s
        queue.push(QueueEntry(RequestId(str(number)), "t", 1.0, cost_s, cost_s, deadline_at_s, NOW_S + 60.0))
    return queue


def decided(
    standing: Standing = CHAT,
    outlook: Outlook = OPEN,
    queue: WaitingQueue | None = None,
    *,
    free_in_s: float = 0.0,
    aside_s: float = 0.0,
    room: DecodeRoom | None = None,
    rules: Rules = RULES,
) -> Decision:
    aside = Aside(lambda at_s: np.full(len(at_s), aside_s), lambda at_s: np.ones(len(at_s)), 0.5) if aside_s else None
    pool = PoolWork(np.array([free_in_s]), aside, room)
    return decide(standing, outlook, queue or waiting(), pool, rules, NOW_S)


def room_for_one_in(in_s: float) -> DecodeRoom:
    """On one worker, where one sequence ends in a second; nowhere, if never."""
    return DecodeRoom(*([np.zeros(0)] * 2 if in_s == inf else [np.array([1.0 - in_s]), np.array([1.0])]))


def refused(decision: Decision) -> Reject:
    assert isinstance(decision, Reject)
    return decision


def test_an_open_worker_takes_it_with_a_promise() -> None:
    decision = decided()
    assert isinstance(decision, Admit) and decision.is_promised
    assert (decision.basis.predicted_ttft_s, decision.basis.allowed_ttft_s) == (1.0, 8.0)
    assert (decision.basis.wait_s, decision.basis.allowed_wait_s) == (0.0, 7.0)


def test_without_an_open_worker_it_waits_with_a_promise_while_the_wait_is_allowed() -> None:
    decision = decided(outlook=BUSY, free_in_s=6.9)
    assert isinstance(decision, Wait) and decision.is_promised
    reject = refused(decided(outlook=BUSY, free_in_s=7.1))
    assert (reject.cause, reject.ask_again_in_s) == (Cause.TTFT_INFEASIBLE, 0.0)
    assert reject.detail == "it would wait 7.100 s, allowed are 7.000 s of a target of 10 s"


def test_behind_another_promise_it_waits_even_if_a_worker_is_open() -> None:
    decision = decided(queue=waiting((1.0, 9.0)))
    assert isinstance(decision, Wait) and decision.is_promised
    assert decision.basis.num_ahead == 1
    assert isinstance(decided(queue=waiting((1.0, 11.0))), Admit)


def test_it_is_not_let_in_where_it_breaks_a_promise_behind_it() -> None:
    queue = waiting((8.0, 20.0))
    assert isinstance(decided(outlook=BUSY._replace(cost_s=2.0), queue=queue, free_in_s=4.0), Wait)
    for outlook in (BUSY._replace(cost_s=9.0, own_s=1.0), OPEN._replace(cost_s=13.0)):
        reject = refused(decided(outlook=outlook, queue=queue, free_in_s=4.0))
        assert reject.cause is Cause.TTFT_INFEASIBLE
        assert "a promise behind it would be late by" in reject.detail


def test_classes_of_less_value_and_tenants_over_their_share_leave_room() -> None:
    def most_wait_s(standing: Standing) -> float:
        return refused(decided(standing, BUSY, free_in_s=99.0)).basis.allowed_wait_s  # type: ignore[union-attr]

    assert most_wait_s(CHAT) == 7.0
    assert most_wait_s(CHAT._replace(value=1.0)) == pytest.approx(5.6)
    assert most_wait_s(CHAT._replace(share=Share.SHORT)) == 3.5
    assert most_wait_s(CHAT._replace(value=1.0, share=Share.SHORT)) == pytest.approx(2.8)
    assert most_wait_s(CHAT._replace(value=1.0, share=Share.OVER)) == pytest.approx(1.4)
    assert most_wait_s(CHAT._replace(value=1.0, share=Share.WITHIN)) == 7.0
    assert most_wait_s(CHAT._replace(value=1.0, share=Share.OVER, is_due=True)) == 9.0  # nor a margin


def test_an_idle_pool_takes_whatever_it_can_do_in_time_whoever_asks() -> None:
    poor = CHAT._replace(value=0.1, share=Share.OVER)
    assert isinstance(decided(poor, Outlook(7.9, 7.9, 7.9)), Admit)


def test_over_share_is_the_cause_only_where_another_tenant_would_be_let_in() -> None:
    greedy = CHAT._replace(share=Share.OVER)
    reject = refused(decided(greedy, BUSY, free_in_s=4.0))
    assert (reject.cause, reject.ask_again_in_s) == (Cause.OVER_SHARE, 0.0)
    assert refused(decided(greedy, BUSY, free_in_s=8.0)).cause is Cause.TTFT_INFEASIBLE


def test_whom_room_is_left_for_finds_slack_in_the_promises_too() -> None:
    """A promise behind the newcomer has 2 s left: it is kept, but half of the waiting room are 3 s."""
    queue = waiting((8.0, 20.0))
    newcomer = BUSY._replace(cost_s=10.0, own_s=2.0)
    assert isinstance(decided(outlook=newcomer, queue=queue), Wait)
    reject = refused(decided(CHAT._replace(share=Share.SHORT), newcomer, queue))
    assert reject.cause is Cause.OVER_SHARE
    assert "3.000 s are to be left for others" in reject.detail
    assert isinstance(decided(CHAT._replace(share=Share.WITHIN, value=1.0), newcomer, queue), Wait)


def test_work_set_aside_stands_in_the_way_of_newcomers_only() -> None:
    assert isinstance(decided(outlook=BUSY, free_in_s=4.0, aside_s=2.0), Wait)
    assert isinstance(decided(outlook=BUSY, free_in_s=4.0, aside_s=9.0), Reject)
    assert isinstance(decided(CHAT._replace(is_due=True), BUSY, free_in_s=6.0, aside_s=9.0), Wait)
    assert isinstance(decided(aside_s=99.0), Admit)  # no more than its share of the time
    assert isinstance(decided(outlook=OPEN._replace(ttft_s=5.0), aside_s=99.0), Reject)


def test_what_an_idle_worker_cannot_do_is_refused_for_good() -> None:
    reject = refused(decided(outlook=Outlook(8.1, 8.1, 8.1)))
    assert (reject.cause, reject.ask_again_in_s, reject.retry_after_s) == (Cause.TTFT_INFEASIBLE, None, None)
    assert reject.detail == (
        "its own work takes 8.100 s to the first token on an idle worker, the target is 10 s "
        "(8.000 s with the safety margin)"
    )
    reject = refused(decided(outlook=OPEN._replace(idle_tpot_s=0.11)))
    assert (reject.cause, reject.ask_again_in_s) == (Cause.TPOT_INFEASIBLE, None)
    assert reject.detail == "an idle worker takes 0.1100 s a token, the target is 0.1 s"


@pytest.mark.parametrize("standing", [BATCH, CHAT._replace(is_implicit=True)])
def test_what_cannot_be_promised_to_anybody_is_served_without_where_that_is_wanted(standing: Standing) -> None:
    slow = Outlook(8.1, 8.1, 8.1)
    decision = decided(standing, slow)
    assert isinstance(decision, Admit) and not decision.is_promised
    assert decision.cause is Cause.TTFT_INFEASIBLE
    decision = decided(standing, slow._replace(is_open=False))
    assert isinstance(decision, Wait) and not decision.is_promised
    assert "idle worker" in decision.detail


def test_who_asked_for_nothing_is_still_refused_for_load() -> None:
    assert refused(decided(CHAT._replace(is_implicit=True), BUSY, free_in_s=8.0)).cause is Cause.TTFT_INFEASIBLE


def test_best_effort_waits_where_there_is_no_promise_to_be_had() -> None:
    decision = decided(BATCH, BUSY, free_in_s=8.0)
    assert isinstance(decision, Wait) and not decision.is_promised
    assert (decision.cause, decision.basis.wait_s) == (Cause.TTFT_INFEASIBLE, 8.0)
    decision = decided(BATCH, queue=waiting((8.0, 9.0)), free_in_s=4.0)
    assert isinstance(decision, Wait) and not decision.is_promised, "not past those that wait"


def test_who_wants_no_target_gets_no_promise() -> None:
    anything = CHAT._replace(ttft_s=inf, tpot_s=inf)
    for decision, kind in ((decided(anything), Admit), (decided(anything, BUSY), Wait)):
        assert isinstance(decision, kind) and not isinstance(decision, Reject)
        assert not decision.is_promised and decision.cause is None
    only_tpot = decided(CHAT._replace(ttft_s=inf))
    assert isinstance(only_tpot, Admit) and only_tpot.is_promised


@pytest.mark.parametrize(
    ("room_in_s", "kv_is_short", "cause", "ask_again_in_s"),
    [
        (9.0, False, Cause.TPOT_INFEASIBLE, 1.0),
        (7.1, True, Cause.KV_FULL, 0.0),
        (inf, False, Cause.TPOT_INFEASIBLE, inf),
    ],
)
def test_room_in_decode_has_to_come_in_time(
    room_in_s: float, kv_is_short: bool, cause: Cause, ask_again_in_s: float
) -> None:
    full = BUSY._replace(kv_is_short=kv_is_short)
    room = room_for_one_in(room_in_s)
    reject = refused(decided(outlook=full, room=room))
    assert (reject.cause, reject.ask_again_in_s) == (cause, ask_again_in_s)
    assert reject.basis is not None and reject.basis.room_in_s == room_in_s
    waits = decided(BATCH, full, room=room)
    assert isinstance(waits, Wait) and not waits.is_promised, "it would harm those that run"


def test_room_in_decode_that_comes_in_time_is_waited_for() -> None:
    decision = decided(outlook=BUSY, room=room_for_one_in(6.5))
    assert isinstance(decision, Wait) and decision.is_promised
    assert decision.basis.predicted_ttft_s == 7.5


def test_room_in_decode_is_shared_with_those_ahead_and_those_who_come_back() -> None:
    one = DecodeRoom(np.array([1.0]), np.array([0.2]))  # and another in 5 s
    assert isinstance(decided(room=one), Admit)
    behind = decided(queue=waiting((0.0001, 9.0)), room=one)
    assert isinstance(behind, Wait) and behind.basis.room_in_s == pytest.approx(5.0, abs=0.02)
    beside = decided(aside_s=0.0001, room=one)
    assert isinstance(beside, Admit) and beside.basis.room_in_s == 5.0
    assert isinstance(decided(CHAT._replace(share=Share.OVER), aside_s=0.0001, room=one), Reject)
    assert isinstance(decided(CHAT._replace(share=Share.OVER, is_due=True), aside_s=0.0001, room=one), Admit)
    late = refused(decided(queue=waiting((0.0001, 12.0), (0.0001, 14.0), (0.0001, 14.5)), room=one))
    assert "a promise behind it would be late by" in late.detail


def test_the_queue_is_bounded() -> None:
    full = waiting((0.1, 50.0), (0.1, 50.0), (0.1, None))
    reject = refused(decided(outlook=BUSY, queue=full))
    assert (reject.cause, reject.ask_again_in_s) == (Cause.QUEUE_FULL, 0.0)
    assert reject.detail == "3 requests wait, allowed are 3 (slo.max_queued)"
    assert refused(decided(BATCH, BUSY, full)).cause is Cause.QUEUE_FULL
    assert isinstance(decided(queue=full), Admit), "it does not wait"


def test_a_request_whose_time_is_over_is_not_started() -> None:
    assert refused(decided(BATCH._replace(expires_at_s=NOW_S))).cause is Cause.DEADLINE_PASSED


def test_without_workers_nothing_is_promised() -> None:
    decision = decide(CHAT, BUSY, waiting(), PoolWork(np.zeros(0)), RULES, NOW_S)
    assert refused(decision).cause is Cause.TTFT_INFEASIBLE


def test_a_rejection_says_when_to_come_back_and_whether_a_place_is_kept() -> None:
    reject = refused(decided(outlook=BUSY, free_in_s=8.0))
    told = reject.with_offer(Offer(3, NOW_S + 3, True, "because"))
    assert (told.retry_after_s, told.has_place) == (3.0, True)
    assert told.detail == f"{reject.detail}; come back in 3 s, a place is kept (because)"
    assert "no place is kept" in reject.with_offer(Offer(3, NOW_S + 3, False, "because")).detail
