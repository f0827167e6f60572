"""The KV log and the KV snapshots in Redis: workers write, routers follow.

Keys of one cluster (braces are part of the names, see `kvstore/connection.py`; SOURCE is WORKER_ID/DP_RANK, quoted):
    {namespace:kv}:log                  stream; an entry is one record of deltas (`kvstore/kv_record.py`)
    {namespace:kv}:sources              set of the sources that have a snapshot
    namespace:kv:{SOURCE}:snapshot      the newest snapshot, expiring with the source's lease
    namespace:kv:{SOURCE}:resync        there while a router wants a newer one

Memory in Redis is bounded, by three things:
    the log by time: each write trims what is older than `log_window_s`, by the server's own clock (entry ids);
    the log by size: each writer looks once a second, and trims what is beyond `log_max_bytes`;
    snapshots by what the engines hold (8 bytes a block and tier), and by their expiry when a worker is gone.
The log itself expires when nobody has written to it for a few windows. (Redis must allow EVAL and MEMORY USAGE.)

Invariants
 1. A reader that gets no `trimmed` has been given every entry of the log after its position, in order, once. Entries
    are counted, in the server and in the position, so that trimming, FLUSHALL, a restart without data and a failover
    that lost writes are all noticed. (`entries-added` of XINFO STREAM: Redis 7.0 or Valkey.)
 2. A write whose answer is lost may be repeated: readers see deltas twice, never torn.
"""

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, unquote

from kvstore.connection import ANSWER_TIMEOUT_S, RedisLink, text_of
from kvstore.errors import KvRecordError, RedisUnavailableError
from kvstore.kv_record import (
    SNAPSHOT_HEAD_BYTES,
    decode_snapshot,
    decode_snapshot_head,
    encode_deltas,
    encode_snapshot,
    size_bytes,
)
from kvstore.kv_types import KvDelta, KvSnapshot, SourceId
from kvstore.settings import IndexSettings, RedisSettings
from kvstore.types import WorkerId

_ENTRY_BYTES = 16_384  # one more delta than this begins a new entry
_READ_ENTRIES = 64
_SNAPSHOTS_AT_ONCE = 8
_HEADS_AT_ONCE = 256
_RESYNC_TTL_S = 30.0
_UPKEEP_INTERVAL_MS = 1000
_IDLE_WINDOWS = 10  # the log of a fleet that is gone expires after so many

# Entries after ARGV[1], at most ARGV[2]; how many were ever added; how many there are; the server's time. One step, so
# that they agree.
_READ = """
local time = redis.call('TIME')
if redis.call('EXISTS', KEYS[1]) == 0 then return {{}, 0, 0, time} end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local added, length = -1, 0
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then added = info[i + 1] elseif info[i] == 'length' then length = info[i + 1] end
end
return {redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2]), added, length, time}
"""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """What Redis has of a source: for its worker, to see what it must write."""

    has_snapshot: bool
    snapshot_epoch: int  # 0 without a snapshot
    snapshot_seq: int  # 0 without a snapshot
    resync_wanted: bool  # a router needs a newer snapshot


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far a reader is: the last entry it was given, and how many were added up to it (none: not known yet)."""

    entry_id: str
    entries: int | None


LOG_START = LogPosition("0-0", None)  # the oldest entry that is still there


@dataclass(frozen=True, slots=True)
class LogBatch:
    """What was read: records to give to `decode_deltas`, and where to go on."""

    records: tuple[bytes, ...]
    position: LogPosition
    trimmed: bool  # entries after the former position are gone (invariant 1)
    caught_up: bool  # there were no more when this was read
    age_s: float  # of the oldest record when it was read, by the server's clock; 0 without records


class KvLog:
    """The log and the snapshots of one namespace. Every method raises RedisUnavailableError and nothing else."""

    def __init__(self, link: RedisLink, namespace: str, settings: IndexSettings) -> None:
        self._link = link
        self._namespace = namespace
        self._settings = settings
        self._log_key = f"{{{namespace}:kv}}:log"
        self._sources_key = f"{{{namespace}:kv}}:sources"
        self._last_ms = 0  # the server's clock at our last entry
        self._upkeep_ms = 0

    async def publish(self, deltas: Sequence[KvDelta]) -> None:
        """Append to the log, in order. Repeat it after an error: what is there twice does no harm."""
        if not deltas:
            return
        oldest = f"{max(0, self._last_ms - int(self._settings.log_window_s * 1000))}-0"
        with self._link.translated():
            pipe = self._link.client.pipeline(transaction=False)
            for part in _entries(deltas):
                pipe.xadd(self._log_key, {b"d": encode_deltas(part)}, minid=oldest, approximate=True)
            ids = await pipe.execute()
            self._last_ms = _milliseconds(ids[-1])
            if self._last_ms >= self._upkeep_ms + _UPKEEP_INTERVAL_MS:
                self._upkeep_ms = self._last_ms
                await self._keep_small()

    async def write_snapshot(self, snapshot: KvSnapshot, lease_s: float) -> None:
        """Replace the source's snapshot; it lives for `lease_s` unless touched. Answers a wish for a resync."""
        name = _name(snapshot.source)
        with self._link.translated():
            pipe = self._link.client.pipeline(transaction=False)
            pipe.set(self._key(name, "snapshot"), encode_snapshot(snapshot), px=_ttl_ms(lease_s))
            pipe.sadd(self._sources_key, name)
            pipe.delete(self._key(name, "resync"))
            await pipe.execute()

    async def touch(self, source: SourceId, lease_s: float) -> SourceStatus:
        """Let the source's snapshot live for another `lease_s`, and say what there is."""
        name = _name(source)
        with self._link.translated():
            pipe = self._link.client.pipeline(transaction=False)
            pipe.pexpire(self._key(name, "snapshot"), _ttl_ms(lease_s))
            pipe.getrange(self._key(name, "snapshot"), 0, SNAPSHOT_HEAD_BYTES - 1)
            pipe.exists(self._key(name, "resync"))
            pipe.sadd(self._sources_key, name)
            _, head, wanted, _ = await pipe.execute()
        found = _head(head)
        epoch, seq = found or (0, 0)
        return SourceStatus(found is not None, epoch, seq, bool(wanted))

    async def drop(self, source: SourceId) -> None:
        """Forget the source: its worker leaves."""
        name = _name(source)
        with self._link.translated():
            pipe = self._link.client.pipeline(transaction=False)
            pipe.srem(self._sources_key, name)
            pipe.delete(self._key(name, "snapshot"))
            pipe.delete(self._key(name, "resync"))
            await pipe.execute()

    async def read(self, after: LogPosition, block_s: float) -> LogBatch:
        """The next records after `after`, a bounded number. Waits up to `block_s` (at most 4 s) for the first."""
        with self._link.translated():
            batch = await self._read_now(after)
            if batch.records or batch.trimmed or block_s <= 0:
                return batch
            wait_ms = max(1, int(min(block_s, ANSWER_TIMEOUT_S - 1) * 1000))
            await self._link.client.xread({self._log_key: after.entry_id}, count=1, block=wait_ms)
            return await self._read_now(after)

    async def read_heads(self) -> dict[SourceId, tuple[int, int]]:
        """(epoch, seq) of every snapshot there is. Forgets sources whose snapshot has expired."""
        heads: dict[SourceId, tuple[int, int]] = {}
        with self._link.translated():
            names = sorted(text_of(member) for member in await self._link.client.smembers(self._sources_key))
            for first in range(0, len(names), _HEADS_AT_ONCE):
                part = names[first : first + _HEADS_AT_ONCE]
                pipe = self._link.client.pipeline(transaction=False)
                for name in part:
                    pipe.getrange(self._key(name, "snapshot"), 0, SNAPSHOT_HEAD_BYTES - 1)
                found = dict(zip(part, await pipe.execute(), strict=True))
                expired = [name for name, head in found.items() if not head]
                if expired:
                    await self._link.client.srem(self._sources_key, *expired)
                for name, data in found.items():
                    source, head = _source(name), _head(data)
                    if source is not None and head is not None:
                        heads[source] = head
        return heads

    async def read_snapshots(self, sources: Collection[SourceId] | None = None) -> AsyncIterator[KvSnapshot]:
        """The snapshots of these sources, or of all; what is absent or cannot be read is left out."""
        wanted = sorted(await self.read_heads() if sources is None else sources)
        for first in range(0, len(wanted), _SNAPSHOTS_AT_ONCE):
            with self._link.translated():
                pipe = self._link.client.pipeline(transaction=False)
                for source in wanted[first : first + _SNAPSHOTS_AT_ONCE]:
                    pipe.get(self._key(_name(source), "snapshot"))
                found = await pipe.execute()
            for data in found:
                try:
                    if data is not None:
                        yield decode_snapshot(data)
                except KvRecordError:
                    continue  # another version's: to us the source has no snapshot

    async def request_resync(self, source: SourceId) -> None:
        """Ask the source's worker for a new snapshot; it sees this when it touches the source. Idempotent."""
        with self._link.translated():
            await self._link.client.set(self._key(_name(source), "resync"), b"1", px=_ttl_ms(_RESYNC_TTL_S))

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    async def _read_now(self, after: LogPosition) -> LogBatch:
        found = await self._link.client.eval(_READ, 1, self._log_key, after.entry_id, _READ_ENTRIES)
        entries, added, length, (seconds, microseconds) = found
        if added < 0:
            raise RedisUnavailableError(self._link.url, "it does not count a stream's entries: Redis 7.0 is needed")
        gone = added - length
        known = gone if after.entries is None else after.entries
        seen = max(gone, known) + len(entries)
        if seen > added or (len(entries) < _READ_ENTRIES and seen < added):
            return LogBatch((), LOG_START, True, False, 0.0)  # this is not the log that was read before
        records = tuple(fields[1] for _, fields in entries)
        position = LogPosition(text_of(entries[-1][0]) if entries else after.entry_id, seen)
        read_at_s = int(seconds) + int(microseconds) / 1e6
        age_s = max(0.0, read_at_s - _milliseconds(entries[0][0]) / 1000) if entries else 0.0
        return LogBatch(records, position, gone > known, seen == added, age_s)

    async def _keep_small(self) -> None:
        """Bound the log in bytes, and let it expire when nobody writes any more."""
        client = self._link.client
        used_bytes = await client.memory_usage(self._log_key) or 0
        if used_bytes > self._settings.log_max_bytes:
            length = await client.xlen(self._log_key)
            keep = max(1, int(length * self._settings.log_max_bytes / used_bytes * 0.9))
            await client.xtrim(self._log_key, maxlen=keep, approximate=True)
        await client.pexpire(self._log_key, _ttl_ms(self._settings.log_window_s * _IDLE_WINDOWS))

    def _key(self, name: str, what: str) -> str:
        return f"{self._namespace}:kv:{{{name}}}:{what}"


@asynccontextmanager
async def open_kv_log(
    url: str, namespace: str, settings: IndexSettings, redis: RedisSettings | None = None
) -> AsyncIterator[KvLog]:
    """A log on a connection of its own, closed at the end. Nothing is connected before the first call."""
    log = KvLog(RedisLink(url, redis), namespace, settings)
    try:
        yield log
    finally:
        await log.close()


def _entries(deltas: Sequence[KvDelta]) -> Iterator[list[KvDelta]]:
    """Parts of about one entry each; a delta is never split."""
    part: list[KvDelta] = []
    room_bytes = _ENTRY_BYTES
    for delta in deltas:
        if part and size_bytes(delta) > room_bytes:
            yield part
            part, room_bytes = [], _ENTRY_BYTES
        part.append(delta)
        room_bytes -= size_bytes(delta)
    yield part


def _name(source: SourceId) -> str:
    """A source in a key: readable for the usual ids, and without the braces that would end a hash tag."""
    return f"{quote(source.worker_id, safe='')}/{source.dp_rank}"


def _source(name: str) -> SourceId | None:
    worker_id, _, rank = name.rpartition("/")
    return SourceId(WorkerId(unquote(worker_id)), int(rank)) if worker_id and rank.isdecimal() else None


def _head(data: bytes) -> tuple[int, int] | None:
    try:
        return decode_snapshot_head(data)
    except KvRecordError:
        return None


def _milliseconds(entry_id: bytes | str) -> int:
    return int(text_of(entry_id).partition("-")[0])


def _ttl_ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
