"""One worker as a whole: its lease, and the engine behind it, supervised here or running somewhere else."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from kvstore.leases import open_leases
from kvstore.settings import IndexSettings, RedisSettings
from kvstore.types import WorkerId
from workers.child_process import PrefixedLog
from workers.engine_command import EngineCommand, EnginePorts, EngineTraces, build_engine_command
from workers.engine_probe import EngineIdentity, EngineNotAnsweringError, EngineProbe, engine_session
from workers.errors import EngineStartError
from workers.expert_placement import slots_problem
from workers.kv_feed import open_kv_feeds
from workers.lease_keeper import LeaseKeeper
from workers.logs import ChildLines, LogStyle, logging_to
from workers.settings import EngineSettings, ExpertParallelSettings, KvEventSettings
from workers.supervisor import EngineSupervisor
from workers.types import NO_LOAD, Phase, Role, WorkerSpec, WorkerState


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
    log_dir: str | None  # None: standard error
    traces: EngineTraces | None = None
    log_style: LogStyle = field(default_factory=LogStyle)
    index: IndexSettings = field(default_factory=IndexSettings)
    kv_events: KvEventSettings = field(default_factory=KvEventSettings)


async def run_worker(
    plan: WorkerPlan, stop: asyncio.Event, *, joined: Callable[[LeaseKeeper], None] | None = None
) -> None:
    """Run a supervised worker until `stop`. Raises RedisUnavailableError if Redis is not there at the start.

    `joined` is told once whose lease it is, as soon as there is one.
    """
    path = Path(plan.log_dir) / f"{plan.worker_id}.log" if plan.log_dir else None
    form = ChildLines("engine", worker=plan.worker_id) if plan.log_style.format == "json" else None
    log = PrefixedLog(path, plan.worker_id, form)
    # What the supervisor says is among the engine's lines.
    own_lines = logging_to(path, plan.log_style, without=("workers.supervisor",), worker=plan.worker_id)
    try:
        with own_lines:
            await _work(plan, log, stop, joined)
    finally:
        log.close()


async def _work(
    plan: WorkerPlan, log: PrefixedLog, stop: asyncio.Event, joined: Callable[[LeaseKeeper], None] | None
) -> None:
    # The feeds outside: the lease is given back first.
    async with (
        open_kv_feeds(plan.redis_url, plan.worker_id, plan.index, plan.kv_events, plan.redis) as feeds,
        _lease(plan.redis_url, plan.redis, plan.worker_id, plan.role, plan.model_name) as keeper,
    ):
        if joined is not None:
            joined(keeper)
        supervisor = EngineSupervisor(
            keeper,
            plan.engine,
            lambda ports: vllm_command(plan, ports),
            load_interval_s=plan.redis.heartbeat_s,
            log_line=log,
            feeds=feeds,
        )
        await supervisor.run(stop)


def vllm_command(plan: WorkerPlan, ports: EnginePorts) -> EngineCommand:
    """The complete command of this worker's vLLM server. Raises EngineStartError if its experts cannot be divided."""
    if plan.engine.experts is not None:
        problem = experts_problem(plan.engine.experts, Path(plan.model_path))
        if problem is not None:
            raise EngineStartError(problem)
    command = build_engine_command(
        plan.engine,
        role=plan.role,
        model_path=plan.model_path,
        model_name=plan.model_name,
        ports=ports,
        parent_env=os.environ,
        traces=plan.traces,
    )
    # Warnings of the engine's dependencies are not the operator's; errors still are.
    argv = (sys.executable, "-W", "ignore", "-m", *command.argv)
    return EngineCommand(argv, command.env)


def experts_problem(experts: ExpertParallelSettings, model_path: Path) -> str | None:
    """Why this model's experts cannot be divided like that, or None (also where there is no checkpoint to read)."""
    try:
        model_config = msgspec.json.decode((model_path / "config.json").read_bytes(), type=dict)
    except (OSError, msgspec.DecodeError):
        return None
    return slots_problem(model_config, experts.ranks, experts.redundant_experts)


async def run_joined(
    address: str,
    spec: WorkerSpec,
    engine: EngineSettings,
    redis_url: str,
    redis: RedisSettings,
    stop: asyncio.Event,
    *,
    index: IndexSettings | None = None,
    kv_events: KvEventSettings | None = None,
) -> None:
    """Keep a lease for an engine that somebody else runs at `address`, for as long as it answers and until `stop`.

    Raises RedisUnavailableError, and EngineNotAnsweringError where there is no engine at the start.
    """
    index, kv_events = index or IndexSettings(), kv_events or KvEventSettings()
    async with engine_session(engine) as session:
        probe = EngineProbe(session, address, engine)
        identity = await probe.identity()
        async with (
            open_kv_feeds(redis_url, spec.id, index, kv_events, redis) as feeds,
            _lease(redis_url, redis, spec.id, spec.role, identity.model) as keeper,
        ):
            checked_at_s = -engine.probe_interval_s
            while not stop.is_set():
                try:
                    if time.monotonic() - checked_at_s >= engine.probe_interval_s:
                        identity = await probe.identity()
                        await probe.check_alive(identity.model, identity.routes)
                        checked_at_s = time.monotonic()
                    metrics = await probe.metrics()
                except EngineNotAnsweringError:
                    keeper.update(WorkerState(keeper.state.spec, Phase.STARTING, NO_LOAD))
                else:
                    came_back = keeper.state.phase is not Phase.READY
                    current = _joined_spec(keeper.state, address, identity)
                    keeper.update(WorkerState(current, Phase.READY, metrics.load, metrics.ranks))
                    if feeds is not None and came_back:
                        feeds.limit(current.kv_blocks_total)
                        await feeds.follow(current.epoch, await probe.kv_event_sources())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(redis.heartbeat_s):
                        await stop.wait()


def _joined_spec(known: WorkerState, address: str, identity: EngineIdentity) -> WorkerSpec:
    return replace(
        known.spec,
        address=address,
        # An engine that was away may have been restarted: its KV is not what it was.
        epoch=known.spec.epoch if known.phase is Phase.READY else time.time_ns() // 1_000_000,
        kv_blocks_total=identity.metrics.kv_blocks_total,
        block_size_tokens=identity.metrics.block_size_tokens,
        max_model_len_tokens=identity.max_model_len_tokens,
        routes=identity.routes,
        adapters=identity.adapters,
    )


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
    async with open_leases(redis_url, redis.namespace, redis) as store:
        keeper = LeaseKeeper(store, redis, WorkerState(new_spec(worker_id, role, model), Phase.STARTING, NO_LOAD))
        task = asyncio.create_task(keeper.run())
        try:
            yield keeper
        finally:
            keeper.stop()
            await task
            await keeper.leave()
