"""Invariants of router/admission/queue.py, router/admission/turns.py and router/admission/demand.py, by hand."""

from math import inf

import numpy as np
import pytest

from kvstore.types import RequestId
from router.admission.demand import Aside, Demand, Newcomer, PoolWork, Probe
from router.admission.queue import QueueEntry, WaitingQueue
from router.admission.turns import Turns

NO_END = 1e9


def entry(
    name: str,
    deadline_at_s: float | None = None,
    *,
    cost_s: float = 1.0,
    tenant: str = "t",
    weight: float = 1.0,
    expires_at_s: float = NO_END,
) -> QueueEntry:
    return QueueEntry(RequestId(name), tenant, weight, cost_s, cost_s, deadline_at_s, expires_at_s)


def queue_of(*entries: QueueEntry, every: int = 16) -> WaitingQueue:
    queue = WaitingQueue(every)
    for item in entries:
        queue.push(item)
    queue.validate()
    return queue


def names(queue: WaitingQueue, now_s: float = 0.0, limit: int = 100) -> str:
    return " ".join(item.request_id for item in queue.order(now_s, limit))


def pool(*free_in_s: float, aside: Aside | None = None) -> PoolWork:
    return PoolWork(np.array(free_in_s), aside)


def test_invariant_1_a_request_waits_once_and_leaves_once() -> None:
    queue = queue_of(entry("a", 5.0), entry("b"))
    with pytest.raises(AssertionError, match="invariant 1"):
        queue.push(entry("a", 6.0))
    assert RequestId("a") in queue and len(queue) == 2 and queue.num_promised == 1
    assert queue.remove(RequestId("a")) == entry("a", 5.0)
    assert queue.remove(RequestId("a")) is None
    queue.served(entry("b"))
    assert len(queue) == 0 and queue.next_expiry_s() is None
    queue.validate()


def test_a_request_without_work_is_refused() -> None:
    with pytest.raises(AssertionError, match="for nothing"):
        queue_of(entry("a", cost_s=0.0))


def test_invariant_2_promises_go_by_deadline_then_arrival() -> None:
    queue = queue_of(entry("late", 9.0), entry("first", 5.0), entry("second", 5.0), entry("soon", 1.0))
    assert names(queue) == "soon first second late"
    assert names(queue, limit=2) == "soon first"
    assert len(queue) == 4


def test_best_effort_goes_when_no_promise_waits_and_tenants_take_turns() -> None:
    queue = queue_of(
        entry("a1", tenant="a"),
        entry("a2", tenant="a"),
        entry("b1", tenant="b"),
        entry("b2", tenant="b"),
        entry("p", 9),
    )
    assert names(queue) == "p a1 b1 a2 b2"


def test_turns_are_by_work_for_weight() -> None:
    queue = queue_of(
        *[entry(f"a{i}", tenant="a", cost_s=2.0) for i in range(3)],
        *[entry(f"b{i}", tenant="b", cost_s=2.0, weight=2.0) for i in range(4)],
    )
    assert names(queue) == "a0 b0 b1 a1 b2 b3 a2"


def test_invariant_3_of_turns_absence_earns_nothing() -> None:
    queue = queue_of(*[entry(f"a{i}", tenant="a") for i in range(4)])
    for _ in range(3):
        queue.served(queue.order(0.0, 1)[0])
    queue.push(entry("b0", tenant="b"))
    queue.push(entry("b1", tenant="b"))
    queue.push(entry("a4", tenant="a"))
    assert names(queue) == "a3 b0 a4 b1"
    queue.validate()


def test_what_passes_the_queue_is_charged_too_but_only_against_those_that_wait() -> None:
    queue = WaitingQueue()
    queue.served(entry("x", tenant="a", cost_s=50.0))  # nobody was passed over
    for item in (entry("a0", tenant="a"), entry("b0", tenant="b"), entry("b1", tenant="b")):
        queue.push(item)
    assert names(queue) == "a0 b0 b1"
    queue.served(entry("y", tenant="a", cost_s=50.0))
    assert names(queue) == "b0 b1 a0"
    queue.served(entry("z", tenant="c", cost_s=1.5))
    queue.push(entry("c0", tenant="c"))
    assert names(queue) == "b0 b1 c0 a0"


def test_debts_of_tenants_that_do_not_wait_are_bounded() -> None:
    turns = Turns()
    turns.push(entry("w", tenant="w"))
    for number in range(10_001):
        turns.charge(entry("x", tenant=f"t{number}", cost_s=1.0 + number))
    assert len(turns._idle) == 5000
    assert min(turns._idle.values()) > 5000.0
    turns.validate()


def test_invariant_3_and_4_credit_lets_best_effort_go_first_once_in_k() -> None:
    queue = queue_of(*[entry(f"p{i}", 50.0 + i) for i in range(10)], entry("b0"), entry("b1"), every=4)
    assert names(queue) == "p0 p1 p2 b0 p3 p4 p5 b1 p6 p7 p8 p9"
    for _ in range(3):
        queue.served(queue.order(0.0, 1)[0])
    assert names(queue, limit=2) == "b0 p3"
    queue.served(queue.order(0.0, 1)[0])
    assert names(queue, limit=4) == "p3 p4 p5 b1"
    queue.validate()


def test_credit_is_for_those_that_wait_and_no_more_than_they_need() -> None:
    queue = queue_of(*[entry(f"p{i}", 50.0 + i) for i in range(8)], every=2)
    queue.served(queue.order(0.0, 1)[0])
    queue.push(entry("b", cost_s=2.0))
    assert names(queue, limit=3) == "p1 p2 b"
    for name in ("p1", "p2", "p3", "p4"):
        queue.served(next(item for item in queue.order(0.0, 100) if item.request_id == name))
    assert queue._credit_s == 2.0
    queue.remove(RequestId("b"))
    assert queue._credit_s == 0.0


def test_invariant_5_the_expired_are_not_served_and_leave_by_expire() -> None:
    queue = queue_of(entry("p", 2.0), entry("q", 9.0, expires_at_s=3.0), entry("r", 9.0), entry("b", expires_at_s=4.0))
    assert queue.next_expiry_s() == 2.0
    assert names(queue, 1.9) == "p q r b"
    assert names(queue, 2.0) == "q r b"
    assert names(queue, 3.0) == "r b"
    assert names(queue, 4.0) == "r"
    assert [item.request_id for item in queue.expire(3.0)] == ["p", "q"]
    queue.push(entry("p"))  # a broken promise may still be worth serving
    assert names(queue, 3.0) == "r b p"
    assert [item.request_id for item in queue.expire(4.0)] == ["b"]
    assert queue.next_expiry_s() == 9.0
    queue.validate()


def test_a_request_that_comes_again_is_not_taken_for_the_one_that_left() -> None:
    queue = queue_of(entry("a", 2.0))
    queue.remove(RequestId("a"))
    queue.push(entry("a", 8.0))
    assert queue.expire(5.0) == []
    assert queue.next_expiry_s() == 8.0


def test_what_has_left_does_not_pile_up() -> None:
    queue = WaitingQueue()
    for number in range(1000):
        queue.push(entry(str(number), 10.0))
        queue.remove(RequestId(str(number)))
    assert len(queue._limits) <= 66


def test_demand_before_is_the_work_with_no_later_deadline() -> None:
    queue = queue_of(entry("a", 1.0, cost_s=0.5), entry("b", 2.0, cost_s=0.25), entry("c", 3.0), entry("d"))
    assert [queue.demand_before(at_s) for at_s in (0.9, 1.0, 2.5, inf)] == [0.0, 0.5, 0.75, 1.75]


def test_fits_on_one_worker_is_exact_but_for_the_share_of_best_effort() -> None:
    queue = queue_of(entry("a", 4.0, cost_s=3.0), every=1000)
    assert queue.fits(1.0, 5.1, pool(1.0), 0.0)  # behind it: 1 + 3 + 1
    assert not queue.fits(1.0, 4.9, pool(1.0), 0.0)
    assert not queue.fits(0.1, 2.0, pool(1.0), 0.0)  # before it: it has no slack
    assert queue.fits(0.9, 2.0, pool(0.0), 0.0)
    assert not queue.fits(0.9, 2.0, pool(0.0), 0.0, own_s=2.5)
    assert not queue.fits(0.1, 99.0, pool(), 0.0)


def test_a_promise_that_is_lost_anyway_does_not_stand_in_the_way() -> None:
    queue = queue_of(entry("lost", 4.0, cost_s=3.0))
    assert queue.fits(0.5, 3.0, pool(0.0), now_s=1.5)
    assert not queue.fits(0.5, 3.0, pool(0.0), now_s=0.9)


def test_a_newcomer_starts_when_the_first_worker_is_free() -> None:
    assert pool(5.0, 1.0, 3.0).starts_in_s(np.array([0.0, 2.0, 4.0, 7.0])).tolist() == [1.0, 3.0, 4.0, 16.0 / 3.0]
    queue = WaitingQueue()
    assert queue.probe(Newcomer(1.0, 9.0, 8.0), pool(5.0, 1.0, 3.0), 0.0) == Probe(1.0, inf, 0, 0.0)
    assert queue.probe(Newcomer(1.0, inf, inf), pool(), 0.0) == Probe(inf, -inf, 0, 0.0)


def test_work_set_aside_counts_in_part_for_a_newcomer_and_in_full_for_those_that_were_promised() -> None:
    aside = Aside(lambda at_s: np.full(len(at_s), 6.0), lambda at_s: np.full(len(at_s), 2.0), share=0.5)
    queue = queue_of(entry("a", 20.0), every=1000)
    probe = queue.probe(Newcomer(1.0, 9.0, 8.0), pool(0.0, aside=aside), 0.0)
    assert (probe.start_in_s, probe.aside_s, probe.num_ahead) == (4.0, 4.0, 0)
    assert probe.least_slack_s == pytest.approx(19.0 - 6.0 - 1.0, abs=0.01)
    assert not queue.fits(14.0, 19.0, pool(0.0, aside=aside), 0.0)


def test_how_long_all_workers_may_be_busy() -> None:
    queue = queue_of(entry("a", 9.0, cost_s=3.0))
    assert queue.blocked_s(1) == pytest.approx(2.97)
    assert queue.blocked_s(2) == pytest.approx(2.7)
    assert queue.blocked_s(0) == inf
    queue.served(entry("a", 9.0, cost_s=3.0))
    assert queue.blocked_s(1) == pytest.approx(2.97)
    for number in range(1000):
        queue.served(entry(str(number), 9.0, cost_s=0.1))
    assert queue.blocked_s(1) == pytest.approx(0.099)


def test_invariant_1_of_demand_refuses_what_is_not_there() -> None:
    demand = Demand()
    assert (demand.add(2.0, 1, 1.0, 1.0), demand.add(1.0, 2, 1.0, 1.0), demand.add(2.0, 3, 1.0, 1.0)) == (0, 0, 2)
    assert demand.discard(2.0, 1) == 1
    with pytest.raises(AssertionError, match="invariant 1"):
        demand.discard(2.0, 2)
    assert demand.before_each(np.array([0.0, 1.0, 2.0])).tolist() == [0.0, 1.0, 2.0]
    assert demand.num_before_each(np.array([0.0, 1.0, 2.0])).tolist() == [0.0, 1.0, 2.0]
    assert Demand().before_each(np.array([1.0])).tolist() == Demand().num_before_each(np.array([1.0])).tolist() == [0.0]
