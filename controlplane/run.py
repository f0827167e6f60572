"""One process of Headrace in the foreground, without Ray: what a pod or a systemd unit runs.

Invariants
 1. `stop` ends it in order: nothing new is taken in, what is under way may finish, the lease is given back, nothing is
    left running.
 2. Readiness of a worker is its phase: an engine has made a token, and is not being drained. Redis away changes nothing
    (architecture, section 1).
"""

import asyncio
import contextlib
from collections.abc import Sequence

import aiohttp

from controlplane.admin import AdminApi, Answer
from controlplane.app import RouterPlan, RouterPorts, model_path, run_router, worker_plan
from controlplane.config import Config
from controlplane.http_port import health, http_port
from controlplane.telemetry import log_ids
from kvstore.leases import open_leases
from kvstore.types import WorkerId
from router.tls_settings import TlsSettings
from workers.engine_probe import engine_session
from workers.lease_keeper import LeaseKeeper
from workers.logs import logging_to
from workers.settings import NODE_HOST
from workers.types import Phase, Role
from workers.worker import run_worker

_METRICS_S = 5.0


class RunError(Exception):
    """The configuration does not do for a process of its own; names key, value and what does."""


async def route(config: Config, stop: asyncio.Event) -> None:
    """A router. Raises RunError, RedisUnavailableError, PortTakenError and the errors of files that are named."""
    redis_url = _redis_url(config)
    _check_model(config)

    def listening(ports: RouterPorts) -> None:
        print(f"router: HTTP on port {ports.http}, gRPC on port {ports.grpc}", flush=True)

    await run_router(RouterPlan(config, redis_url, None), listening, stop)


async def work(config: Config, role: Role, worker_id: WorkerId, stop: asyncio.Event) -> None:
    """A worker and its engine. Raises at the start as `route` does."""
    redis_url = _redis_url(config)
    _check_model(config)
    if config.engine.host == NODE_HOST:
        raise RunError("engine.host: 'node' is for Ray; here name the machine's address: --set engine.host=ADDRESS")
    keepers: list[LeaseKeeper] = []

    def state() -> tuple[bool, dict[str, str]]:
        phase = keepers[0].state.phase if keepers else Phase.STARTING
        return phase is Phase.READY, {"worker": worker_id, "phase": phase.value}

    async with contextlib.AsyncExitStack() as stack:
        if config.health is not None:
            session = await stack.enter_async_context(engine_session(config.engine))
            answer = health(state, lambda: _engine_metrics(session, keepers))
            await stack.enter_async_context(http_port(answer, config.health, "health"))
        plan = worker_plan(config, role, redis_url, None, worker_id)
        await run_worker(plan, stop, joined=keepers.append)


async def control(config: Config, stop: asyncio.Event) -> None:
    """The control plane: slow loops and the admin API. Raises as `route` does."""
    redis_url = _redis_url(config)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(logging_to(None, config.telemetry.log_style, log_ids))
        async with open_leases(redis_url, config.redis.namespace, config.redis):
            pass  # it is there
        api = AdminApi(config, redis_url)
        stack.push_async_callback(api.close)
        api.start()
        files = config.admin.tls
        tls = TlsSettings(cert_file=files.cert_file, key_file=files.key_file) if files is not None else None
        port = await stack.enter_async_context(http_port(api.answer, config.admin, "admin", tls))
        if config.health is not None:
            answer = health(lambda: (True, {}), lambda: _metrics(api))
            await stack.enter_async_context(http_port(answer, config.health, "health"))
        print(f"control plane: admin API on {config.admin.host}:{port}", flush=True)
        await stop.wait()


async def _engine_metrics(session: aiohttp.ClientSession, keepers: Sequence[LeaseKeeper]) -> Answer:
    """The engine's own, so that who scrapes need not reach its API, which asks nobody who he is."""
    address = keepers[0].state.spec.address if keepers else ""
    try:
        async with session.get(f"{address}/metrics", timeout=aiohttp.ClientTimeout(_METRICS_S)) as response:
            body = await response.read()
            if response.status == 200:
                return Answer(200, body, response.headers.get("content-type", "text/plain"))
            why = f"it answers {response.status}"
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        why = str(error) or type(error).__name__
    return Answer(503, f"# the engine has no metrics yet: {why}\n".encode(), "text/plain")


async def _metrics(api: AdminApi) -> Answer:
    return await api.answer("GET", "/metrics", {}, b"")


def _redis_url(config: Config) -> str:
    if config.redis.url is None:
        raise RunError("redis.url: none is given; processes of their own meet in a Redis, such as redis://host:6379/0")
    return config.redis.url


def _check_model(config: Config) -> None:
    folder = model_path(config)
    if (folder / "config.json").is_file():
        return
    hint = "" if config.model.path else f"; the demo model is made with `python -m workers.demo_model {folder}`"
    raise RunError(f"model.path: {str(folder)!r} holds no checkpoint: it has no config.json{hint}")
