"""The queue against a list that is searched and sorted for every question; what it says will fit, against the clock."""

import heapq
from itertools import count, cycle
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.types import RequestId
from router.admission.demand import PoolWork
from router.admission.queue import QueueEntry, WaitingQueue

EVERY = 4
TENANTS = {"a": 1.0, "b": 1.0, "c": 3.0}
costs_s = st.sampled_from([0.25, 0.5, 1.0, 3.0])  # sums of these are exact


class Twin:
    """What waits, in order of arrival, and counters that are never cleaned up."""

    def __init__(self) -> None:
        self.entries: list[QueueEntry] = []
        self.counters: dict[str, float] = {}
        self.turn_since: dict[str, int] = {}
        self.lowest = 0.0
        self.credit_s = 0.0
        self.numbers = count()

    def waiting_tenants(self) -> set[str]:
        return {entry.tenant for entry in self.entries if entry.deadline_at_s is None}

    def push(self, entry: QueueEntry) -> None:
        waiting = self.waiting_tenants()
        self.entries.append(entry)
        if entry.deadline_at_s is None and entry.tenant not in waiting:
            floor = min((self.counters[tenant] for tenant in waiting), default=self.lowest)
            self.counters[entry.tenant] = max(self.counters.get(entry.tenant, 0.0), floor)
            self.turn_since[entry.tenant] = next(self.numbers)
            self.note_lowest()

    def note_lowest(self) -> None:
        """What a tenant is lifted to when nobody waits: where the last of those that waited left."""
        waiting = self.waiting_tenants()
        if waiting:
            self.lowest = min(self.counters[tenant] for tenant in waiting)

    def remove(self, entry: QueueEntry) -> None:
        self.entries.remove(entry)
        self.note_lowest()
        if not self.waiting_tenants():
            self.credit_s = 0.0

    def best_effort(self, counters: dict[str, float], entries: list[QueueEntry]) -> QueueEntry | None:
        heads = {entry.tenant: entry for entry in reversed(entries) if entry.deadline_at_s is None}
        return min(heads.values(), key=lambda e: (counters[e.tenant], self.turn_since[e.tenant]), default=None)

    def served(self, entry: QueueEntry) -> None:
        head = self.best_effort(self.counters, self.entries)
        self.credit_s = earned(self.credit_s, entry, head)
        if entry.deadline_at_s is None:
            self.counters[entry.tenant] += entry.cost_s / entry.weight
            self.note_lowest()
        self.remove(entry)

    def order(self, now_s: float) -> list[QueueEntry]:
        entries = [entry for entry in self.entries if entry.limit_at_s > now_s]
        counters, credit_s, ordered = dict(self.counters), self.credit_s, list[QueueEntry]()
        while entries:
            head = self.best_effort(counters, entries)
            promised = [entry for entry in entries if entry.deadline_at_s is not None]
            if head is not None and (not promised or credit_s >= head.cost_s):
                following = head
                counters[head.tenant] += head.cost_s / head.weight
            else:
                following = min(promised, key=lambda entry: entry.deadline_at_s or 0.0)  # of equals the first
            credit_s = earned(credit_s, following, head)
            ordered.append(following)
            entries.remove(following)
        return ordered


def earned(credit_s: float, entry: QueueEntry, head: QueueEntry | None) -> float:
    if entry.deadline_at_s is None:
        return max(0.0, credit_s - entry.cost_s)
    if head is None:
        return 0.0
    return min(credit_s + 1.0 / (EVERY - 1) * entry.cost_s, max(credit_s, head.cost_s))


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue, self.twin, self.now_s = WaitingQueue(EVERY), Twin(), 0.0
        self.numbers = count()

    @rule(
        tenant=st.sampled_from(sorted(TENANTS)),
        cost_s=costs_s,
        in_s=st.none() | st.integers(0, 12),
        expires_in_s=st.integers(1, 20),
    )
    def arrives(self, tenant: str, cost_s: float, in_s: int | None, expires_in_s: int) -> None:
        request_id = RequestId(str(next(self.numbers)))
        deadline_at_s = None if in_s is None else self.now_s + in_s
        entry = QueueEntry(
            request_id, tenant, TENANTS[tenant], cost_s, cost_s, deadline_at_s, self.now_s + expires_in_s
        )
        self.queue.push(entry)
        self.twin.push(entry)

    @precondition(lambda self: self.twin.entries)
    @rule(data=st.data())
    def is_cancelled(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.twin.entries))
        assert self.queue.remove(entry.request_id) == entry
        self.twin.remove(entry)

    @precondition(lambda self: self.twin.entries)
    @rule(place=st.integers(0, 2))
    def a_worker_takes_one(self, place: int) -> None:
        """Mostly the first; the core skips one whose worker is busy."""
        ordered = self.queue.order(self.now_s, place + 1)
        if ordered:
            self.queue.served(ordered[-1])
            self.twin.served(ordered[-1])

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule()
    def expired_ones_leave(self) -> None:
        """Invariant 5; invariant 1: each once."""
        gone = [entry for entry in self.twin.entries if entry.limit_at_s <= self.now_s]
        expired = self.queue.expire(self.now_s)
        assert sorted(expired, key=lambda e: e.request_id) == sorted(gone, key=lambda e: e.request_id)
        assert [e.limit_at_s for e in expired] == sorted(e.limit_at_s for e in expired)
        for entry in expired:
            self.twin.remove(entry)

    @rule(deadline=st.integers(0, 15))
    def demand_is_the_sum(self, deadline: int) -> None:
        at_s = self.now_s + deadline
        promised = [e for e in self.twin.entries if e.deadline_at_s is not None and e.deadline_at_s <= at_s]
        assert self.queue.demand_before(at_s) == sum(entry.cost_s for entry in promised)

    @invariant()
    def the_order_is_the_twins(self) -> None:
        """Invariants 2 to 5: never an expired one, promises by deadline, best effort by turn and credit."""
        ordered = self.queue.order(self.now_s, 1000)
        assert [e.request_id for e in ordered] == [e.request_id for e in self.twin.order(self.now_s)]
        assert self.queue.order(self.now_s, 3) == ordered[:3]
        assert all(entry.limit_at_s > self.now_s for entry in ordered)
        assert self.queue.next_expiry_s() == min((e.limit_at_s for e in self.twin.entries), default=None)
        assert self.queue._credit_s == self.twin.credit_s
        self.queue.validate()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40)


@given(
    promised_s=st.lists(costs_s, min_size=1, max_size=8),
    heads=st.lists(st.tuples(st.sampled_from(sorted(TENANTS)), costs_s), min_size=1, max_size=8),
)
def test_invariant_4_a_best_effort_request_waits_for_a_bounded_amount_of_promised_work(
    promised_s: list[float], heads: list[tuple[str, float]]
) -> None:
    """Nobody starves though promises come without end: each tenant with a waiting request is served."""
    queue = WaitingQueue(EVERY)
    for number, (tenant, cost_s) in enumerate(heads):
        queue.push(QueueEntry(RequestId(f"b{number}"), tenant, TENANTS[tenant], cost_s, cost_s, None, inf))
    passed_s, left = 0.0, len(heads)
    for number, cost_s in enumerate(cycle(promised_s)):
        queue.push(QueueEntry(RequestId(f"p{number}"), "p", 1.0, cost_s, cost_s, 1.0 + number, inf))
        head, entry = queue._turns.head(), queue.order(0.0, 1)[0]
        queue.served(entry)
        if head is None:
            break
        if entry.deadline_at_s is None:
            assert entry == head
            passed_s, left = 0.0, left - 1
        else:
            passed_s += entry.cost_s
            assert passed_s < (EVERY - 1) * head.cost_s + entry.cost_s + 1e-9
    assert left == 0


pools = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, 7.0]), min_size=1, max_size=4)
items = st.lists(st.tuples(costs_s, st.integers(1, 40)), max_size=8)


def naive_start_s(free_in_s: list[float], work_s: float) -> float:
    """By trying: the first instant by which the workers have done so much work, after what was sent to them."""
    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        if sum(max(0.0, middle - free) for free in free_in_s) >= work_s and middle >= min(free_in_s):
            high = middle
        else:
            low = middle
    return high


@given(free_in_s=pools, waiting=items, cost_s=costs_s, due_s=st.integers(1, 40), own_s=st.none() | costs_s)
def test_fits_is_what_serving_by_deadline_on_the_pool_gives(
    free_in_s: list[float], waiting: list[tuple[float, int]], cost_s: float, due_s: int, own_s: float | None
) -> None:
    queue, now_s = WaitingQueue(EVERY), 100.0
    everything = []
    for number, (item_cost_s, item_due_s) in enumerate(waiting):
        name, at_s = RequestId(str(number)), now_s + item_due_s
        queue.push(QueueEntry(name, "t", 1.0, item_cost_s, item_cost_s, at_s, inf))
        everything.append((at_s, number, item_cost_s, item_cost_s))
    own_s = cost_s if own_s is None else own_s
    new = (now_s + due_s, len(waiting), cost_s, own_s)
    slacks = []
    work_s = 0.0
    for at_s, number, item_cost_s, item_own_s in sorted([*everything, new]):
        room_s = at_s - item_own_s - now_s
        if (at_s, number) >= new[:2] and (number == len(waiting) or room_s >= 0.0):
            slacks.append(room_s - naive_start_s(free_in_s, work_s))
        work_s += item_cost_s * EVERY / (EVERY - 1)
    if abs(min(slacks)) > 1e-6:
        assert queue.fits(cost_s, new[0], PoolWork(np.array(free_in_s)), now_s, own_s) == (min(slacks) > 0)


@pytest.mark.parametrize("every", [2, 16])
@given(
    free_in_s=pools,
    arrivals=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 2.0]), costs_s, st.integers(1, 12)), max_size=40),
    best_effort=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 2.0]), costs_s), max_size=15),
)
def test_what_fits_is_served_in_time_by_real_workers_whatever_comes_later(
    every: int,
    free_in_s: list[float],
    arrivals: list[tuple[float, float, int]],
    best_effort: list[tuple[float, float]],
) -> None:
    """Invariant 3: several workers, no interruption, best effort in between, more promises coming."""
    queue = WaitingQueue(every)
    events: list[tuple[float, int, QueueEntry | None]] = []
    numbers = count()
    for promised, gaps in ((True, arrivals), (False, [(gap_s, cost_s, 0) for gap_s, cost_s in best_effort])):
        at_s = 0.0
        for gap_s, cost_s, due_s in gaps:
            at_s, number = at_s + gap_s, next(numbers)
            deadline_at_s = at_s + due_s if promised else None
            entry = QueueEntry(RequestId(str(number)), "t", 1.0, cost_s, cost_s, deadline_at_s, inf)
            heapq.heappush(events, (at_s, number, entry))
    free_at_s = list(free_in_s)
    for at_s in free_at_s:
        heapq.heappush(events, (at_s, next(numbers), None))
    while events:
        now_s, _, arriving = heapq.heappop(events)
        if arriving is not None:
            pool = PoolWork(np.maximum(np.array(free_at_s) - now_s, 0.0))
            if arriving.deadline_at_s is None or queue.fits(arriving.cost_s, arriving.deadline_at_s, pool, now_s):
                queue.push(arriving)
        while min(free_at_s) <= now_s and (ordered := queue.order(now_s, 1)):
            (entry,) = ordered
            queue.served(entry)
            free_at_s[free_at_s.index(min(free_at_s))] = now_s + entry.cost_s
            heapq.heappush(events, (now_s + entry.cost_s, next(numbers), None))
            assert entry.deadline_at_s is None or now_s + entry.cost_s <= entry.deadline_at_s + 1e-6
    assert len(queue) == 0
