"""Operators' intents against a real server. Numbers: invariants of kvstore/intents.py."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kvstore.errors import RedisUnavailableError
from kvstore.intents import Intent, Intents, IntentStore, Kind, open_intents
from router.intent_follower import IntentFollower
from tests.redis_servers import Servers, plain_server

OLGA, OTTO = Intent("olga", 1.0, "a new driver"), Intent("otto", 2.0)


def run(folder: Path, test: Callable[[Servers, IntentStore], Awaitable[None]]) -> None:
    async def body() -> None:
        async with plain_server(folder) as servers, open_intents(servers.url, "ns") as store:
            await test(servers, store)

    asyncio.run(body())


def test_invariant_1_the_first_wish_stays_until_it_is_taken_back(tmp_path: Path) -> None:
    async def test(_: Servers, store: IntentStore) -> None:
        assert await store.put(Kind.DRAIN, "w1", OLGA) == OLGA
        assert await store.put(Kind.DRAIN, "w1", OTTO) == OLGA
        assert await store.put(Kind.PAUSED, "w1", OTTO) == OTTO, "a class may have a worker's name"
        assert await store.read_all() == Intents({"w1": OLGA}, {"w1": OTTO})
        assert await store.remove(Kind.DRAIN, "w1")
        assert not await store.remove(Kind.DRAIN, "w1")
        assert await store.put(Kind.DRAIN, "w1", OTTO) == OTTO

    run(tmp_path, test)


def test_invariant_2_nothing_wanted_is_not_nothing_known(tmp_path: Path) -> None:
    async def test(servers: Servers, store: IntentStore) -> None:
        assert not (await store.read_all()).is_kept
        await store.put(Kind.DRAIN, "w1", OLGA)
        await store.remove(Kind.DRAIN, "w1")
        assert await store.read_all() == Intents()
        seen: list[Intents] = []
        follower = IntentFollower(store, 0.1, seen.append)
        await store.put(Kind.PAUSED, "batch", OTTO)
        await follower.look()
        await servers.flush()
        await asyncio.gather(*(follower.look() for _ in range(3)))
        assert seen == [Intents({}, {"batch": OTTO})], "nobody was told that it was lost"
        assert await store.read_all() == Intents({}, {"batch": OTTO})
        await store.remove(Kind.PAUSED, "batch")
        await follower.look()
        assert seen[1:] == [Intents()], "what is taken back stays so"

    run(tmp_path, test)


def test_what_others_wrote_there_is_left_out(tmp_path: Path) -> None:
    async def test(servers: Servers, store: IntentStore) -> None:
        await store.put(Kind.DRAIN, "w1", OLGA)
        async with servers.servers[0].client() as client:
            await client.hset("{ns}:intents", mapping={"drain:w2": "not JSON", "drain:w3": '{"by": 1}', "new:x": "{}"})
        assert await store.read_all() == Intents({"w1": OLGA})

    run(tmp_path, test)


def test_a_follower_hears_of_a_change_and_goes_on_without_redis(tmp_path: Path) -> None:
    async def test(servers: Servers, store: IntentStore) -> None:
        heard = asyncio.Event()
        seen: list[Intents] = []

        def on_intents(intents: Intents) -> None:
            seen.append(intents)
            heard.set()

        follower = IntentFollower(store, 0.1, on_intents)
        following = asyncio.create_task(follower.run())
        async with open_intents(servers.url, "ns") as other:
            await other.put(Kind.DRAIN, "w1", OLGA)
        await asyncio.wait_for(heard.wait(), 20)
        servers.servers[0].kill()
        await follower.look()
        assert follower.known == seen[-1] == Intents({"w1": OLGA})
        with pytest.raises(RedisUnavailableError):
            await store.put(Kind.DRAIN, "w2", OLGA)
        follower.stop()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run(tmp_path, test)
