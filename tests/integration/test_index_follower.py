"""A router's index follows real workers' deltas through a real Redis, whatever happens to any of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from kvstore.errors import RedisUnavailableError
from kvstore.fleet_index import NO_SLOTS, FleetIndex, Slots, SlotsChanged
from kvstore.index_follower import IndexFollower
from kvstore.kv_log import KvLog, open_kv_log
from kvstore.kv_record import encode_deltas
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.prefix_index import PrefixIndex
from kvstore.settings import IndexSettings
from kvstore.source_sequence import SyncState
from kvstore.types import WorkerId
from tests.kv_workers import Worker, shown_by
from tests.redis_servers import Servers, cluster_servers, plain_server, sentinel_servers

LEASE_S = 1.0
SETTINGS = IndexSettings(snapshot_interval_s=0.2)
NAMESPACE = "ns"

Start = Callable[[Path], AbstractAsyncContextManager[Servers]]


@dataclass
class Router:
    """One follower, and what it has told."""

    index: FleetIndex
    follower: IndexFollower
    mapped: dict[SourceId, Slots] = field(default_factory=dict)

    def told(self, changed: SlotsChanged) -> None:
        self.mapped[changed.source] = changed.slots
        if changed.slots == NO_SLOTS:
            del self.mapped[changed.source]

    def agrees_with(self, worker: Worker) -> bool:
        """It knows the very newest, exactly."""
        return (
            self.index.is_exact(worker.source)
            and self.index.position(worker.source) == (worker.epoch, worker.seq)
            and shown_by(self.index, self.mapped, worker.source) == worker.now
        )


@dataclass
class Fleet:
    """A server, workers that write to it, and routers that follow it."""

    servers: Servers
    log: KvLog
    stack: AsyncExitStack
    workers: list[Worker]
    keeping: list[Worker]  # those that keep their snapshots alive
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, num_deltas: int = 1, *, lost: bool = False) -> None:
        """Each worker publishes so many deltas, or they get lost on the way."""
        for _ in range(num_deltas):
            deltas = [worker.step() for worker in self.workers]
            if not lost:
                await self.log.publish(deltas)

    async def keep(self) -> None:
        """What workers do with every heartbeat: keep the snapshot alive, write one where it is missing or wanted."""
        while not self.ending.is_set():
            for worker in self.keeping:
                with contextlib.suppress(RedisUnavailableError):
                    status = await self.log.touch(worker.source, LEASE_S)
                    if not status.has_snapshot or status.resync_wanted:
                        await self.log.write_snapshot(worker.snapshot(), LEASE_S)
            await asyncio.sleep(0.05)

    async def add_router(self, settings: IndexSettings = SETTINGS) -> Router:
        """A router that starts now."""
        log = await self.stack.enter_async_context(
            open_kv_log(self.servers.url, NAMESPACE, settings, self.servers.settings)
        )
        index = FleetIndex(PrefixIndex(settings.budget_bytes))
        router = Router(index, IndexFollower(log, index, settings, LEASE_S, lambda changed: router.told(changed)))
        task = asyncio.create_task(router.follower.run())
        self.stack.push_async_callback(_end, router.follower, task)
        return router

    async def agreement(self, *routers: Router) -> None:
        """Wait until every router knows everything about every worker."""
        await until(lambda: all(router.agrees_with(worker) for router in routers for worker in self.workers))
        assert all(router.mapped == router.index.slots() for router in routers)


async def _end(follower: IndexFollower, task: "asyncio.Task[None]") -> None:
    follower.stop()
    await asyncio.wait_for(task, timeout=20)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to that")


@asynccontextmanager
async def fleet(folder: Path, num_workers: int, start: Start) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(start(folder))
        log = await stack.enter_async_context(open_kv_log(servers.url, NAMESPACE, SETTINGS, servers.settings))
        sources = [SourceId(WorkerId(f"w{number}"), number % 2) for number in range(num_workers)]
        workers = [Worker(source, Random(number)) for number, source in enumerate(sources)]
        running = Fleet(servers, log, stack, workers, list(workers))
        keeping = asyncio.create_task(running.keep())
        try:
            yield running
        finally:  # not by cancellation: redis-py swallows some of those
            running.ending.set()
            await keeping


def run(
    folder: Path, test: Callable[[Fleet], Awaitable[None]], num_workers: int = 3, start: Start = plain_server
) -> None:
    async def body() -> None:
        async with fleet(folder, num_workers, start) as running:
            await test(running)

    asyncio.run(body())


def test_a_router_that_starts_late_knows_everything_when_it_is_ready(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        await fleet.say(20)
        for worker in fleet.workers:
            await fleet.log.write_snapshot(worker.snapshot(), LEASE_S)
        await fleet.say(20)
        router = await fleet.add_router()
        assert not router.follower.is_ready
        assert await router.follower.wait_ready(20.0)
        assert all(router.agrees_with(worker) for worker in fleet.workers)
        assert router.follower.num_resyncs == 0

    run(tmp_path, test)


def test_routers_follow(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        routers = [await fleet.add_router(), await fleet.add_router()]
        for _ in range(5):
            await fleet.say(10)
            await fleet.agreement(*routers)
        routers.append(await fleet.add_router())
        fleet.workers[0].restart()
        await fleet.say(3)
        await fleet.agreement(*routers)
        assert all(router.index.stats().gaps == 0 for router in routers)
        assert all(0 <= router.follower.lag_s < 60 for router in routers)

    run(tmp_path, test)


def test_what_is_lost_on_the_way_is_repaired_with_a_snapshot_that_the_worker_is_asked_for(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(5)
        await fleet.agreement(router)
        await fleet.say(3, lost=True)
        await fleet.say(1)
        await until(lambda: router.index.stats().sources[SyncState.SYNCED] < 3)
        await fleet.agreement(router)
        assert router.follower.num_resyncs >= 1
        assert router.index.stats().snapshots >= 1

    run(tmp_path, test)


def test_a_restart_of_which_nothing_arrived_is_found_by_its_snapshot(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(5)
        await fleet.agreement(router)
        for worker in fleet.workers:
            worker.restart()
        await fleet.say(3, lost=True)  # and silence: only a comparison can find this
        for worker in fleet.workers:
            await fleet.log.write_snapshot(worker.snapshot(), LEASE_S)
        await fleet.agreement(router)

    run(tmp_path, test)


def test_an_emptied_redis_is_filled_again_and_nothing_is_forgotten_meanwhile(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(10)
        await fleet.agreement(router)
        await fleet.servers.flush()
        assert all(router.agrees_with(worker) for worker in fleet.workers)
        late = await fleet.add_router()
        await fleet.agreement(router, late)
        await fleet.servers.flush()
        await fleet.say(10)
        await fleet.agreement(router, late)
        assert router.index.stats().gaps == 0

    run(tmp_path, test)


def test_redis_is_killed_and_comes_back_empty(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(10)
        await fleet.agreement(router)
        fleet.servers.servers[0].kill()
        await until(lambda: not router.follower.redis_up)
        assert all(router.agrees_with(worker) for worker in fleet.workers)
        late = await fleet.add_router()
        assert not await late.follower.wait_ready(0.3)
        for worker in fleet.workers:
            worker.step()  # which nobody could be told
        await fleet.servers.servers[0].start()
        await fleet.say(2)
        await fleet.agreement(router, late)
        assert router.follower.redis_up
        assert late.follower.is_ready

    run(tmp_path, test)


def test_sentinels_fail_over_to_a_replica_that_may_lack_the_last_writes(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(10)
        await fleet.agreement(router)
        (await fleet.servers.server_of("any")).kill()
        for _ in range(100):
            with contextlib.suppress(RedisUnavailableError):
                await fleet.say(1)
            await asyncio.sleep(0.05)
        await fleet.agreement(router, await fleet.add_router())

    run(tmp_path, test, start=sentinel_servers)


def test_the_node_with_the_log_dies_and_comes_back_empty(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(10)
        await fleet.agreement(router)
        node = await fleet.servers.server_of("{ns:kv}:log")
        node.kill()
        for worker in fleet.workers:
            worker.step()  # which nobody could be told
        await node.start()
        for _ in range(100):
            with contextlib.suppress(RedisUnavailableError):
                await fleet.say(1)
                break
        await fleet.agreement(router, await fleet.add_router())

    run(tmp_path, test, start=cluster_servers)


def test_a_log_that_ran_ahead_is_noticed_even_if_the_worker_says_nothing_more(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(5)
        await fleet.agreement(router)
        async with fleet.servers.servers[0].client() as client:
            pipe = client.pipeline(transaction=True)  # in one step, so that no reader sees it
            for delta in [worker.step() for worker in fleet.workers]:
                pipe.xadd("{ns:kv}:log", {b"d": encode_deltas([delta])})
            pipe.xtrim("{ns:kv}:log", maxlen=0, approximate=False)
            await pipe.execute()
        for worker in fleet.workers:
            await fleet.log.write_snapshot(worker.snapshot(), LEASE_S)
        await fleet.agreement(router)

    run(tmp_path, test)


def test_a_source_that_is_gone_is_dropped_after_a_lease(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await fleet.say(5)
        await fleet.agreement(router)
        gone = fleet.workers.pop()
        fleet.keeping.remove(gone)
        await until(lambda: gone.source not in router.index.sources())
        await fleet.agreement(router)
        assert sorted(router.index.sources()) == sorted(worker.source for worker in fleet.workers)

    run(tmp_path, test)


def test_records_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        async with fleet.servers.servers[0].client() as client:
            for record in (b"", b"KVD\x02 of the next version", b"nonsense"):
                await client.xadd("{ns:kv}:log", {b"d": record})
            await client.set("ns:kv:{w9/0}:snapshot", b"KVS\x01" + bytes(16) + b"nonsense")
            await client.sadd("{ns:kv}:sources", "w9/0")
        await fleet.say(5)
        await fleet.agreement(router)
        assert router.follower.num_malformed == 3

    run(tmp_path, test)


def test_without_memory_a_source_is_not_exact_until_there_is_room(tmp_path: Path) -> None:
    random = Random(5)
    settings = IndexSettings(snapshot_interval_s=0.2, budget_bytes=1 << 20)

    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router(settings)
        small, large = SourceId(WorkerId("small")), SourceId(WorkerId("large"))
        held = {source: [random.getrandbits(64) for _ in range(20_000)] for source in (large, small)}

        async def keep(sources: Sequence[SourceId]) -> None:
            for source in sources:
                await fleet.log.write_snapshot(KvSnapshot(source, 1, 5, {Tier.DEVICE: held[source]}), LEASE_S)

        await keep([large])
        await until(lambda: router.index.is_exact(large))
        await keep([large, small])
        await until(lambda: router.index.stats().truncated_sources == 1)
        assert (router.index.is_exact(large), router.index.is_exact(small)) == (True, False)
        for _ in range(200):
            await keep([small])
            await asyncio.sleep(0.1)
            if router.index.is_exact(small):
                break
        assert router.index.is_exact(small)
        assert router.index.sources() == [small]

    run(tmp_path, test, num_workers=0)


def test_a_large_delta_is_applied_beside_other_work(tmp_path: Path) -> None:
    random = Random(5)

    async def test(fleet: Fleet) -> None:
        router = await fleet.add_router()
        await router.follower.wait_ready(20.0)
        source = SourceId(WorkerId("large"))
        hashes = tuple(random.getrandbits(64) for _ in range(50_000))
        turns = 0
        await fleet.log.publish([KvDelta(source, 1, 1, (KvChange(Op.STORE, Tier.DEVICE, hashes),))])
        while not router.index.is_exact(source) or router.index.position(source) != (1, 1):
            turns += router.index.position(source) is not None  # half of it is applied
            await asyncio.sleep(0)
        assert turns > 5

    run(tmp_path, test, num_workers=0)
