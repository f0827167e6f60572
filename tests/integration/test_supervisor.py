"""Supervision of an engine that misbehaves: the real supervisor, real processes, real leases; the engine is the fake.

Numbers are invariants of workers/supervisor.py.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from controlplane.embedded_redis import embedded_redis
from kvstore.leases import LeaseStore, open_leases
from kvstore.settings import RedisSettings
from kvstore.types import WorkerId
from workers import lease_record
from workers.child_process import inherited_env
from workers.engine_command import EngineCommand, EnginePorts
from workers.lease_keeper import LeaseKeeper
from workers.settings import EngineSettings, ExpertParallelSettings
from workers.supervisor import EngineSupervisor
from workers.types import NO_LOAD, Phase, Role, WorkerState
from workers.worker import new_spec

WORKER = WorkerId("w1")
REDIS = RedisSettings(lease_s=5.0, heartbeat_s=0.1)
ENGINE = EngineSettings(
    probe_interval_s=0.5, probe_timeout_s=1.0, shutdown_timeout_s=3.0, start_timeout_s=30.0, max_backoff_s=1.0
)


@dataclass
class Supervised:
    """A worker under test."""

    store: LeaseStore
    supervisor: EngineSupervisor
    stop: asyncio.Event
    task: "asyncio.Task[None]"
    lines: list[str]

    async def state(self) -> WorkerState:
        """What routers see."""
        return lease_record.decode((await self.store.read_all())[WORKER]).state

    async def until(self, phase: Phase, *, after_epoch: int = 0) -> WorkerState:
        """Wait for a phase of a later epoch."""
        for _ in range(400):
            state = await self.state()
            if state.phase is phase and state.spec.epoch > after_epoch:
                return state
            await asyncio.sleep(0.05)
        raise AssertionError(f"still {await self.state()}; log:\n" + "\n".join(self.lines))


@asynccontextmanager
async def supervised(
    folder: Path, *arguments: str, plan: str = "{}", settings: EngineSettings = ENGINE
) -> AsyncIterator[Supervised]:
    """Supervise `python -m workers.fake` with a plan; each start begins the plan anew."""
    plan_path = folder / "plan.json"
    plan_path.write_text(plan)

    def build(ports: EnginePorts) -> EngineCommand:
        argv = (sys.executable, "-m", "workers.fake", "--port", str(ports.http), "--plan", str(plan_path), *arguments)
        return EngineCommand(argv, {**inherited_env(), "PYTHONPATH": str(Path(__file__).parents[2])})

    lines: list[str] = []
    async with embedded_redis(folder) as url, open_leases(url, REDIS.namespace) as store:
        keeper = LeaseKeeper(store, REDIS, WorkerState(new_spec(WORKER, Role.MIXED, "fake"), Phase.STARTING, NO_LOAD))
        keeping = asyncio.create_task(keeper.run())
        supervisor = EngineSupervisor(keeper, settings, build, load_interval_s=0.1, log_line=lines.append)
        stop = asyncio.Event()
        task = asyncio.create_task(supervisor.run(stop))
        await asyncio.sleep(0.3)
        try:
            yield Supervised(store, supervisor, stop, task, lines)
        finally:
            stop.set()
            await asyncio.wait_for(task, timeout=30)
            keeper.stop()
            await keeping
    left = [p.pid for p in psutil.Process().children(recursive=True) if "workers.fake" in " ".join(p.cmdline())]
    assert left == [], "an engine outlived its supervisor"


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function."""

    async def body() -> None:
        await test()

    asyncio.run(body())


async def complete(state: WorkerState, **fields: object) -> int:
    """Status of one completion, asked of the engine itself."""
    body = {"model": "fake", "prompt": "hello", "max_tokens": 3, **fields}
    url = f"{state.spec.address}/v1/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        await response.read()
        return response.status


def test_ready_tells_routers_all_they_need(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised(tmp_path, "--kv-blocks", "500", "--max-model-len", "1024") as worker:
            spec = (await worker.until(Phase.READY)).spec
            assert (spec.kv_blocks_total, spec.block_size_tokens, spec.max_model_len_tokens) == (500, 32, 1024)
            assert "/v1/chat/completions" in spec.routes
            assert "temperature" in spec.routes["/v1/completions"]
            assert "/scale_elastic_ep" not in spec.routes

    run(test)


def test_a_dead_engine_is_started_again_as_a_new_epoch(tmp_path: Path) -> None:
    async def test() -> None:
        plan = '{"faults": [{"match": {"after_tokens": 5}, "action": "exit"}]}'
        async with supervised(tmp_path, plan=plan) as worker:
            first = await worker.until(Phase.READY)
            try:
                await complete(first, max_tokens=20)
            except aiohttp.ClientError:
                pass
            second = await worker.until(Phase.READY, after_epoch=first.spec.epoch)
            assert second.spec.id == first.spec.id
            assert await complete(second) == 200
            assert worker.supervisor.restarts == 1

    run(test)


def test_an_engine_that_is_wedged_behind_a_healthy_server_is_replaced(tmp_path: Path) -> None:
    """/health stays 200 for ever; only tokens prove life."""

    async def test() -> None:
        plan = '{"faults": [{"match": {"after_tokens": 4}, "action": "wedge"}]}'
        async with supervised(tmp_path, plan=plan) as worker:
            first = await worker.until(Phase.READY)
            hanging = asyncio.create_task(complete(first, max_tokens=20))
            await asyncio.sleep(0.3)
            async with aiohttp.ClientSession() as session, session.get(f"{first.spec.address}/health") as response:
                assert response.status == 200
            second = await worker.until(Phase.READY, after_epoch=first.spec.epoch)
            assert await complete(second, max_tokens=1) == 200
            await asyncio.gather(hanging, return_exceptions=True)
            assert worker.supervisor.restarts == 1

    run(test)


def test_an_engine_that_cannot_start_is_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    async def test() -> None:
        async with supervised(tmp_path, "--no-such-flag") as worker:
            async with asyncio.timeout(60):
                while worker.supervisor.restarts < 2:
                    await asyncio.sleep(0.05)
            assert (await worker.state()).phase is Phase.STARTING, "invariant 1: never ready"
            said = [line for line in worker.lines if line.startswith("supervisor: engine failed")]
            assert "exited with status 2" in said[0]
            assert any("no-such-flag" in line for line in worker.lines), "the engine's own words are in the log"

    run(test)


def test_an_engine_that_does_not_count_its_experts_is_never_ready(tmp_path: Path) -> None:
    """Invariant 1: what is missing for expert parallelism shows at the first request, so there is one before READY."""

    async def test() -> None:
        settings = ENGINE.model_copy(update={"experts": ExpertParallelSettings(data_parallel=2)})
        async with supervised(tmp_path, settings=settings) as worker:
            for _ in range(200):
                if worker.supervisor.restarts:
                    break
                await asyncio.sleep(0.05)
            assert worker.supervisor.restarts >= 1
            assert (await worker.state()).phase is Phase.STARTING
            assert any("engine failed" in line and "/headrace/experts" in line for line in worker.lines)
            assert not any("supervisor: engine ready" in line for line in worker.lines)

    run(test)


def test_stopping_tells_routers_first_and_lets_requests_finish(tmp_path: Path) -> None:
    """Invariant 3: the request that runs when the worker is told to stop is answered."""

    async def test() -> None:
        plan = '{"timing": {"decode_s_per_token": 0.05}}'
        async with supervised(tmp_path, plan=plan) as worker:
            ready = await worker.until(Phase.READY)
            answer = asyncio.create_task(complete(ready, max_tokens=30))
            await asyncio.sleep(0.3)
            worker.stop.set()
            await worker.until(Phase.DRAINING)
            assert not answer.done()
            assert await answer == 200
            await asyncio.wait_for(worker.task, timeout=20)

    run(test)
