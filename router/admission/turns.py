"""Best-effort requests: tenants take turns by the work they have had, each tenant's requests in order. Pure.

The virtual token counter of Sheng et al. (OSDI 2024, arXiv 2401.00588, algorithm 2), with predicted seconds for tokens.

Invariants
 1. A tenant has a turn exactly while a request of its waits. Its requests are in order of arrival.
 2. The tenant with the lowest counter is next; of equals, the one whose turn is oldest.
 3. Counters only rise, by cost / weight. A tenant that comes back is lifted to the lowest of those that wait, or to
    where the last of them left: absence earns nothing.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator

from msgspec import Struct

from kvstore.types import RequestId

_MAX_IDLE = 10_000  # tenants that do not wait and have had more than those that do


class QueueEntry(Struct, frozen=True):
    """A waiting request. `weight` is its tenant's; a best-effort request has no deadline, only its hard limit."""

    request_id: RequestId
    tenant: str
    weight: float
    cost_s: float  # predicted work for the pool, above 0
    own_s: float  # from being started to its first token, with nothing in the way
    deadline_at_s: float | None  # promised instant of the first token; None: best effort
    expires_at_s: float  # not started by then: given up

    @property
    def limit_at_s(self) -> float:
        """When waiting becomes pointless: the promise is broken, or the time is up."""
        return self.expires_at_s if self.deadline_at_s is None else min(self.deadline_at_s, self.expires_at_s)


class Turns:
    """Who is next among those who were promised nothing."""

    def __init__(self) -> None:
        self._queues: dict[str, OrderedDict[RequestId, QueueEntry]] = {}
        self._turns: list[tuple[float, int, str]] = []  # (counter, since, tenant), sorted
        self._turn_of: dict[str, tuple[float, int, str]] = {}
        self._idle: dict[str, float] = {}  # counters above the floor of tenants that do not wait
        self._floor_s = 0.0
        self._num_turns = 0

    def __bool__(self) -> bool:
        return bool(self._turns)

    def push(self, entry: QueueEntry) -> None:
        """Let a request wait behind its tenant's others."""
        tenant = entry.tenant
        if tenant not in self._queues:
            self._queues[tenant] = OrderedDict()
            self._num_turns += 1
            self._set_turn(tenant, max(self._idle.pop(tenant, 0.0), self._floor_s), self._num_turns)
        self._queues[tenant][entry.request_id] = entry

    def remove(self, entry: QueueEntry) -> None:
        """Take a request out."""
        queue = self._queues[entry.tenant]
        del queue[entry.request_id]
        if not queue:
            del self._queues[entry.tenant]
            turn = self._turn_of.pop(entry.tenant)
            del self._turns[bisect_left(self._turns, turn)]
            self._lift_floor()
            self._keep_idle(entry.tenant, turn[0])

    def charge(self, entry: QueueEntry) -> None:
        """Its tenant has had this request's work, whether or not it waited here."""
        virtual_s = entry.cost_s / entry.weight
        turn = self._turn_of.get(entry.tenant)
        if turn is None:
            counter_s = max(self._idle.pop(entry.tenant, 0.0), self._floor_s) + virtual_s
            if self._turns:
                self._keep_idle(entry.tenant, counter_s)
            else:
                self._floor_s = counter_s  # nobody was passed over
            return
        del self._turns[bisect_left(self._turns, turn)]
        self._set_turn(entry.tenant, turn[0] + virtual_s, turn[1])

    def head(self) -> QueueEntry | None:
        """The next request, expired or not."""
        return next(iter(self._queues[self._turns[0][2]].values())) if self._turns else None

    def in_order(self, now_s: float) -> Iterator[QueueEntry]:
        """Requests that have not expired, in the order in which they would be served. Changes nothing."""
        started: list[tuple[float, int, QueueEntry, Iterator[QueueEntry]]] = []  # `since` tells tenants apart
        live: Iterator[QueueEntry]
        at = 0
        while started or at < len(self._turns):
            if at < len(self._turns) and (not started or self._turns[at][:2] < started[0][:2]):
                counter_s, since, tenant = self._turns[at]
                live = (entry for entry in self._queues[tenant].values() if entry.limit_at_s > now_s)
                at += 1
            else:
                counter_s, since, entry, live = heapq.heappop(started)
                yield entry
                counter_s += entry.cost_s / entry.weight
            following = next(live, None)
            if following is not None:
                heapq.heappush(started, (counter_s, since, following, live))

    def entries(self) -> list[QueueEntry]:
        """All that wait, by tenant."""
        return [entry for queue in self._queues.values() for entry in queue.values()]

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert self._turn_of.keys() == self._queues.keys(), "invariant 1: a turn for nothing, or none"
        assert all(self._queues.values()), "invariant 1: nobody waits"
        assert self._turns == sorted(self._turn_of.values()), "invariant 2: turns"
        assert all(turn[0] >= self._floor_s for turn in self._turns), "invariant 3: behind the floor"
        assert not self._idle.keys() & self._queues.keys(), "invariant 3: two counters"

    def _set_turn(self, tenant: str, counter_s: float, since: int) -> None:
        turn = (counter_s, since, tenant)
        self._turn_of[tenant] = turn
        insort(self._turns, turn)
        self._lift_floor()

    def _lift_floor(self) -> None:
        if self._turns:
            self._floor_s = self._turns[0][0]

    def _keep_idle(self, tenant: str, counter_s: float) -> None:
        """Remember a debt; of too many, forget those nearest to none."""
        self._idle[tenant] = counter_s
        if len(self._idle) > _MAX_IDLE:
            highest = sorted(self._idle.items(), key=lambda item: -item[1])[: _MAX_IDLE // 2]
            self._idle = {name: counter for name, counter in highest if counter > self._floor_s}
