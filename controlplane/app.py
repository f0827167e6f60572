"""The composition root: the only place that chooses concrete classes and wires them together."""

import asyncio
import gc
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.config import Config, TelemetrySettings
from controlplane.telemetry import build_tracing, log_ids
from kvstore.board import open_board
from kvstore.fleet_index import FleetIndex
from kvstore.index_follower import IndexFollower
from kvstore.intents import Intents, open_intents
from kvstore.key_store import open_keys
from kvstore.kv_log import open_kv_log
from kvstore.leases import open_leases
from kvstore.prefix_index import PrefixIndex
from kvstore.types import WorkerId
from kvstore.usage_store import open_usage
from router.admin_tokens import AdminTokens, AdminTokensError
from router.build import build_core, core_recipe
from router.class_counts import ClassCounts
from router.class_gate import ClassGate
from router.class_tokens import ClassTokens
from router.dispatch import Dispatcher
from router.drains import Drains
from router.explain.decision_store import DecisionHistory, DecisionStore
from router.explain.explainer import Explainer
from router.gateway.endpoint_picker import EndpointPicker
from router.gateway.exchange import Picking
from router.grpc_server import GrpcServer
from router.http_listener import HttpListener, bind
from router.identity.cache_salts import CacheSalts
from router.identity.doorkeeper import Doorkeeper
from router.identity.follower import IdentityFollower
from router.identity.usage_exchange import UsageExchange
from router.identity.usage_ledger import UsageLedger
from router.intake import FrontDesk
from router.intent_follower import IntentFollower
from router.prompt_index import PromptIndex
from router.replay.recorder import Recorder, new_recording_path
from router.replicas import ReplicaExchange
from router.service import Observer, RouterService
from router.settings import RouterSettings
from router.standing_reporter import StandingReporter, StandingSources
from router.tokens.proof import TokenProofs
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import Renderer
from workers.client import EngineClient
from workers.demo_model import DEMO_MODEL_NAME
from workers.engine_command import EngineTraces
from workers.engine_tls import client_context
from workers.lease_follower import LeaseFollower
from workers.logs import logging_to
from workers.membership import Joined, Left
from workers.types import Role
from workers.worker import WorkerPlan

_log = logging.getLogger(__name__)
# Python's own thresholds (700, 10, 10) are for processes that do not have the same few thousand objects come and go all
# the time: collections took 16 of 150 microseconds of a request, the full ones 50 ms at once. Requests leave no cycles.
_GC_THRESHOLDS = (5_000, 20, 20)
_LAST_WORK_S = 5.0  # of what has something left to write when a router ends
_WARM_UP_S = 15.0  # a router without its tokenizers or the prefix index routes by load, which is better than not at all


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """Everything one router process needs to know."""

    config: Config
    redis_url: str
    log_dir: str | None  # None: standard error
    renderers: Mapping[str, Renderer] = field(default_factory=dict)  # models tokenised by something of the caller's


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """Where a router listens."""

    http: int
    grpc: int
    endpoint_picker: int | None  # None: switched off


async def run_router(plan: RouterPlan, listening: Callable[[RouterPorts], None], stop: asyncio.Event) -> None:
    """Run one router until `stop`, then drain it. Raises RedisUnavailableError or PortTakenError at the start."""
    log_path = Path(plan.log_dir) / f"router-{os.getpid()}.log" if plan.log_dir else None
    with logging_to(log_path, plan.config.telemetry.log_style, log_ids):
        async with AsyncExitStack() as stack:
            await _route(plan, stack, listening, stop)


async def _route(
    plan: RouterPlan, stack: AsyncExitStack, listening: Callable[[RouterPorts], None], stop: asyncio.Event
) -> None:
    """What is entered first is left last: listeners drain before anything under them ends."""
    config, settings = plan.config, plan.config.router
    tracing, end_tracing = build_tracing(config.telemetry)
    stack.push_async_callback(asyncio.to_thread, end_tracing)
    tokenizer = build_tokenizer(plan)
    stack.push_async_callback(tokenizer.close)
    index = FleetIndex(PrefixIndex(config.index.budget_bytes))
    prompts = PromptIndex(tokenizer, index, config.index.block_size_tokens)
    gate, salts = ClassGate(), CacheSalts()
    door = Doorkeeper(config.identity, time.time, trusts_tenant_header=config.slo.trust_tenant_header)
    replica_id = secrets.token_hex(8)  # of this process: one that starts again is another
    ledger, identity = await _follow_identity(plan, stack, replica_id, door, salts)
    service = await _follow(plan, stack, replica_id, prompts, gate, ledger)
    service.metrics.watch_identity(door, ledger, lambda: identity.sources)
    desk = FrontDesk(
        settings,
        config.slo,
        prompts,
        digest_key=secrets.token_bytes(16),
        gate=gate,
        door=door,
        salts=salts,
        ledger=ledger,
        refused=service.metrics.refuse,
    )
    http = HttpListener(service, desk, settings, tracing, _admin_tokens(config))
    grpc = GrpcServer(service, desk, settings, tracing)
    picker = EndpointPicker(Picking(service, desk, settings, tracing)) if settings.endpoint_picker.enabled else None
    sock = bind(settings.http.host, settings.http.port, "router.http.port")
    stack.push_async_callback(_stop_listening, http, grpc, *([picker] if picker else []))
    grpc_port = await grpc.start(settings.grpc.host, settings.grpc.port)
    picker_port = await picker.start(settings.endpoint_picker.host, settings.endpoint_picker.port) if picker else None
    await http.start(sock)
    ports = RouterPorts(http=sock.getsockname()[1], grpc=grpc_port, endpoint_picker=picker_port)
    _log.info("listening for HTTP on port %d, for gRPC on port %d", ports.http, ports.grpc)
    if picker_port is not None:
        _log.info("picking endpoints for gateways on port %d", picker_port)
    _spare_the_collector(stack)
    listening(ports)
    await stop.wait()


def _spare_the_collector(stack: AsyncExitStack) -> None:
    """What is there now stays until the end: full collections need not look through it."""
    stack.callback(gc.set_threshold, *gc.get_threshold())
    stack.callback(gc.unfreeze)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


async def _follow_identity(
    plan: RouterPlan, stack: AsyncExitStack, replica_id: str, door: Doorkeeper, salts: CacheSalts
) -> tuple[UsageLedger, IdentityFollower]:
    """What tenants use, and the tasks that follow keys, tenants and their use through Redis."""
    config, namespace = plan.config, plan.config.redis.namespace
    keys = await stack.enter_async_context(open_keys(plan.redis_url, namespace, config.redis))
    usage = await stack.enter_async_context(open_usage(plan.redis_url, namespace, config.redis))
    board = await stack.enter_async_context(open_board(plan.redis_url, namespace, config.redis))
    follower = IdentityFollower(config.identity, keys, door, salts)
    await follower.start()
    if config.router.endpoint_picker.enabled and salts.is_on:
        _log.warning("tenants share cached prefixes where a gateway carries their requests: docs/endpoint-picker.md")
    ledger = UsageLedger(replica_id)
    exchange = UsageExchange(
        board,
        usage,
        ledger,
        replica_id,
        interval_s=config.board.report_interval_s,
        limited=lambda: door.limited_tenants,
        is_active=lambda: door.is_active,
    )
    if door.is_active:
        await exchange.exchange()
    stack.push_async_callback(_end_softly, asyncio.create_task(exchange.run()), exchange.stop)
    stack.push_async_callback(_end, asyncio.create_task(follower.run()), follower.stop)
    return ledger, follower


async def _follow(
    plan: RouterPlan,
    stack: AsyncExitStack,
    replica_id: str,
    prompts: PromptIndex,
    gate: ClassGate,
    ledger: UsageLedger,
) -> RouterService:
    """The service, and the tasks that follow leases, KV blocks, other replicas and operators through Redis into it."""
    config, settings, namespace = plan.config, plan.config.router, plan.config.redis.namespace
    leases = await stack.enter_async_context(open_leases(plan.redis_url, namespace, config.redis))
    kv_log = await stack.enter_async_context(open_kv_log(plan.redis_url, namespace, config.index, config.redis))
    intents = await stack.enter_async_context(open_intents(plan.redis_url, namespace, config.redis))
    board = await stack.enter_async_context(open_board(plan.redis_url, namespace, config.redis))
    client = EngineClient(settings.engine_http, tls=client_context(config.engine.tls))
    stack.push_async_callback(client.close)
    proofs = TokenProofs(client, prompts.tokenizer)
    stack.push_async_callback(proofs.close)
    history = build_history(settings, replica_id)
    recipe = core_recipe(settings, config.slo, seed=secrets.randbits(63))
    warm_by_s = time.monotonic() + _WARM_UP_S
    classes = ClassTokens()
    counts, drains = ClassCounts(), Drains()
    service = RouterService(
        build_core(recipe),
        Dispatcher(client, proofs.applied),
        prompts,
        redis_up=lambda: follower.redis_up,
        history=history,
        observers=[
            counts.observe,
            *([classes.observe] if _has_experts(config) else []),
            *start_recorder(settings, recipe, stack),
        ],
        ledger=ledger,
        is_warm=lambda: (blocks.is_ready and not prompts.is_loading) or time.monotonic() > warm_by_s,
    )

    def on_membership(change: Joined | Left) -> None:
        service.on_membership(drains.on_membership(change))
        if settings.tokens.send_ids:
            proofs.on_membership(change)

    def on_intents(now: Intents) -> None:
        gate.set_paused({name: intent.retry_after_s for name, intent in now.paused.items()})
        for change in drains.on_drained(now.drained):
            service.on_membership(change)
        reporter.look_now()

    reporter = StandingReporter(board, replica_id, StandingSources(service, counts, drains, gate))
    wishes = IntentFollower(intents, config.redis.heartbeat_s, on_intents)
    follower = LeaseFollower(leases, config.redis, on_membership)
    blocks = IndexFollower(kv_log, prompts.index, config.index, config.redis.lease_s, service.on_slots_changed)
    service.metrics.watch_index(blocks)
    exchange = ReplicaExchange(
        board,
        replica_id,
        config.board,
        history=history,
        own_report=lambda replica_id: service.core.report(replica_id, time.monotonic()),
        class_tokens=lambda: classes.tokens(time.monotonic()),
        on_reports=service.handle,
    )
    await wishes.look()
    await follower.look()
    for following in (follower, blocks, exchange, wishes, reporter):
        stack.push_async_callback(_end, asyncio.create_task(following.run()), following.stop)
    return service


def _has_experts(config: Config) -> bool:
    """Whether anybody will read what classes ask for: counting is a few microseconds a request."""
    return config.experts.mode == "apply" or (config.experts.mode == "observe" and config.engine.experts is not None)


def _admin_tokens(config: Config) -> AdminTokens:
    """Whoever may read decisions on the clients' port: nobody, where this process has no such file."""
    try:
        return AdminTokens(config.admin.tokens_file)
    except AdminTokensError as error:
        _log.warning("%s; decisions are explained by the control plane only", error)
        return AdminTokens(None)


def build_history(settings: RouterSettings, replica_id: str) -> DecisionHistory:
    """What one router remembers of its decisions."""
    explainer = Explainer(router=replica_id, policy=settings.policy, unix_offset_s=time.time() - time.monotonic())
    return DecisionHistory(
        explainer, DecisionStore(max_records=settings.explain.keep_requests, max_bytes=settings.explain.keep_bytes)
    )


def start_recorder(settings: RouterSettings, recipe: Mapping[str, Any], stack: AsyncExitStack) -> list[Observer]:
    """Write events and decisions for `headrace replay`, if the operator wants them."""
    if settings.explain.record_dir is None:
        return []
    path = new_recording_path(Path(settings.explain.record_dir).expanduser())
    recorder = Recorder(path, recipe, max_bytes=settings.explain.record_max_bytes)
    recorder.start()
    stack.push_async_callback(asyncio.to_thread, recorder.close)
    return [recorder.observe]


def build_tokenizer(plan: RouterPlan) -> PromptTokenizer:
    """The tokenizers of the cluster's own model and of those that the configuration names."""
    settings, config = plan.config.router.tokens, plan.config
    tokenizer = PromptTokenizer(settings)
    folders = {model_name(config): str(model_path(config)), **settings.models}
    for name, folder in folders.items():
        if name not in plan.renderers:
            tokenizer.add_model(name, Path(folder).expanduser(), config.engine.extra_args)
    for name, renderer in plan.renderers.items():
        tokenizer.add_renderer(name, renderer)
    return tokenizer


async def _stop_listening(*listeners: HttpListener | GrpcServer | EndpointPicker) -> None:
    """All drain at once: a router has `router.drain_s` to end, not several times that."""
    await asyncio.gather(*(listener.stop() for listener in listeners))


async def _end(task: "asyncio.Task[None]", stop: Callable[[], None]) -> None:
    """By its own flag and by cancellation: redis-py swallows some of these."""
    stop()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _end_softly(task: "asyncio.Task[None]", stop: Callable[[], None]) -> None:
    """Let it do its last work; by cancellation where that takes too long."""
    stop()
    await asyncio.wait((task,), timeout=_LAST_WORK_S)
    await _end(task, stop)


def demo_model_path(config: Config) -> Path:
    """Where the converted demo model is cached."""
    return config.state_path / "models" / DEMO_MODEL_NAME


def model_path(config: Config) -> Path:
    """The checkpoint's folder."""
    return Path(config.model.path).expanduser().absolute() if config.model.path else demo_model_path(config)


def model_name(config: Config) -> str:
    """The name clients ask for."""
    return config.model.name or model_path(config).name


def worker_plan(
    config: Config, role: Role, redis_url: str, log_dir: Path | None, worker_id: WorkerId | None = None
) -> WorkerPlan:
    """The plan of one worker; without an id, of every worker of a pool: each replica gives itself one."""
    return WorkerPlan(
        worker_id=worker_id or WorkerId(role.value),
        role=role,
        model_name=model_name(config),
        model_path=str(model_path(config)),
        engine=config.engine,
        redis_url=redis_url,
        redis=config.redis,
        log_dir=None if log_dir is None else str(log_dir),
        index=config.index,
        kv_events=config.kv_events,
        traces=_engine_traces(config.telemetry),
        log_style=config.telemetry.log_style,
    )


def _engine_traces(telemetry: TelemetrySettings) -> EngineTraces | None:
    if telemetry.traces_url is None:
        return None
    return EngineTraces(telemetry.traces_url, telemetry.otlp_protocol, telemetry.sample_ratio)
