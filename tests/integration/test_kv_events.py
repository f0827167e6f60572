"""From an engine's KV events to what routers know, over real sockets; the engine is the fake, the log in memory."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
import zmq
import zmq.asyncio

from kvstore.kv_types import Tier
from tests.kv_twin import Prompt
from tests.kv_world import EVENTS, HOST, INDEX, SOURCE, chain, prompt, run, until, whole, world
from tests.memory_kv_log import RouterView
from workers.fake import FakeEngine
from workers.kv_endpoints import KvEndpoints
from workers.ports import free_ports


def test_a_router_knows_what_the_engine_has_cached_and_forgotten() -> None:
    async def test() -> None:
        async with world(kv_blocks=16, max_model_len_tokens=512) as w, FakeEngine(w.settings).serving() as engine:
            router = await w.follow(1)
            await w.complete(engine, prompt(1), cache_salt="pepper")
            await w.complete(engine, prompt(2))
            both = whole(prompt(1), "pepper") | whole(prompt(2))
            await until(lambda: router.held()[Tier.DEVICE] == both, "both prompts")
            await w.complete(engine, prompt(3, 12))  # there is room for one more only
            await until(lambda: whole(prompt(3, 12)) <= router.held()[Tier.DEVICE], "the third")
            assert router.held()[Tier.DEVICE].isdisjoint(whole(prompt(1), "pepper"))
            known = router.held()[Tier.DEVICE] & whole(prompt(2))
            assert 0 < len(known) < len(whole(prompt(2)))
            assert await w.complete(engine, prompt(2)) == len(known) * INDEX.block_size_tokens

    run(test)


def test_what_was_cached_before_anybody_listened_is_known() -> None:
    async def test() -> None:
        async with world() as w, FakeEngine(w.settings).serving() as engine:
            await w.complete(engine, prompt(1))
            router = await w.follow(1)
            await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "the replay from the start")
            await w.complete(engine, prompt(2))
            await until(lambda: whole(prompt(2)) <= router.held()[Tier.DEVICE], "and what comes after it")

    run(test)


@pytest.mark.parametrize("then", ["more", "silence"])
def test_lost_events_are_repeated(then: str) -> None:
    """The loss shows in the numbers of what comes after it, or when nothing comes for a while."""

    async def test() -> None:
        async with world() as w, FakeEngine(w.settings).serving() as engine:
            router = await w.follow(1)
            await w.complete(engine, prompt(1))
            await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "the first")
            w.line.is_cut = True
            await w.complete(engine, prompt(2))
            await until(lambda: w.line.lost > 0, "a loss")
            w.line.is_cut = False
            expected = whole(prompt(1)) | whole(prompt(2))
            if then == "more":
                await w.complete(engine, prompt(3))
                expected |= whole(prompt(3))
            await until(lambda: router.held()[Tier.DEVICE] == expected, "everything")
            assert sum(change.op.name == "CLEAR" for delta in w.log.deltas for change in delta.changes) == 1

    run(test)


def test_lost_events_that_nobody_repeats_leave_less_and_traffic_heals_it() -> None:
    async def test() -> None:
        async with world(can_replay=False) as w, FakeEngine(w.settings).serving() as engine:
            router = await w.follow(1)
            await asyncio.sleep(0.3)  # until the engine knows of its listener: nothing is repeated here
            await w.complete(engine, prompt(1))
            await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "the first")
            w.line.is_cut = True
            await w.complete(engine, prompt(2))
            await until(lambda: w.line.lost > 0, "a loss")
            w.line.is_cut = False
            await w.complete(engine, prompt(3))
            await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(3)), "nothing but what is proved")
            longer = prompt(1)[:128] + prompt(4)
            assert await w.complete(engine, longer) == 128
            await until(lambda: whole(longer) <= router.held()[Tier.DEVICE], "the old prefix, proved by its successor")

    run(test)


def test_an_engine_that_was_only_away_is_believed_again_bit_by_bit() -> None:
    """Its worker began a new epoch; what it cached before is not repeated."""

    async def test() -> None:
        async with world(can_replay=False) as w, FakeEngine(w.settings).serving() as engine:
            router = await w.follow(1)
            await asyncio.sleep(0.3)
            await w.complete(engine, prompt(1))
            await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "the first epoch")
            await w.feeds.follow(2, {0: w.where})
            await until(lambda: router.held()[Tier.DEVICE] == set(), "the second epoch")
            await asyncio.sleep(0.3)
            longer = prompt(1)[:128] + prompt(2)
            await w.complete(engine, longer)
            await until(lambda: router.held()[Tier.DEVICE] == whole(longer), "the old prefix and the new blocks")

    run(test)


@pytest.mark.parametrize("told", [True, False])
def test_a_restarted_engine_s_old_blocks_are_gone(told: bool) -> None:
    """Whether its worker notices and begins a new epoch, or only its messages show it."""

    async def test() -> None:
        async with world() as w:
            async with FakeEngine(w.settings).serving() as engine:
                router = await w.follow(1)
                await w.complete(engine, prompt(1))
                await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "the first life")
            if told:
                router = await w.follow(2)
                await until(lambda: router.held()[Tier.DEVICE] == set(), "forgotten before the new engine is there")
            async with FakeEngine(w.settings).serving() as engine:
                await until(lambda: router.held()[Tier.DEVICE] == set(), "forgotten without an event of the new life")
                await w.complete(engine, prompt(2))
                await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(2)), "the second life")

    run(test)


def test_nobody_knocks_at_the_replay_port_before_the_engine_is_there() -> None:
    """An engine that is still starting would find its port taken by a socket that connected to itself."""

    async def test() -> None:
        async with world() as w:
            (port,) = free_ports(HOST, 1)
            knocks: list[asyncio.StreamWriter] = []
            server = await asyncio.start_server(lambda _, writer: knocks.append(writer), HOST, port)
            async with server:
                where = replace(w.where, replay=f"tcp://{HOST}:{port}")
                await w.feeds.follow(1, {0: where}, engine_is_up=False)
                await asyncio.sleep(3 * EVENTS.silence_s)
                assert knocks == []
                await w.feeds.follow(1, {})
                await until(lambda: bool(knocks), "the first question")
                await w.feeds.close()
                for knock in knocks:
                    knock.close()

    run(test)


def test_a_worker_that_leaves_is_forgotten() -> None:
    async def test() -> None:
        async with world() as w, FakeEngine(w.settings).serving():
            await w.follow(1)
            await until(lambda: SOURCE in w.log.snapshots, "its snapshot")
            await w.feeds.close()
            assert w.log.snapshots == {}
            assert w.log.calls[-1] == "drop"

    run(test)


def test_an_engine_without_events_and_an_address_that_is_taken_are_no_reason_to_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with world() as w:
            await w.feeds.follow(1, {})
            assert "by load only" in caplog.text
            await w.feeds.follow(2, {0: KvEndpoints("tcp://no such host:1", binds=True, replay=None, topic="")})
            assert "cannot listen" in caplog.text

    with caplog.at_level(logging.INFO):
        run(test)


@asynccontextmanager
async def publisher(endpoint: str) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """An engine that is nothing but a socket: sends numbered payloads."""
    context = zmq.asyncio.Context()
    socket: zmq.asyncio.Socket = context.socket(zmq.PUB)
    socket.connect(endpoint)
    await asyncio.sleep(0.3)  # until it knows of its listener

    async def send(seq: int, *events: object, raw: bytes | None = None) -> None:
        payload = raw if raw is not None else msgspec.msgpack.encode([0.0, list(events), 0])
        await socket.send_multipart([b"kv", seq.to_bytes(8, "big"), payload])

    try:
        yield send
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("what", ["unreadable", "several groups"])
def test_what_cannot_be_understood_is_said_once_and_leaves_nothing_wrong(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    prompt_1 = Prompt(tuple(prompt(1)))
    begin, end = prompt_1.stored(32, 0, 2), prompt_1.stored(32, 2, 4)

    async def test() -> None:
        async with world() as w:
            (port,) = free_ports(HOST, 1)
            where = KvEndpoints(f"tcp://{HOST}:{port}", binds=True, replay=None, topic="kv")
            await w.feeds.follow(1, {0: where})
            router = RouterView(w.log, SOURCE)
            async with publisher(where.events) as send:
                await send(0, begin)
                await until(lambda: router.held()[Tier.DEVICE] == chain(prompt(1), 64), "the beginning")
                if what == "unreadable":
                    await send(1, raw=b"?")
                    await until(lambda: router.held()[Tier.DEVICE] == set(), "distrust")
                    await send(2, end)
                    await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "proved again")
                    await send(3, raw=b"?")
                else:
                    await send(1, {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 1})
                    await send(2, end)
                await until(lambda: router.held()[Tier.DEVICE] == set(), "nothing is known")

    run(test)
    said = {"unreadable": "unreadable KV events", "several groups": "several groups of KV cache"}
    assert caplog.text.count(said[what]) == 1


def test_a_feed_that_breaks_is_forgotten_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with world() as w, FakeEngine(w.settings).serving() as engine:
            router = await w.follow(1)
            await w.complete(engine, prompt(1))
            await until(lambda: router.held()[Tier.DEVICE] == whole(prompt(1)), "all is well")
            w.log.is_broken = True
            await w.complete(engine, prompt(2))
            await until(lambda: w.log.snapshots == {}, "routers forget it")
            await w.feeds.close()

    run(test)
    assert "its cache contents are unknown from now on" in caplog.text
