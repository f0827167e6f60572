"""An engine, the feeds of its worker, and a router that follows, in one process; the line between can lose messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import zmq
import zmq.asyncio

from kvstore.blocks import chain_blocks, chain_root
from kvstore.kv_types import SourceId
from kvstore.settings import IndexSettings, RedisSettings
from kvstore.types import WorkerId
from tests.memory_kv_log import MemoryKvLog, RouterView
from workers.fake import FakeEngine, FakeSettings
from workers.kv_endpoints import KvEndpoints
from workers.kv_feed import KvFeeds
from workers.ports import free_ports
from workers.settings import KvEventSettings

WORKER = WorkerId("w1")
SOURCE = SourceId(WORKER)
HOST = "127.0.0.1"
REDIS = RedisSettings(lease_s=5.0, heartbeat_s=0.1)
INDEX = IndexSettings(block_size_tokens=16, snapshot_interval_s=0.2)  # the engine's blocks have 32
EVENTS = KvEventSettings(silence_s=0.4, replay_timeout_s=1.0, publish_interval_s=0.01)


class Line:
    """A ZeroMQ line between engine and listener that can lose messages."""

    def __init__(self, engine_endpoint: str, listener_endpoint: str) -> None:
        self._context = zmq.asyncio.Context()
        self._from: zmq.asyncio.Socket = self._context.socket(zmq.SUB)
        self._from.setsockopt(zmq.SUBSCRIBE, b"")
        self._from.bind(engine_endpoint)
        self._to: zmq.asyncio.Socket = self._context.socket(zmq.PUB)
        self._to.bind(listener_endpoint)
        self.is_cut = False
        self.lost = 0

    async def run(self) -> None:
        """Pass messages on until cancelled."""
        try:
            while True:
                frames = await self._from.recv_multipart()
                if self.is_cut:
                    self.lost += 1
                else:
                    await self._to.send_multipart(frames)
        finally:
            self._context.destroy(linger=0)


@dataclass
class World:
    """One engine (or several lives of one), the feeds of its worker, and a router that follows."""

    settings: FakeSettings
    where: KvEndpoints
    line: Line
    log: MemoryKvLog
    feeds: KvFeeds
    session: aiohttp.ClientSession

    async def follow(self, epoch: int) -> RouterView:
        """Follow the engine in a new epoch; what a router sees of it."""
        await self.feeds.follow(epoch, {0: self.where})
        return RouterView(self.log, SOURCE)

    async def complete(self, engine: FakeEngine, tokens: list[int], **fields: object) -> int:
        """Tokens of the prompt that the engine had cached."""
        body = {"model": "fake", "prompt": tokens, "max_tokens": 1, **fields}
        async with self.session.post(f"{engine.address}/v1/completions", json=body) as response:
            assert response.status == 200
            usage = (await response.json())["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])


@asynccontextmanager
async def world(*, can_replay: bool = True, **settings: object) -> AsyncIterator[World]:
    """Everything but the engine; `settings` are for the fakes that the test starts."""
    to_line, to_listener, replay = (f"tcp://{HOST}:{port}" for port in free_ports(HOST, 3))
    fake = FakeSettings(kv_events_endpoint=to_line, kv_replay_endpoint=replay, **settings)  # type: ignore[arg-type]
    where = KvEndpoints(to_listener, binds=False, replay=replay if can_replay else None, topic="kv")
    line = Line(to_line, to_listener)
    forwarding = asyncio.create_task(line.run())
    log = MemoryKvLog()
    feeds = KvFeeds(log, WORKER, index=INDEX, events=EVENTS, redis=REDIS)
    try:
        async with aiohttp.ClientSession() as session:
            yield World(fake, where, line, log, feeds, session)
    finally:
        await feeds.close()
        forwarding.cancel()
        await asyncio.gather(forwarding, return_exceptions=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function."""

    async def body() -> None:
        await test()

    asyncio.run(body())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Look until `condition` holds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.01)
            return
    raise AssertionError(f"not within 15 s: {what}")


def prompt(number: int, num_blocks: int = 4) -> list[int]:
    """Tokens that begin like no other prompt's, for whole engine blocks and a bit."""
    return [1000 * number + index for index in range(32 * num_blocks + 5)]


def chain(tokens: list[int], num_tokens: int | None = None, salt: str | None = None) -> set[int]:
    """Canonical blocks of the first `num_tokens`."""
    return set(chain_blocks(tokens[:num_tokens], INDEX.block_size_tokens, chain_root(cache_salt=salt)))


def whole(tokens: list[int], salt: str | None = None) -> set[int]:
    """Of the tokens in full engine blocks."""
    return chain(tokens, len(tokens) // 32 * 32, salt)
