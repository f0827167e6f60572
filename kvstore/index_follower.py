"""Follows the KV log and the snapshots in Redis into a FleetIndex, in small steps beside everything else a router does.

At the start all snapshots are read, then the log from its beginning: deltas that a snapshot covers are known already
and ignored, those after it go on from it. Later only the log is read. Snapshots are read again where they are needed:
    a gap                  the source's snapshot; if that is too old its worker is asked for a new one
    trimmed, or flushed    every snapshot that is ahead of what is known
    now and then           the same, so that a delta lost at the end of what a worker said is noticed too
Sources whose snapshot has been gone for as long as a lease are dropped; a worker that lives writes it again within a
heartbeat. Redis away: what is known stays, the log says so once, and reading goes on where it stopped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from kvstore.errors import KvRecordError, RedisUnavailableError
from kvstore.fleet_index import FleetIndex, Outcome, SlotsChanged, Steps
from kvstore.kv_log import LOG_START, KvLog, LogBatch
from kvstore.kv_record import decode_deltas
from kvstore.kv_types import SourceId
from kvstore.settings import IndexSettings

_log = logging.getLogger(__name__)

_HOLD_S = 0.001  # the event loop is given back after this long
_STEP_BLOCKS = 256
_SWEEP_ENTRIES = 1024
_SWEEPS_A_LOOK = 16
_WAIT_S = 0.25  # for news, and so for `stop`
_LINGER_S = 0.02  # after news: many workers' small records are read together
_REPAIR_INTERVAL_S = 0.5
_RESYNC_INTERVAL_S = 3.0  # between two requests for the same source
_MAX_BACKOFF_S = 2.0


class IndexFollower:
    """Run `run()` as a task; `on_change` is called, in order, whenever a source's slots change."""

    def __init__(
        self,
        log: KvLog,
        index: FleetIndex,
        settings: IndexSettings,
        lease_s: float,
        on_change: Callable[[SlotsChanged], None],
    ) -> None:
        self._kv_log = log
        self._index = index
        self._settings = settings
        self._lease_s = lease_s
        self._on_change = on_change
        self._position = LOG_START
        self._snapshots_due = True
        self._compared_at_s = 0.0
        self._ticked_at_s = 0.0
        self._heads: dict[SourceId, tuple[int, int]] = {}  # as they were at the last comparison
        self._missing_since_s: dict[SourceId, float] = {}
        self._asked_at_s: dict[SourceId, float] = {}
        self._held_since_s = 0.0
        self._ready = asyncio.Event()
        self._stopping = False
        self._fell_behind = False  # the last look found the log trimmed
        self.redis_up = True  # the last look worked
        self.lag_s = 0.0  # from the publication of what was applied last to its application
        self.num_malformed = 0  # records that could not be read
        self.num_resyncs = 0  # snapshots that workers were asked for

    @property
    def is_ready(self) -> bool:
        """Whether everything that was in Redis at the start has been taken in."""
        return self._ready.is_set()

    async def wait_ready(self, timeout_s: float) -> bool:
        """Wait for that, at most so long; whether it is so."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow until `stop`. Survives outages."""
        backoff_s = 0.1
        while not self._stopping:
            self._held_since_s = time.monotonic()
            try:
                await self._look()
            except RedisUnavailableError as error:
                if self.redis_up:
                    _log.warning("following the KV log: %s; going on with what is known", error)
                self.redis_up = False
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
                continue
            except Exception:
                _log.exception("following the KV log has ended; what is known will only get older")
                raise
            if not self.redis_up:
                _log.warning("following the KV log: Redis is back")
            self.redis_up = True
            backoff_s = 0.1

    def stop(self) -> None:
        """Let `run` end at its next step."""
        self._stopping = True

    async def _look(self) -> None:
        """One read of the log, and what is due beside it."""
        if self._snapshots_due:
            await self._compare()
            self._snapshots_due = False
        more_to_sweep = await self._sweep()
        wait_s = _WAIT_S if self._ready.is_set() and not more_to_sweep else 0.0
        batch = await self._kv_log.read(self._position, wait_s)
        self._held_since_s = time.monotonic()
        await self._take_in(batch)
        self._position = batch.position
        if batch.trimmed:
            if not self._fell_behind:
                _log.warning("the KV log does not reach back to what was read last; reading the snapshots again")
            self._snapshots_due = True
        elif batch.caught_up:
            self._ready.set()
            if batch.records:
                await asyncio.sleep(_LINGER_S)
        self._fell_behind = batch.trimmed
        await self._repair()

    async def _take_in(self, batch: LogBatch) -> None:
        read_at_s = time.monotonic()
        for record in batch.records:
            try:
                deltas = decode_deltas(record)
            except KvRecordError as error:
                if not self.num_malformed:
                    _log.warning("skipping records of the KV log: %s", error)
                self.num_malformed += 1
                continue
            for delta in deltas:
                await self._run(self._index.applying(delta, _STEP_BLOCKS))
        self.lag_s = batch.age_s + time.monotonic() - read_at_s if batch.records else 0.0

    async def _repair(self) -> None:
        """Twice a second: see whether snapshots are needed, and get them."""
        now_s = time.monotonic()
        if now_s - self._ticked_at_s < _REPAIR_INTERVAL_S:
            return
        self._ticked_at_s = now_s
        self._index.tick()
        if self._index.wanted_snapshots() or now_s - self._compared_at_s >= self._settings.snapshot_interval_s:
            await self._compare()

    async def _compare(self) -> None:
        """Compare what is known with the heads of all snapshots; read those that help, ask for what is missing."""
        now_s = self._compared_at_s = time.monotonic()
        heads = await self._kv_log.read_heads()
        truncated = self._index.truncated()
        wanted = self._index.wanted_snapshots()
        needed = {source for source, head in heads.items() if self._helps(source, head, source in wanted)}
        if truncated is not None:
            needed.add(truncated)
        async for snapshot in self._kv_log.read_snapshots(needed):
            await self._run(self._index.loading(snapshot, _STEP_BLOCKS))
        self._heads = heads
        still_wanted = set(self._index.wanted_snapshots())
        if truncated is not None and self._index.truncated() == truncated:
            still_wanted.add(truncated)  # its snapshot is older than what is known
        for source in sorted(still_wanted):
            await self._ask_for_snapshot(source, now_s)
        self._forget_missing(heads, now_s)

    def _helps(self, source: SourceId, head: tuple[int, int], is_wanted: bool) -> bool:
        """Whether to read this snapshot: it is ahead of what is known, and the log will not bring as much soon."""
        known = self._index.position(source)
        if known is None:
            return True
        if is_wanted or self._snapshots_due:
            return head > known
        before = self._heads.get(source)
        return before is not None and known < min(head, before)  # the log has had the time since to bring it

    async def _ask_for_snapshot(self, source: SourceId, now_s: float) -> None:
        if now_s - self._asked_at_s.get(source, -_RESYNC_INTERVAL_S) >= _RESYNC_INTERVAL_S:
            self._asked_at_s[source] = now_s
            self.num_resyncs += 1
            await self._kv_log.request_resync(source)

    def _forget_missing(self, heads: dict[SourceId, tuple[int, int]], now_s: float) -> None:
        known = set(self._index.sources())
        missing = known - heads.keys()
        self._missing_since_s = {source: self._missing_since_s.get(source, now_s) for source in missing}
        for source, since_s in self._missing_since_s.items():
            if now_s - since_s >= self._lease_s:
                self._tell(self._index.drop(source))
        self._asked_at_s = {source: at_s for source, at_s in self._asked_at_s.items() if source in known}

    async def _sweep(self) -> bool:
        """Clear away some of what retired slots have left; whether there is more."""
        for _ in range(_SWEEPS_A_LOOK):
            if not self._index.sweep(_SWEEP_ENTRIES):
                return False
            await self._breathe()
        return True

    async def _run(self, steps: Steps) -> Outcome:
        while True:
            try:
                changes = next(steps)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            self._tell(changes)
            await self._breathe()

    async def _breathe(self) -> None:
        """Give the event loop back if it has been held for long enough."""
        if time.monotonic() - self._held_since_s >= _HOLD_S:
            await asyncio.sleep(0)
            self._held_since_s = time.monotonic()

    def _tell(self, changes: Iterable[SlotsChanged]) -> None:
        for changed in changes:
            self._on_change(changed)
