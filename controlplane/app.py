"""The composition root: the only place that chooses concrete classes and wires them together."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from controlplane.config import Config
from controlplane.telemetry import build_tracing
from kvstore.leases import open_leases
from kvstore.types import WorkerId
from router.core import RouterCore
from router.dispatch import Dispatcher
from router.grpc_server import GrpcServer
from router.http_listener import HttpListener, bind
from router.interfaces import Tracing
from router.policy import LeastPredictedWork
from router.service import RouterService
from workers.client import EngineClient
from workers.demo_model import DEMO_MODEL_NAME
from workers.lease_follower import LeaseFollower
from workers.types import Role
from workers.worker import WorkerPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """Everything one router process needs to know."""

    config: Config
    redis_url: str
    log_dir: str


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """Where a router listens."""

    http: int
    grpc: int


async def run_router(plan: RouterPlan, listening: Callable[[RouterPorts], None], stop: asyncio.Event) -> None:
    """Run one router until `stop`, then drain it. Raises RedisUnavailableError or PortTakenError at the start."""
    settings = plan.config.router
    tracing, end_tracing = build_tracing(plan.config.telemetry)
    client = EngineClient(idle_timeout_s=settings.idle_timeout_s)
    try:
        with _log_to(Path(plan.log_dir) / f"router-{os.getpid()}.log"):
            await _route(plan, client, tracing, listening, stop)
    finally:
        await client.close()
        await asyncio.to_thread(end_tracing)


async def _route(
    plan: RouterPlan,
    client: EngineClient,
    tracing: Tracing,
    listening: Callable[[RouterPorts], None],
    stop: asyncio.Event,
) -> None:
    settings = plan.config.router
    async with open_leases(plan.redis_url, plan.config.redis.namespace) as store:
        core = RouterCore(
            LeastPredictedWork(Random()),
            max_attempts=settings.max_attempts,
            retry_after_s=settings.retry_after_s,
        )
        service = RouterService(core, Dispatcher(client), redis_up=lambda: follower.redis_up)
        follower = LeaseFollower(store, plan.config.redis, service.on_membership)
        http = HttpListener(service, settings, tracing)
        grpc = GrpcServer(service, settings, tracing)
        await follower.look()
        sock = bind(settings.http.host, settings.http.port, "router.http.port")
        grpc_port = await grpc.start(settings.grpc.host, settings.grpc.port)
        await http.start(sock)
        following = asyncio.create_task(follower.run())
        try:
            ports = RouterPorts(http=sock.getsockname()[1], grpc=grpc_port)
            _log.info("listening for HTTP on port %d, for gRPC on port %d", ports.http, ports.grpc)
            listening(ports)
            await stop.wait()
        finally:
            await asyncio.gather(http.stop(), grpc.stop())
            follower.stop()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Headrace's own log lines of this process, where the engines' logs are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(package) for package in ("controlplane", "router", "workers", "kvstore")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)  # a Serve replica sets the root's to what Ray's own lines need
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def demo_model_path(config: Config) -> Path:
    """Where the converted demo model is cached."""
    return config.state_path / "models" / DEMO_MODEL_NAME


def model_path(config: Config) -> Path:
    """The checkpoint's folder."""
    return Path(config.model.path).expanduser().absolute() if config.model.path else demo_model_path(config)


def model_name(config: Config) -> str:
    """The name clients ask for."""
    return config.model.name or model_path(config).name


def worker_plan(config: Config, role: Role, redis_url: str, log_dir: Path) -> WorkerPlan:
    """The plan of every worker of one pool; each replica gives itself an id."""
    return WorkerPlan(
        worker_id=WorkerId(role.value),
        role=role,
        model_name=model_name(config),
        model_path=str(model_path(config)),
        engine=config.engine,
        redis_url=redis_url,
        redis=config.redis,
        log_dir=str(log_dir),
        otlp_endpoint=config.telemetry.otlp_endpoint if config.telemetry.otlp_protocol == "grpc" else None,
    )
