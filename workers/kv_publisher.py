"""Publishes what one source can serve: numbered deltas to the log, a snapshot when one is due.

Redis away is survivable: changes are kept, as their net effect, and sent when it answers. Every loss ends in a
snapshot, which is how routers get back.

Invariants
 1. The first delta of an epoch is a CLEAR: routers forget the engine's former life before anything of the new one.
 2. A number is never given to two different deltas. What may have been sent is repeated unchanged until Redis answers.
 3. A snapshot is the state after the delta whose number it bears.
 4. Deltas are dropped only beyond `max_unsent_blocks`; then a number is left out, which shows routers the gap, and a
    snapshot is written before anything else.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstore.errors import RedisUnavailableError
from kvstore.kv_log import SourceStatus
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, SourceId, Tier
from workers.kv_batch import ChangeBatch
from workers.kv_reach import CLEAR

_log = logging.getLogger(__name__)
_MAX_DELTA_BLOCKS = 4096  # a delta is one record in Redis, and applied in one go by routers
_RETRY_S = 0.5


class DeltaLog(Protocol):
    """Where deltas and snapshots go (kvstore/kv_log.py). Methods raise RedisUnavailableError and nothing else."""

    async def publish(self, deltas: Sequence[KvDelta]) -> None:
        """Append to the log, in order."""

    async def write_snapshot(self, snapshot: KvSnapshot, lease_s: float) -> None:
        """Replace the source's snapshot."""

    async def touch(self, source: SourceId, lease_s: float) -> SourceStatus:
        """Let the snapshot live on, and say what there is."""
        ...

    async def drop(self, source: SourceId) -> None:
        """Forget the source."""


@dataclass(frozen=True, slots=True)
class PublishPace:
    """How often a publisher does what."""

    batch_s: float  # changes wait this long for others
    touch_s: float  # how often the snapshot's life is prolonged
    snapshot_s: float  # a new snapshot after this long, if anything has changed
    lease_s: float  # life of a snapshot that nobody prolongs
    max_unsent_blocks: int


class KvPublisher:
    """One source in one epoch. `snapshot` returns what is reachable now, with every change `put` so far in it."""

    def __init__(
        self,
        log: DeltaLog,
        source: SourceId,
        epoch: int,
        pace: PublishPace,
        snapshot: Callable[[], Mapping[Tier, Sequence[int]]],
    ) -> None:
        self._log = log
        self._source = source
        self._epoch = epoch
        self._pace = pace
        self._snapshot = snapshot
        self._seq = 0  # of the newest delta
        self._batch = ChangeBatch()
        self._batch.add([CLEAR])
        self._unsent: list[KvDelta] = []
        self._drops = 0
        self._mended_drops = 0  # by a snapshot
        self._changed = False  # since the last snapshot
        self._snapshot_due = True
        self._snapshot_at_s = 0.0
        self._touched_at_s = 0.0
        self._reachable = True
        self._waiting = asyncio.Event()  # changes wait
        self._full = asyncio.Event()  # enough of them not to wait any longer

    def put(self, changes: Sequence[KvChange]) -> None:
        """Publish these, soon. Never blocks."""
        if not changes:
            return
        self._batch.add(changes)
        self._changed = True
        unsent_blocks = sum(len(change.hashes) for delta in self._unsent for change in delta.changes)
        if self._batch.num_blocks + unsent_blocks > self._pace.max_unsent_blocks:
            self._drop()
        self._waiting.set()
        if self._batch.num_blocks >= _MAX_DELTA_BLOCKS:
            self._full.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Publish until `stop`. Ended that way and not by cancellation: redis-py swallows some of those."""
        while not stop.is_set():
            try:
                await self._round()
            except RedisUnavailableError as error:
                if self._reachable:
                    _log.warning("%s: cache contents cannot be published, goes on serving: %s", self._name, error)
                self._reachable = False
                await _wait(_RETRY_S, stop)
            else:
                if not self._reachable:
                    _log.warning("%s: Redis is back, cache contents are published again", self._name)
                self._reachable = True
                await self._until_due(stop)

    async def _round(self) -> None:
        """Everything that is due now."""
        now_s = asyncio.get_running_loop().time()
        if self._drops > self._mended_drops:
            await self._write_snapshot(now_s)
        if not self._unsent:
            self._seal()
        if self._unsent:
            sending = tuple(self._unsent)
            await self._log.publish(sending)
            self._unsent = [delta for delta in self._unsent if delta.seq > sending[-1].seq]
        if self._snapshot_due or (self._changed and now_s >= self._snapshot_at_s + self._pace.snapshot_s):
            await self._write_snapshot(now_s)
        if not self._reachable or now_s >= self._touched_at_s + self._pace.touch_s:
            status = await self._log.touch(self._source, self._pace.lease_s)
            self._touched_at_s = now_s
            if not status.has_snapshot or status.snapshot_epoch != self._epoch or status.resync_wanted:
                await self._write_snapshot(now_s)

    async def _write_snapshot(self, now_s: float) -> None:
        self._seal()
        drops, self._changed = self._drops, False
        snapshot = KvSnapshot(self._source, self._epoch, self._seq, self._snapshot())
        self._snapshot_due = True  # until it is written
        await self._log.write_snapshot(snapshot, self._pace.lease_s)
        self._snapshot_due, self._mended_drops = False, drops
        self._snapshot_at_s = now_s

    async def _until_due(self, stop: asyncio.Event) -> None:
        if not self._unsent:
            await _wait(self._pace.touch_s, stop, self._waiting)
        await _wait(self._pace.batch_s, stop, self._full)

    def _seal(self) -> None:
        """Number the changes so far."""
        for changes in self._batch.take(_MAX_DELTA_BLOCKS):
            self._seq += 1
            self._unsent.append(KvDelta(self._source, self._epoch, self._seq, changes))
        self._waiting.clear()
        self._full.clear()

    def _drop(self) -> None:
        """Forget what could not be sent (invariant 4)."""
        self._batch.clear()
        self._unsent.clear()
        self._seq += 1
        self._drops += 1

    @property
    def _name(self) -> str:
        return f"worker {self._source.worker_id}"


async def _wait(timeout_s: float, *events: asyncio.Event) -> None:
    """Wait for any of the events, at most `timeout_s`."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
