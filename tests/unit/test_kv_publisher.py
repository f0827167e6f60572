"""Publishing with Redis there, away, wiped and deaf. Numbers: invariants of workers/kv_publisher.py."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from kvstore.kv_types import KvChange, Op, SourceId, Tier
from kvstore.types import WorkerId
from tests.memory_kv_log import MemoryKvLog, RouterView
from workers.kv_publisher import KvPublisher, PublishPace

SOURCE = SourceId(WorkerId("w1"))
PACE = PublishPace(batch_s=0.01, touch_s=0.05, snapshot_s=60.0, lease_s=5.0, max_unsent_blocks=10_000)


@dataclass
class Table:
    """What the source holds."""

    held: dict[int, None] = field(default_factory=dict)

    def store(self, *hashes: int) -> KvChange:
        self.held |= dict.fromkeys(hashes)
        return KvChange(Op.STORE, Tier.DEVICE, hashes)

    def remove(self, *hashes: int) -> KvChange:
        for block_hash in hashes:
            del self.held[block_hash]
        return KvChange(Op.REMOVE, Tier.DEVICE, hashes)

    def snapshot(self) -> dict[Tier, Sequence[int]]:
        return {Tier.DEVICE: list(self.held)}


@dataclass
class World:
    """A publisher at work, and a router that follows."""

    log: MemoryKvLog
    table: Table
    publisher: KvPublisher
    router: RouterView

    async def settles(self) -> None:
        """Wait until the router knows what the source holds."""
        await until(lambda: self.router.held()[Tier.DEVICE] == set(self.table.held))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def publishing(log: MemoryKvLog, epoch: int = 1, pace: PublishPace = PACE) -> AsyncIterator[World]:
    table = Table()
    publisher = KvPublisher(log, SOURCE, epoch, pace, table.snapshot)
    stop = asyncio.Event()
    task = asyncio.create_task(publisher.run(stop))
    try:
        yield World(log, table, publisher, RouterView(log, SOURCE))
    finally:
        stop.set()
        await asyncio.wait_for(task, timeout=10)


def test_invariant_1_an_epoch_begins_with_a_clear_and_an_empty_snapshot() -> None:
    async def test() -> None:
        log = MemoryKvLog()
        async with publishing(log, epoch=1) as world:
            world.publisher.put([world.table.store(1, 2)])
            await world.settles()
        async with publishing(log, epoch=2) as world:
            await until(lambda: log.snapshots[SOURCE].epoch == 2)
            assert log.snapshots[SOURCE].held == {Tier.DEVICE: ()}
            (first,) = [delta for delta in log.deltas if delta.epoch == 2]
            assert (first.seq, [change.op for change in first.changes]) == (1, [Op.CLEAR])

    asyncio.run(test())


def test_changes_come_in_batches_with_contiguous_numbers() -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog()) as world:
            for number in range(200):
                world.publisher.put([world.table.store(number)])
                if number % 20 == 19:
                    await asyncio.sleep(0.012)
            await world.settles()
            numbers = [delta.seq for delta in world.log.deltas]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) < 50

    asyncio.run(test())


def test_a_large_change_is_cut_into_deltas_of_bearable_size() -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog(), pace=replace(PACE, batch_s=30.0)) as world:
            await until(lambda: SOURCE in world.log.snapshots)
            world.publisher.put([world.table.store(*range(9000))])
            await world.settles()  # without waiting for `batch_s`
            sizes = [sum(len(change.hashes) for change in delta.changes) for delta in world.log.deltas]
            assert max(sizes) <= 4096

    asyncio.run(test())


def test_a_snapshot_follows_when_it_is_due_and_something_has_changed() -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog(), pace=replace(PACE, snapshot_s=0.05)) as world:
            world.publisher.put([world.table.store(1)])
            await until(lambda: world.log.snapshots.get(SOURCE) is not None)
            await until(lambda: world.log.snapshots[SOURCE].held == {Tier.DEVICE: (1,)})
            written = world.log.calls.count("snapshot")
            await until(lambda: world.log.calls.count("touch") > 10)
            assert world.log.calls.count("snapshot") <= written + 1, "nothing has changed since"

    asyncio.run(test())


def test_a_wiped_redis_is_filled_again_and_a_wish_for_a_snapshot_is_granted() -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog()) as world:
            world.publisher.put([world.table.store(1, 2)])
            await world.settles()
            world.log.snapshots.clear()
            await until(lambda: SOURCE in world.log.snapshots)
            assert world.log.snapshots[SOURCE].held == {Tier.DEVICE: (1, 2)}
            written = world.log.calls.count("snapshot")
            world.log.resync_wanted = True
            await until(lambda: world.log.calls.count("snapshot") > written)

    asyncio.run(test())


def test_redis_away_is_said_once_and_made_good_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog()) as world:
            world.publisher.put([world.table.store(1, 2)])
            await world.settles()
            world.log.away = True
            world.publisher.put([world.table.store(3)])
            await asyncio.sleep(0.1)
            world.publisher.put([world.table.remove(2), world.table.store(4), world.table.store(5)])
            await asyncio.sleep(0.1)
            world.publisher.put([world.table.remove(5)])
            world.log.away = False
            await world.settles()
            await until(lambda: len(caplog.records) == 2)
            numbers = [delta.seq for delta in world.log.deltas]
            assert numbers == list(range(1, len(numbers) + 1)), "nothing was lost"

    with caplog.at_level(logging.WARNING):
        asyncio.run(test())
    assert ["cannot be published" in caplog.text, "Redis is back" in caplog.text] == [True, True]


def test_invariant_2_what_may_have_arrived_is_repeated_unchanged() -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog()) as world:
            await until(lambda: SOURCE in world.log.snapshots)
            world.log.loses_answers = True
            world.publisher.put([world.table.store(1)])
            await until(lambda: len(world.log.deltas) > 1)
            world.publisher.put([world.table.store(2)])
            await asyncio.sleep(0.6)
            world.log.loses_answers = False
            await world.settles()
            by_number = {(delta.seq, delta) for delta in world.log.deltas}
            assert len(by_number) == len({number for number, _ in by_number})
            assert len(by_number) < len(world.log.deltas)

    asyncio.run(test())


def test_invariant_4_what_is_too_much_to_keep_is_dropped_and_a_snapshot_mends_it() -> None:
    async def test() -> None:
        async with publishing(MemoryKvLog(), pace=replace(PACE, max_unsent_blocks=50)) as world:
            world.publisher.put([world.table.store(1)])
            await world.settles()
            world.log.away = True
            for number in range(100, 250, 10):
                world.publisher.put([world.table.store(*range(number, number + 10))])
                await asyncio.sleep(0.002)
            sent = len(world.log.deltas)
            world.log.away = False
            await world.settles()
            world.publisher.put([world.table.store(7)])
            await world.settles()
            numbers = [delta.seq for delta in world.log.deltas]
            assert numbers[sent] > numbers[sent - 1] + 1, "routers see the gap"
            assert world.log.calls[world.log.calls.index("publish") :].count("snapshot") >= 2

    asyncio.run(test())
