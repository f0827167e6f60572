"""A KV log in memory that can be taken away, and a router's view of it on plain sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.errors import RedisUnavailableError
from kvstore.kv_log import SourceStatus
from kvstore.kv_types import KvDelta, KvSnapshot, Op, SourceId, Tier


@dataclass
class MemoryKvLog:
    """The worker's half of kvstore/kv_log.py."""

    away: bool = False
    loses_answers: bool = False  # writes arrive, their answers do not
    is_broken: bool = False  # `publish` has a bug
    resync_wanted: bool = False
    deltas: list[KvDelta] = field(default_factory=list)
    snapshots: dict[SourceId, KvSnapshot] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    async def publish(self, deltas: Sequence[KvDelta]) -> None:
        """Append."""
        self._note("publish")
        if self.is_broken:
            raise ValueError("broken")
        self.deltas += deltas
        self._answer()

    async def write_snapshot(self, snapshot: KvSnapshot, lease_s: float) -> None:
        """Replace."""
        self._note("snapshot")
        held = {tier: tuple(hashes) for tier, hashes in snapshot.held.items()}
        self.snapshots[snapshot.source] = KvSnapshot(snapshot.source, snapshot.epoch, snapshot.seq, held)
        self.resync_wanted = False
        self._answer()

    async def touch(self, source: SourceId, lease_s: float) -> SourceStatus:
        """Say what there is."""
        self._note("touch")
        self._answer()
        found = self.snapshots.get(source)
        epoch, seq = (found.epoch, found.seq) if found else (0, 0)
        return SourceStatus(found is not None, epoch, seq, self.resync_wanted)

    async def drop(self, source: SourceId) -> None:
        """Forget."""
        self._note("drop")
        self.snapshots.pop(source, None)

    def _note(self, call: str) -> None:
        if self.away:
            raise RedisUnavailableError("memory://", "away")
        self.calls.append(call)

    def _answer(self) -> None:
        if self.loses_answers:
            raise RedisUnavailableError("memory://", "the answer is lost")


class RouterView:
    """Follows one source: applies deltas in order, and mends a gap with the snapshot."""

    def __init__(self, log: MemoryKvLog, source: SourceId) -> None:
        self._log = log
        self._source = source
        self._read = 0
        self._epoch = self._seq = 0
        self._held: dict[Tier, set[int]] = {tier: set() for tier in Tier}

    def held(self) -> dict[Tier, set[int]]:
        """What the source can serve, by all that is in the log now."""
        for delta in self._log.deltas[self._read :]:
            if delta.source == self._source:
                self._apply(delta)
        self._read = len(self._log.deltas)
        snapshot = self._log.snapshots.get(self._source)
        if snapshot is not None and (snapshot.epoch, snapshot.seq) > (self._epoch, self._seq):
            self._load(snapshot)
        return self._held

    def _apply(self, delta: KvDelta) -> None:
        if (delta.epoch, delta.seq) <= (self._epoch, self._seq):
            return
        if delta.epoch > self._epoch:
            self._epoch, self._seq, self._held = delta.epoch, 0, {tier: set() for tier in Tier}
        if delta.seq > self._seq + 1:
            snapshot = self._log.snapshots[self._source]
            assert (snapshot.epoch, snapshot.seq) >= (delta.epoch, delta.seq - 1), "a gap that no snapshot mends"
            self._load(snapshot)
            if delta.seq <= self._seq:
                return
        self._seq = delta.seq
        for change in delta.changes:
            if change.op is Op.CLEAR:
                self._held = {tier: set() for tier in Tier}
            elif change.op is Op.STORE:
                assert self._held[change.tier].isdisjoint(change.hashes)
                self._held[change.tier].update(change.hashes)
            else:
                assert self._held[change.tier].issuperset(change.hashes)
                self._held[change.tier].difference_update(change.hashes)

    def _load(self, snapshot: KvSnapshot) -> None:
        self._epoch, self._seq = snapshot.epoch, snapshot.seq
        self._held = {tier: set(snapshot.held.get(tier, ())) for tier in Tier}
