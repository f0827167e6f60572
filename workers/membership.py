"""Who is in the fleet, from successive looks at the leases. Pure.

Invariants
 1. A worker joins on the first look that shows it and leaves once: when it says so (its record says LOST), or
    when its beat has not risen for `lease_s`. While its record is still there it joins again only when the beat
    is seen to rise: a record that merely stays is no sign of life.
 2. Silence counts only while somebody is listening. A look that failed (Redis away) changes nothing, and after it
    every worker has a full `lease_s` to write its lease again. A look adds at most a quarter of `lease_s`, so a
    follower that was stalled itself does not take its own silence for everybody else's.
 3. Records are ordered by (epoch, beat). One that is not above its member's is old: it changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.types import WorkerId
from workers.lease_record import LeaseRecord
from workers.types import Phase, WorkerState


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is new, or something about it has changed."""

    state: WorkerState


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is no longer in the fleet."""

    worker_id: WorkerId
    reason: str


@dataclass(slots=True)
class _Member:
    record: LeaseRecord
    silent_s: float = 0.0  # since its beat last rose


class Membership:
    """The fleet as known so far. `observe` after a look that worked, `observe_outage` after one that failed."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._members: dict[WorkerId, _Member] = {}
        self._departed: dict[WorkerId, tuple[int, int]] = {}  # left, and still has a record: its order, last look
        self._looked_at_s: float | None = None  # None: the next look adds no silence

    def states(self) -> dict[WorkerId, WorkerState]:
        """Every member."""
        return {worker_id: member.record.state for worker_id, member in self._members.items()}

    def observe_outage(self) -> None:
        """Redis did not answer: keep everybody (invariant 2)."""
        self._looked_at_s = None
        for member in self._members.values():
            member.silent_s = 0.0

    def observe(self, records: Mapping[WorkerId, LeaseRecord], now_s: float) -> list[Joined | Left]:
        """Take in a look at all the leases; return what changed since the last one."""
        gap_s = 0.0 if self._looked_at_s is None else min(now_s - self._looked_at_s, self._lease_s / 4)
        self._looked_at_s = now_s
        for member in self._members.values():
            member.silent_s += gap_s
        changes: list[Joined | Left] = []
        for worker_id, record in records.items():
            changes += self._take_in(worker_id, record)
        for worker_id, member in list(self._members.items()):
            if member.silent_s >= self._lease_s:
                del self._members[worker_id]
                self._departed[worker_id] = _order(member.record)
                changes.append(Left(worker_id, f"no heartbeat for {self._lease_s:g} s"))
        self._departed = {worker_id: order for worker_id, order in self._departed.items() if worker_id in records}
        return changes

    def _take_in(self, worker_id: WorkerId, record: LeaseRecord) -> list[Joined | Left]:
        member = self._members.get(worker_id)
        if member is not None and _order(record) <= _order(member.record):
            return []
        departed = self._departed.get(worker_id)
        if record.state.phase is Phase.LOST or (departed is not None and _order(record) <= departed):
            self._departed[worker_id] = _order(record)
            return [] if self._members.pop(worker_id, None) is None else [Left(worker_id, "left")]
        self._departed.pop(worker_id, None)
        if member is None:
            self._members[worker_id] = _Member(record)
            return [Joined(record.state)]
        changed = record.state != member.record.state
        self._members[worker_id] = _Member(record)
        return [Joined(record.state)] if changed else []


def _order(record: LeaseRecord) -> tuple[int, int]:
    return record.state.spec.epoch, record.beat
