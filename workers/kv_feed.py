"""What one worker's engine has cached, on its way to the routers: a listener, a mirror and a publisher for each rank.

A side channel. Whatever fails in it is logged and ends here; the worker then is chosen by load only, and serves on.

Invariants
 1. A rank has one feed at a time. The listeners of an epoch have let go of their sockets before those of the next one
    bind them, and a source's publisher begins when the one before it has ended.
 2. A feed that fails is gone as a whole: routers forget the source instead of believing in what it said last.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from kvstore.errors import RedisUnavailableError
from kvstore.kv_log import open_kv_log
from kvstore.kv_types import SourceId
from kvstore.settings import IndexSettings, RedisSettings
from kvstore.types import WorkerId
from workers.errors import KvEventsUnavailableError
from workers.kv_endpoints import KvEndpoints
from workers.kv_events import KvEventConsumer
from workers.kv_mirror import KvMirror
from workers.kv_publisher import DeltaLog, KvPublisher, PublishPace
from workers.settings import KvEventSettings

_log = logging.getLogger(__name__)
_BLOCKS_PER_ENGINE_BLOCK = 16  # bound of a mirror: lower tiers may hold more than the engine's own memory
_MIN_BLOCKS = 65_536  # the bound while the engine's size is not known
_END_S = 5.0  # the longest that a worker which stops waits for its side channel


class _Feed:
    """One rank in one epoch. `on_failure` is called once if a part of it ends by itself."""

    def __init__(
        self,
        mirror: KvMirror,
        consumer: KvEventConsumer,
        publisher: KvPublisher,
        predecessor: "asyncio.Task[None] | None",
        on_failure: Callable[["_Feed", BaseException | None], None],
    ) -> None:
        self.mirror = mirror
        self.consumer = consumer
        self._stop = asyncio.Event()
        self._on_failure = on_failure
        self.listening = asyncio.create_task(consumer.run(self._stop))
        self.publishing = asyncio.create_task(self._publish(publisher, predecessor))
        for task in (self.listening, self.publishing):
            task.add_done_callback(self._ended)

    async def end(self) -> None:
        """Stop; the sockets are closed afterwards, the publisher may still be waiting for Redis."""
        self._stop.set()
        await asyncio.wait([self.listening], timeout=_END_S)

    async def _publish(self, publisher: KvPublisher, predecessor: "asyncio.Task[None] | None") -> None:
        if predecessor is not None:
            await asyncio.wait([predecessor])
        await publisher.run(self._stop)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if not self._stop.is_set():
            self._stop.set()
            self._on_failure(self, error)


class KvFeeds:
    """The feeds of one worker. No method raises."""

    def __init__(
        self,
        log: DeltaLog,
        worker_id: WorkerId,
        *,
        index: IndexSettings,
        events: KvEventSettings,
        redis: RedisSettings,
    ) -> None:
        self._log = log
        self._worker_id = worker_id
        self._block_size_tokens = index.block_size_tokens
        self._settings = events
        self._pace = PublishPace(
            batch_s=events.publish_interval_s,
            touch_s=redis.heartbeat_s,
            snapshot_s=index.snapshot_interval_s,
            lease_s=redis.lease_s,
            max_unsent_blocks=events.max_unsent_blocks,
        )
        self._max_blocks = events.max_blocks or _MIN_BLOCKS
        self._epoch = 0
        self._feeds: dict[int, _Feed] = {}  # by data-parallel rank
        self._mirrors: dict[int, KvMirror] = {}  # the latest of each rank
        self._publishers: dict[int, asyncio.Task[None]] = {}  # the latest of each rank that ever had one
        self._forgetting: set[asyncio.Task[None]] = set()

    async def follow(self, epoch: int, endpoints: Mapping[int, KvEndpoints], *, engine_is_up: bool = True) -> None:
        """Follow these ranks of the engine in this epoch. A new epoch ends all feeds of the one before; ranks that are
        followed already go on. An engine that is still to be started is listened to, and not asked anything yet."""
        if epoch != self._epoch:
            await self._end_all()
            self._epoch = epoch
        for rank, where in endpoints.items():
            if rank not in self._feeds:
                self._begin(rank, where)
        if engine_is_up:
            for feed in self._feeds.values():
                feed.consumer.engine_came_up()
        if not self._feeds:
            _log.info("worker %s: its engine publishes no KV events; it is chosen by load only", self._worker_id)

    def limit(self, kv_blocks_total: int) -> None:
        """The engine's size is known: bound the mirrors by it, unless the settings do."""
        if self._settings.max_blocks is None:
            self._max_blocks = max(_MIN_BLOCKS, _BLOCKS_PER_ENGINE_BLOCK * kv_blocks_total)
            for feed in self._feeds.values():
                feed.mirror.limit(self._max_blocks)

    async def close(self) -> None:
        """The worker leaves: end everything, and let routers forget it."""
        await self._end_all()
        await _wait_for({*self._publishers.values(), *self._forgetting})
        await _wait_for({asyncio.create_task(self._forget(rank)) for rank in self._publishers})

    def _begin(self, rank: int, where: KvEndpoints) -> None:
        source = SourceId(self._worker_id, rank)
        name = f"worker {self._worker_id}" + (f" rank {rank}" if rank else "")
        mirror = self._mirror_of(rank)
        publisher = KvPublisher(self._log, source, self._epoch, self._pace, mirror.snapshot)
        try:
            consumer = KvEventConsumer(
                name,
                where,
                mirror,
                publisher.put,
                silence_s=self._settings.silence_s,
                replay_timeout_s=self._settings.replay_timeout_s,
            )
        except KvEventsUnavailableError as error:
            _log.warning("%s is chosen by load only: %s", name, error)
            return
        feed = _Feed(mirror, consumer, publisher, self._publishers.get(rank), self._on_failure)
        self._feeds[rank], self._publishers[rank] = feed, feed.publishing

    def _mirror_of(self, rank: int) -> KvMirror:
        """A mirror that believes in nothing, yet still knows what the blocks of an earlier epoch stood for: an engine
        that had only not answered for a while still has them, and may repeat no more than its latest events."""
        mirror = self._mirrors.get(rank)
        if mirror is None or mirror.dark:
            mirror = self._mirrors[rank] = KvMirror(self._block_size_tokens, self._max_blocks)
        mirror.distrust()
        return mirror

    async def _end_all(self) -> None:
        feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            await feed.end()

    def _on_failure(self, failed: _Feed, error: BaseException | None) -> None:
        """A bug, as everything else is dealt with where it happens."""
        for rank, feed in list(self._feeds.items()):
            if feed is failed:
                _log.error("worker %s: its cache contents are unknown from now on", self._worker_id, exc_info=error)
                del self._feeds[rank], self._mirrors[rank]
                task = asyncio.create_task(self._forget_after(feed.publishing, rank))
                self._forgetting.add(task)
                task.add_done_callback(self._forgetting.discard)

    async def _forget_after(self, publishing: "asyncio.Task[None]", rank: int) -> None:
        await asyncio.wait([publishing])
        await self._forget(rank)

    async def _forget(self, rank: int) -> None:
        try:
            await self._log.drop(SourceId(self._worker_id, rank))
        except RedisUnavailableError as error:
            _log.info("worker %s: its snapshot is left to expire: %s", self._worker_id, error)


async def _wait_for(tasks: "set[asyncio.Task[None]]") -> None:
    """Wait a bounded time; redis-py swallows some cancellations, so what is late is not waited for any longer."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=_END_S)
        for task in late:
            task.cancel()


@asynccontextmanager
async def open_kv_feeds(
    redis_url: str, worker_id: WorkerId, index: IndexSettings, events: KvEventSettings, redis: RedisSettings
) -> AsyncIterator[KvFeeds | None]:
    """The worker's feeds on a Redis connection of their own; None where they are switched off."""
    if not events.enabled:
        yield None
        return
    async with open_kv_log(redis_url, redis.namespace, index, redis) as log:
        feeds = KvFeeds(log, worker_id, index=index, events=events, redis=redis)
        try:
            yield feeds
        finally:
            await feeds.close()
