"""One worker as a whole: its lease, and the engine behind it, supervised here or running somewhere else."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from kvstore.leases import open_leases
from kvstore.settings import RedisSettings
from kvstore.types import WorkerId
from workers.child_process import PrefixedLog
from workers.engine_command import EngineCommand, EnginePorts, build_engine_command
from workers.engine_plugin import DELAY_ENV
from workers.engine_probe import EngineNotAnsweringError, EngineProbe
from workers.lease_keeper import LeaseKeeper
from workers.settings import EngineSettings
from workers.supervisor import EngineSupervisor
from workers.types import NO_LOAD, Phase, Role, WorkerSpec, WorkerState

_NIXL_PROGRESS_DELAY_US = 10_000


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Everything one supervised worker needs to know."""

    worker_id: WorkerId
    role: Role
    model_name: str
    model_path: str
    engine: EngineSettings
    redis_url: str
    redis: RedisSettings
    log_dir: str
    otlp_endpoint: str | None = None


async def run_worker(plan: WorkerPlan, stop: asyncio.Event) -> None:
    """Run a supervised worker until `stop`. Raises RedisUnavailableError if Redis is not there at the start."""
    log = PrefixedLog(Path(plan.log_dir) / f"{plan.worker_id}.log", plan.worker_id)
    try:
        async with _lease(plan.redis_url, plan.redis, plan.worker_id, plan.role, plan.model_name) as keeper:
            supervisor = EngineSupervisor(
                keeper,
                plan.engine,
                lambda ports: vllm_command(plan, ports),
                load_interval_s=plan.redis.heartbeat_s,
                log_line=log,
            )
            await supervisor.run(stop)
    finally:
        log.close()


def vllm_command(plan: WorkerPlan, ports: EnginePorts) -> EngineCommand:
    """The complete command of this worker's vLLM server."""
    command = build_engine_command(
        plan.engine,
        role=plan.role,
        model_path=plan.model_path,
        model_name=plan.model_name,
        ports=ports,
        parent_env=os.environ,
        otlp_endpoint=plan.otlp_endpoint,
    )
    # Warnings of the engine's dependencies are not the operator's; errors still are.
    argv = (sys.executable, "-W", "ignore", "-m", *command.argv)
    return EngineCommand(argv, {DELAY_ENV: str(_NIXL_PROGRESS_DELAY_US), **command.env})


async def run_joined(
    address: str, spec: WorkerSpec, engine: EngineSettings, redis_url: str, redis: RedisSettings, stop: asyncio.Event
) -> None:
    """Keep a lease for an engine that somebody else runs at `address`, for as long as it answers and until `stop`.

    Raises RedisUnavailableError, and EngineNotAnsweringError where there is no engine at the start.
    """
    async with aiohttp.ClientSession() as session:
        probe = EngineProbe(session, address, engine)
        identity = await probe.identity()
        async with _lease(redis_url, redis, spec.id, spec.role, identity.model) as keeper:
            checked_at_s = -engine.probe_interval_s
            while not stop.is_set():
                try:
                    if time.monotonic() - checked_at_s >= engine.probe_interval_s:
                        identity = await probe.identity()
                        await probe.check_alive(identity.model, identity.routes)
                        checked_at_s = time.monotonic()
                    load = (await probe.metrics()).load
                except EngineNotAnsweringError:
                    keeper.update(replace(keeper.state, phase=Phase.STARTING, load=NO_LOAD))
                else:
                    known = keeper.state
                    # An engine that was away may have been restarted: its KV is not what it was.
                    epoch = known.spec.epoch if known.phase is Phase.READY else time.time_ns() // 1_000_000
                    current = replace(
                        known.spec,
                        address=address,
                        epoch=epoch,
                        kv_blocks_total=identity.metrics.kv_blocks_total,
                        block_size_tokens=identity.metrics.block_size_tokens,
                        max_model_len_tokens=identity.max_model_len_tokens,
                        routes=identity.routes,
                    )
                    keeper.update(WorkerState(current, Phase.READY, load))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(redis.heartbeat_s):
                        await stop.wait()


def new_spec(worker_id: WorkerId, role: Role, model: str) -> WorkerSpec:
    """A worker of which nothing else is known yet."""
    return WorkerSpec(
        id=worker_id,
        role=role,
        model=model,
        address="",
        epoch=time.time_ns() // 1_000_000,
        kv_blocks_total=0,
        block_size_tokens=0,
        max_model_len_tokens=0,
        routes={},
    )


@contextlib.asynccontextmanager
async def _lease(
    redis_url: str, redis: RedisSettings, worker_id: WorkerId, role: Role, model: str
) -> AsyncIterator[LeaseKeeper]:
    """Hold a lease: renewed in the background, given back at the end."""
    async with open_leases(redis_url, redis.namespace) as store:
        keeper = LeaseKeeper(store, redis, WorkerState(new_spec(worker_id, role, model), Phase.STARTING, NO_LOAD))
        task = asyncio.create_task(keeper.run())
        try:
            yield keeper
        finally:
            keeper.stop()
            await task
            await keeper.leave()
