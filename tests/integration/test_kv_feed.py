"""What an engine has cached reaches Redis: real supervisors, sockets and Redis; the engine is the fake."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from controlplane.embedded_redis import embedded_redis
from kvstore.kv_log import KvLog, open_kv_log
from kvstore.kv_types import KvSnapshot, Tier
from kvstore.leases import open_leases
from tests.kv_world import EVENTS, HOST, INDEX, REDIS, SOURCE, WORKER, prompt, run, until, whole
from workers.child_process import inherited_env
from workers.engine_command import EngineCommand, EnginePorts
from workers.fake import FakeEngine, FakeSettings
from workers.kv_feed import open_kv_feeds
from workers.lease_keeper import LeaseKeeper
from workers.ports import free_ports
from workers.settings import EngineSettings
from workers.supervisor import EngineSupervisor
from workers.types import NO_LOAD, Phase, Role, WorkerState
from workers.worker import new_spec, run_joined

ENGINE = EngineSettings(probe_interval_s=0.5, probe_timeout_s=1.0, shutdown_timeout_s=1.0, max_backoff_s=1.0)


@asynccontextmanager
async def stored(folder: Path) -> AsyncIterator[tuple[str, KvLog]]:
    """A real Redis: its URL, and the log in it."""
    async with (
        embedded_redis(folder) as url,
        open_kv_log(url, REDIS.namespace, INDEX, REDIS) as log,
    ):
        yield url, log


async def snapshot_with(log: KvLog, expected: set[int], *, after_epoch: int = 0) -> KvSnapshot:
    """Wait for the source's snapshot to show exactly this."""
    found: list[KvSnapshot] = []
    for _ in range(400):
        found = [snapshot async for snapshot in log.read_snapshots([SOURCE])]
        if found and found[0].epoch > after_epoch and set(found[0].held.get(Tier.DEVICE, ())) == expected:
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError(f"wanted {len(expected)} blocks after epoch {after_epoch}, have {found}")


async def post(address: str, tokens: list[int], max_tokens: int = 1) -> None:
    body = {"model": "fake", "prompt": tokens, "max_tokens": max_tokens}
    with contextlib.suppress(aiohttp.ClientError):
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{address}/v1/completions", json=body) as response,
        ):
            await response.read()


def test_a_supervised_engine_s_blocks_reach_redis_and_its_next_life_begins_with_none(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"faults": [{"match": {"after_tokens": 40}, "action": "exit"}]}')

    def build(ports: EnginePorts) -> EngineCommand:
        at = [f"tcp://{HOST}:{port}" for port in (ports.kv_events, ports.kv_replay)]
        argv = [sys.executable, "-m", "workers.fake", "--port", str(ports.http), "--plan", str(plan)]
        argv += ["--kv-events-endpoint", at[0], "--kv-replay-endpoint", at[1]]
        return EngineCommand(tuple(argv), {**inherited_env(), "PYTHONPATH": str(Path(__file__).parents[2])})

    async def test() -> None:
        async with AsyncExitStack() as stack:
            url, log = await stack.enter_async_context(stored(tmp_path))
            store = await stack.enter_async_context(open_leases(url, REDIS.namespace))
            feeds = await stack.enter_async_context(open_kv_feeds(url, WORKER, INDEX, EVENTS, REDIS))
            spec = new_spec(WORKER, Role.MIXED, "fake")
            keeper = LeaseKeeper(store, REDIS, WorkerState(spec, Phase.STARTING, NO_LOAD))
            supervisor = EngineSupervisor(
                keeper, ENGINE, build, load_interval_s=0.1, log_line=lambda _: None, feeds=feeds
            )
            stop = asyncio.Event()
            task = asyncio.create_task(supervisor.run(stop))
            try:
                await until(lambda: keeper.state.phase is Phase.READY, "the engine is ready")
                first = keeper.state.spec
                await post(first.address, prompt(1))
                snapshot = await snapshot_with(log, whole(prompt(1)))
                assert snapshot.epoch == first.epoch
                await post(first.address, prompt(1), max_tokens=60)  # kills it
                await snapshot_with(log, set(), after_epoch=first.epoch)
                await until(
                    lambda: keeper.state.phase is Phase.READY and keeper.state.spec.epoch > first.epoch, "again"
                )
                await post(keeper.state.spec.address, prompt(2))
                await snapshot_with(log, whole(prompt(2)), after_epoch=first.epoch)
            finally:
                stop.set()
                await asyncio.wait_for(task, timeout=30)

    run(test)


@pytest.mark.parametrize("host", ["*", HOST])
def test_a_joined_engine_s_blocks_reach_redis(tmp_path: Path, host: str) -> None:
    """Its sockets are found by asking it, whichever side binds."""

    async def test() -> None:
        events, replay = (f"tcp://{host}:{port}" for port in free_ports(HOST, 2))
        settings = FakeSettings(kv_events_endpoint=events, kv_replay_endpoint=replay)
        async with stored(tmp_path) as (url, log), FakeEngine(settings).serving() as engine:
            await post(engine.address, prompt(1))
            stop = asyncio.Event()
            spec = new_spec(WORKER, Role.MIXED, "fake")
            joined = run_joined(engine.address, spec, ENGINE, url, REDIS, stop, index=INDEX, kv_events=EVENTS)
            task = asyncio.create_task(joined)
            try:
                await snapshot_with(log, whole(prompt(1)))
                await post(engine.address, prompt(2))
                await snapshot_with(log, whole(prompt(1)) | whole(prompt(2)))
            finally:
                stop.set()
                await asyncio.wait_for(task, timeout=30)
            assert await log.read_heads() == {}

    run(test)
