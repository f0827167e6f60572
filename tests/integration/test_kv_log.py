"""The KV log and the snapshots against a real server. Numbers: invariants of kvstore/kv_log.py."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from kvstore.errors import RedisUnavailableError
from kvstore.kv_log import LOG_START, KvLog, LogPosition, open_kv_log
from kvstore.kv_record import decode_deltas
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.settings import IndexSettings
from kvstore.types import WorkerId
from tests.redis_servers import Server, Servers, plain_server

A, B = SourceId(WorkerId("prefill-1")), SourceId(WorkerId("{odd}/ä"), 7)
NO_WAIT_S = 0.0


def make_delta(seq: int, num_blocks: int = 3, source: SourceId = A, epoch: int = 1) -> KvDelta:
    hashes = tuple((seq << 40) + index for index in range(num_blocks))
    return KvDelta(source, epoch, seq, (KvChange(Op.STORE, Tier.DEVICE, hashes),))


def make_snapshot(seq: int, source: SourceId = A, epoch: int = 1) -> KvSnapshot:
    return KvSnapshot(source, epoch, seq, {Tier.DEVICE: list(range(seq)), Tier.HOST: [2**64 - 1]})


def run(folder: Path, test: Callable[[Servers, KvLog], Awaitable[None]], **settings: float) -> None:
    """Run `test` on an empty server."""

    async def body() -> None:
        async with (
            plain_server(folder) as servers,
            open_kv_log(servers.url, "ns", IndexSettings.model_validate(settings)) as log,
        ):
            await test(servers, log)

    asyncio.run(body())


async def read_seqs(log: KvLog, after: LogPosition) -> tuple[list[int], LogPosition, bool]:
    """The seq of everything after a position, the new position, and whether something was trimmed."""
    seqs: list[int] = []
    trimmed = False
    while True:
        batch = await log.read(after, NO_WAIT_S)
        seqs += [delta.seq for record in batch.records for delta in decode_deltas(record)]
        after = batch.position
        trimmed |= batch.trimmed
        if batch.caught_up:
            return seqs, after, trimmed


def test_what_is_published_is_read_in_order_and_once(tmp_path: Path) -> None:
    async def test(__: Servers, log: KvLog) -> None:
        deltas = [make_delta(seq, num_blocks=seq % 900) for seq in range(1, 400)]
        await log.publish(deltas[:150])
        seqs, position, trimmed = await read_seqs(log, LOG_START)
        assert (seqs, trimmed) == (list(range(1, 151)), False)
        assert await read_seqs(log, position) == ([], position, False)
        await log.publish(deltas[150:])
        await log.publish([])
        assert (await read_seqs(log, position))[::2] == (list(range(151, 400)), False)
        batch = await log.read(LOG_START, NO_WAIT_S)
        assert decode_deltas(batch.records[0])[0] == deltas[0]
        assert 0 < batch.age_s < 60

    run(tmp_path, test)


def test_reading_waits_for_news(tmp_path: Path) -> None:
    async def test(__: Servers, log: KvLog) -> None:
        after = LOG_START
        for seq in (1, 2):
            reading = asyncio.create_task(log.read(after, 4.0))
            await asyncio.sleep(0.1)
            assert not reading.done()
            await log.publish([make_delta(seq)])
            batch = await reading
            assert (len(batch.records), batch.caught_up) == (1, True)
            after = batch.position
        assert (await log.read(after, 0.05)).records == ()

    run(tmp_path, test)


def test_the_log_forgets_what_is_older_than_its_window(tmp_path: Path) -> None:
    async def test(__: Servers, log: KvLog) -> None:
        await log.publish([make_delta(1, num_blocks=2000)])
        _, early, _ = await read_seqs(log, LOG_START)
        await log.publish([make_delta(seq, num_blocks=2000) for seq in range(2, 11)])
        _, late, _ = await read_seqs(log, LOG_START)
        await asyncio.sleep(1.2)
        await log.publish([make_delta(11, num_blocks=2000)])
        await log.publish([make_delta(12, num_blocks=2000)])
        assert (await read_seqs(log, LOG_START))[0][-2:] == [11, 12]
        assert len((await read_seqs(log, LOG_START))[0]) <= 3
        assert (await read_seqs(log, early))[2]  # invariant 1: it never saw some of those
        assert (await read_seqs(log, late))[::2] == ([11, 12], False)

    run(tmp_path, test, log_window_s=1.0)


def test_the_log_is_bounded_in_bytes(tmp_path: Path) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        for first in range(1, 1000, 100):  # 16 MB in all
            await log.publish([make_delta(seq, num_blocks=2000) for seq in range(first, first + 100)])
        await asyncio.sleep(1.1)
        await log.publish([make_delta(1000)])  # once a second the writer looks
        async with servers.servers[0].client() as client:
            assert await client.memory_usage("{ns:kv}:log") <= 1 << 20
            assert 0 < await client.pttl("{ns:kv}:log") <= 600_000
        assert (await read_seqs(log, LOG_START))[0][-1] == 1000

    run(tmp_path, test, log_max_bytes=1 << 20)


def test_memory_of_small_entries_is_near_what_they_say(tmp_path: Path) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        for seq in range(1, 1001):
            await log.publish([make_delta(seq, num_blocks=16)])
        async with servers.servers[0].client() as client:
            used_bytes = await client.memory_usage("{ns:kv}:log", samples=0)
        assert used_bytes < 1000 * (16 * 8 + 150)

    run(tmp_path, test)


def test_snapshots_live_as_long_as_they_are_touched(tmp_path: Path) -> None:
    async def test(__: Servers, log: KvLog) -> None:
        assert not (await log.touch(A, 1.0)).has_snapshot
        for source in (A, B):
            await log.write_snapshot(make_snapshot(5, source), 0.4)
        assert await log.read_heads() == {A: (1, 5), B: (1, 5)}
        for _ in range(6):
            await asyncio.sleep(0.1)
            status = await log.touch(B, 0.4)
        assert (status.has_snapshot, status.snapshot_epoch, status.snapshot_seq) == (True, 1, 5)
        assert [snapshot.source for snapshot in [found async for found in log.read_snapshots()]] == [B]
        assert await log.read_heads() == {B: (1, 5)}
        await log.drop(B)
        assert await log.read_heads() == {}
        assert [found async for found in log.read_snapshots([A, B])] == []

    run(tmp_path, test)


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    async def test(__: Servers, log: KvLog) -> None:
        for seq in (100_000, 3):
            await log.write_snapshot(make_snapshot(seq, B), 5.0)
            (found,) = [found async for found in log.read_snapshots([A, B])]
            assert (found.source, found.epoch, found.seq) == (B, 1, seq)
            assert {tier: list(held) for tier, held in found.held.items()} == make_snapshot(seq).held

    run(tmp_path, test)


def test_a_resync_is_wanted_until_a_snapshot_is_written(tmp_path: Path) -> None:
    async def test(__: Servers, log: KvLog) -> None:
        await log.request_resync(B)
        await log.request_resync(B)
        assert not (await log.touch(A, 5.0)).resync_wanted
        assert (await log.touch(B, 5.0)).resync_wanted
        assert (await log.touch(B, 5.0)).resync_wanted
        await log.write_snapshot(make_snapshot(1, B), 5.0)
        assert not (await log.touch(B, 5.0)).resync_wanted

    run(tmp_path, test)


def test_what_others_have_left_there_is_stepped_over(tmp_path: Path) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        await log.write_snapshot(make_snapshot(1), 5.0)
        async with servers.servers[0].client() as client:
            await client.sadd("{ns:kv}:sources", "nonsense", "a/b/c", "later/0", "half/0")
            await client.set("ns:kv:{later/0}:snapshot", b"KVS\x02 what the next version writes")
            await client.set("ns:kv:{half/0}:snapshot", b"KVS\x01\x00")
        assert await log.read_heads() == {A: (1, 1)}
        later = SourceId(WorkerId("later"))
        assert [found.source async for found in log.read_snapshots([A, later])] == [A]
        assert not (await log.touch(later, 5.0)).has_snapshot

    run(tmp_path, test)


@pytest.mark.parametrize("how", ["flush", "restart"])
def test_invariant_1_a_log_that_begins_anew_is_noticed(tmp_path: Path, how: str) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        await log.publish([make_delta(seq) for seq in range(1, 4)])
        await log.publish([make_delta(4)])
        _, position, _ = await read_seqs(log, LOG_START)
        await begin_anew(servers, how)
        batch = await log.read(position, NO_WAIT_S)
        assert (batch.trimmed, batch.position) == (True, LOG_START)
        assert await read_seqs(log, batch.position) == ([], LogPosition("0-0", 0), False)
        await log.publish([make_delta(5)])
        await log.publish([make_delta(6)])
        assert (await read_seqs(log, position))[::2] == ([5, 6], True)  # also by one who did not look in between
        assert (await read_seqs(log, LOG_START))[::2] == ([5, 6], False)

    run(tmp_path, test)


def test_a_server_that_is_away_is_one_error_and_comes_back_by_itself(tmp_path: Path) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        (server,) = servers.servers
        await log.publish([make_delta(1)])
        server.kill()
        calls: Sequence[Callable[[], Awaitable[object]]] = [
            lambda: log.publish([make_delta(2)]),
            lambda: log.write_snapshot(make_snapshot(1), 5.0),
            lambda: log.touch(A, 5.0),
            lambda: log.drop(A),
            lambda: log.read(LOG_START, 0.1),
            log.read_heads,
            lambda: anext(log.read_snapshots()),
            lambda: log.request_resync(A),
        ]
        for call in calls:
            with pytest.raises(RedisUnavailableError):
                await call()
        await server.start()
        await log.publish([make_delta(2)])
        assert (await read_seqs(log, LOG_START))[0] == [2]

    run(tmp_path, test)


def test_a_server_that_refuses_is_the_same_error(tmp_path: Path) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        async with servers.servers[0].client() as client:
            await client.set("{ns:kv}:log", "not a stream")
        for call in (lambda: log.publish([make_delta(1)]), lambda: log.read(LOG_START, 0.1)):
            with pytest.raises(RedisUnavailableError, match="WRONGTYPE"):
                await call()

    run(tmp_path, test)


def test_a_server_that_stops_in_the_middle_of_a_wait(tmp_path: Path) -> None:
    async def test(servers: Servers, log: KvLog) -> None:
        reading = asyncio.create_task(log.read(LOG_START, 4.0))
        await asyncio.sleep(0.2)
        servers.servers[0].kill()
        with pytest.raises(RedisUnavailableError):
            await reading

    run(tmp_path, test)


async def begin_anew(servers: Servers, how: str) -> None:
    server: Server = servers.servers[0]
    if how == "flush":
        await servers.flush()
    else:
        server.kill()
        await server.start()
