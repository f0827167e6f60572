"""The requests of one model pool that wait for a worker, in serving order. Pure.

Promised requests go by deadline (EDF). Best-effort requests go when no promise waits, tenants taking turns
(`turns.py`). So that they never starve, promises are given on (k-1)/k of the pool only (k = `best_effort_every`):
promised work that is served while a best-effort request waits earns it credit, one part in k-1, and when the credit
covers the cost of the next best-effort request, that one goes first. `probe` counts this as if one were always waiting.

Invariants
 1. A request is here at most once, promised or best effort, until exactly one of `served`, `remove`, `expire` ends it.
 2. Promised requests are ordered by deadline, then arrival.
 3. A promised request waits for promises with no later deadline, and for best-effort work of at most the credit there
    was when it came plus one part in k-1 of that promised work.
 4. The next best-effort request waits for promised work of at most (k-1) times its cost, and the one under way.
 5. What has expired is never in the serving order, whether or not `expire` has been called.
"""

import heapq
from collections.abc import Iterator
from itertools import islice

from kvstore.types import RequestId
from router.admission.demand import Demand, Newcomer, PoolWork, Probe
from router.admission.turns import QueueEntry, Turns

_FADES = 0.995  # for each request served

__all__ = ["Newcomer", "PoolWork", "Probe", "QueueEntry", "WaitingQueue"]


class WaitingQueue:
    """One pool's queue. Only the core writes it."""

    def __init__(self, best_effort_every: int = 16) -> None:
        assert best_effort_every >= 2, "everything would be best effort"
        self._earned = 1.0 / (best_effort_every - 1)
        self._num_pushed = 0
        self._entries: dict[RequestId, tuple[QueueEntry, int]] = {}  # with the number of the push
        self._limits: list[tuple[float, int, RequestId]] = []  # a heap; some of these have left
        self._promised: list[QueueEntry] = []  # invariant 2, aligned with `_demand`
        self._demand = Demand()
        self._turns = Turns()
        self._credit_s = 0.0  # of the best-effort requests; 0 while none waits
        self._longest_s = 0.0  # of the requests served, fading out

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._entries

    @property
    def num_promised(self) -> int:
        """Promised requests that wait."""
        return len(self._promised)

    # -- in and out

    def push(self, entry: QueueEntry) -> None:
        """Let a request wait."""
        assert entry.request_id not in self._entries, "invariant 1: twice"
        assert entry.cost_s > 0.0 and entry.weight > 0.0, "it would be served for nothing"
        self._num_pushed += 1
        self._entries[entry.request_id] = (entry, self._num_pushed)
        heapq.heappush(self._limits, (entry.limit_at_s, self._num_pushed, entry.request_id))
        if entry.deadline_at_s is None:
            self._turns.push(entry)
        else:
            at = self._demand.add(entry.deadline_at_s, self._num_pushed, entry.cost_s, entry.own_s)
            self._promised.insert(at, entry)

    def remove(self, request_id: RequestId) -> QueueEntry | None:
        """Take a request out unserved: cancelled, or turned away. None if it is not here."""
        found = self._entries.pop(request_id, None)
        if found is None:
            return None
        entry, number = found
        if entry.deadline_at_s is None:
            self._turns.remove(entry)
            if not self._turns:
                self._credit_s = 0.0
        else:
            del self._promised[self._demand.discard(entry.deadline_at_s, number)]
        if len(self._limits) > 2 * len(self._entries) + 64:
            self._limits = [item for item in self._limits if self._is_waiting(item)]
            heapq.heapify(self._limits)
        return entry

    def served(self, entry: QueueEntry) -> None:
        """The request has been sent to a worker, from here or past the queue: out with it, and charge its tenant."""
        self._credit_s = self._credit_after(self._credit_s, entry, self._turns.head())
        if entry.deadline_at_s is None:
            self._turns.charge(entry)
        self._longest_s = max(entry.cost_s, _FADES * self._longest_s)
        self.remove(entry.request_id)

    def expire(self, now_s: float) -> list[QueueEntry]:
        """Take out and return what has waited too long, the longest overdue first.

        A promise that broke here may still be worth serving: push it again without its deadline.
        """
        gone: list[QueueEntry] = []
        while (next_s := self.next_expiry_s()) is not None and next_s <= now_s:
            entry = self.remove(heapq.heappop(self._limits)[2])
            assert entry is not None, "invariant 1"
            gone.append(entry)
        return gone

    def next_expiry_s(self) -> float | None:
        """The next instant at which something expires; None: nothing waits."""
        while self._limits and not self._is_waiting(self._limits[0]):
            heapq.heappop(self._limits)
        return self._limits[0][0] if self._limits else None

    # -- what is next, what would be

    def order(self, now_s: float, limit: int) -> list[QueueEntry]:
        """The next up to `limit` requests in serving order. Takes nothing out."""
        promised, best_effort = self._live_promised(now_s), self._turns.in_order(now_s)
        entry, head = next(promised, None), next(best_effort, None)
        credit_s = self._credit_s
        ordered: list[QueueEntry] = []
        while len(ordered) < limit and (entry or head):
            if head is not None and (entry is None or credit_s >= head.cost_s):
                credit_s = self._credit_after(credit_s, head, head)
                ordered.append(head)
                head = next(best_effort, None)
            elif entry is not None:
                credit_s = self._credit_after(credit_s, entry, head)
                ordered.append(entry)
                entry = next(promised, None)
        return ordered

    def blocked_s(self, num_workers: int) -> float:
        """Within this time a worker is free, 99 times in 100, even if all of them work on the longest request.

        That is the longest that waits here with a promise, or was served of late. What has been started is not
        interrupted; the workers are taken to have started at random.
        """
        longest_s = max(self._longest_s, self._demand.longest_s())
        return longest_s * (1.0 - 0.01 ** (1.0 / num_workers)) if num_workers else float("inf")

    def demand_before(self, deadline_at_s: float) -> float:
        """Promised work with no later deadline."""
        return self._demand.before(deadline_at_s)

    def probe(self, newcomer: Newcomer, pool: PoolWork, now_s: float) -> Probe:
        """What would become of a promised newcomer, and of the promises behind it."""
        return self._demand.probe(newcomer, pool, now_s, stretch=1.0 + self._earned, extra_s=self._credit_s)

    def fits(
        self, cost_s: float, deadline_at_s: float, pool: PoolWork, now_s: float, own_s: float | None = None
    ) -> bool:
        """With the newcomer in, neither its promise nor any other breaks. `own_s` is its cost unless given."""
        latest_start_at_s = deadline_at_s - (cost_s if own_s is None else own_s)
        probe = self.probe(Newcomer(cost_s, deadline_at_s, latest_start_at_s), pool, now_s)
        return probe.least_slack_s >= 0.0 and now_s + probe.start_in_s <= latest_start_at_s

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self._turns.validate()
        self._demand.validate([(e.deadline_at_s or 0.0, e.cost_s, e.own_s) for e in self._promised])
        here = self._promised + self._turns.entries()
        assert sorted(e.request_id for e in here) == sorted(self._entries), "invariant 1: lost or doubled"
        assert all(e.deadline_at_s is not None for e in self._promised), "invariant 2: best effort among promises"
        assert self._credit_s >= 0.0 and (self._turns or not self._credit_s), "invariant 3: credit for nobody"

    def _live_promised(self, now_s: float) -> Iterator[QueueEntry]:
        live = islice(self._promised, self._demand.first_after(now_s), None)
        return (entry for entry in live if entry.expires_at_s > now_s)

    def _is_waiting(self, item: tuple[float, int, RequestId]) -> bool:
        found = self._entries.get(item[2])
        return found is not None and found[1] == item[1]

    def _credit_after(self, credit_s: float, entry: QueueEntry, head: QueueEntry | None) -> float:
        """Once `entry` is served while `head` is the next best-effort request. Never more than serves `head`."""
        if entry.deadline_at_s is None:
            return max(0.0, credit_s - entry.cost_s)
        if head is None:
            return 0.0
        return min(credit_s + self._earned * entry.cost_s, max(credit_s, head.cost_s))
