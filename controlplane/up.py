"""`headrace up`: the whole of Headrace on this machine, in the foreground. Each step is shown as it happens.

    config -> model -> redis -> ray -> router and pools -> engines -> ready

Everything it starts ends with it: on Ctrl-C in order (drain, engines, routers, Ray, Redis), and if it is killed, the
engines and Redis are ended by their guards (workers/child_guard.py).
"""

import asyncio
import contextlib
import importlib.util
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp

from controlplane.admin_settings import AdminSettings
from controlplane.app import demo_model_path
from controlplane.config import Config
from controlplane.embedded_redis import embedded_redis
from controlplane.fleet_status import FleetStatus, read_fleet
from controlplane.progress import Progress
from kvstore.leases import LeaseStore, open_leases
from kvstore.redis_url import without_password
from router.admin_tokens import AdminTokens, AdminTokensError
from router.http.settings import HttpSettings
from router.identity.sources import file_problems
from router.settings import GrpcSettings, ListenSettings
from router.tls import TlsError, build_context
from router.tls_settings import TlsSettings
from workers.child_process import ChildProcess, inherited_env
from workers.demo_model import is_converted
from workers.engine_tls import EngineTlsError, client_context
from workers.worker import experts_problem

_T = TypeVar("_T")
_MAX_FAILED_STARTS = 3


class UpError(Exception):
    """A step failed; the message names the cause and the fix."""


async def up(config: Config, progress: Progress) -> None:
    """Start everything, say so, and run until SIGINT or SIGTERM. Raises UpError and the errors of its steps."""
    log_dir = config.state_path / "logs" / time.strftime("%Y%m%d-%H%M%S")
    with _cancelled_by_signals() as stop:
        try:
            with progress.step("config", "checking ports, model and packages"):
                check_machine(config)
            log_dir.mkdir(parents=True, exist_ok=True)
            progress.note(f"logs: {log_dir}")
            if config.model.path is None:
                await _prepare_demo_model(config, progress)
            async with _redis(config, log_dir, progress) as redis_url:
                await _run_cluster(config, redis_url, log_dir, progress, stop)
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
    progress.note("stopped; nothing is left running")


def check_machine(config: Config) -> None:
    """Raise UpError for what would make a later step fail: ports in use, a missing model, a missing engine."""
    problems = [*_listening_problems(config), *_file_problems(config), *_model_problems(config)]
    if importlib.util.find_spec("vllm") is None:
        problems.append(f"vLLM is not installed: pip install 'headrace[{config.engine.device}]'")
    if problems:
        raise UpError("\n".join(problems))


def _listening_problems(config: Config) -> Iterator[str]:
    http, grpc, admin, picker = config.router.http, config.router.grpc, config.admin, config.router.endpoint_picker
    listen: dict[str, HttpSettings | ListenSettings] = {"router.http": http, "router.grpc": grpc, "admin": admin}
    if picker.enabled:
        listen["router.endpoint_picker"] = picker
    for key, socket_settings in listen.items():
        host, port = socket_settings.host, socket_settings.port
        reason = _why_not_bindable(host, port)
        if reason is not None:
            yield f"{key}.port: cannot listen on {host}:{port}: {reason}; choose another"
        if not isinstance(socket_settings, HttpSettings | GrpcSettings) or socket_settings.tls is None:
            continue
        try:
            build_context(socket_settings.tls, f"{key}.tls")
        except TlsError as error:
            yield str(error)


def _file_problems(config: Config) -> Iterator[str]:
    """What routers, engines and the control plane would find when they start."""
    yield from _admin_problems(config.admin)
    yield from file_problems(config.identity)
    tls = config.engine.tls
    try:
        client_context(tls)
        if tls is not None and tls.cert_file is not None and tls.key_file is not None:
            build_context(TlsSettings(cert_file=tls.cert_file, key_file=tls.key_file), "engine.tls")
    except (EngineTlsError, TlsError) as error:
        yield str(error)


def _admin_problems(admin: AdminSettings) -> Iterator[str]:
    try:
        AdminTokens(admin.tokens_file)
        if admin.tls is not None:
            build_context(TlsSettings(cert_file=admin.tls.cert_file, key_file=admin.tls.key_file), "admin.tls")
    except (AdminTokensError, TlsError) as error:
        yield str(error)


def _model_problems(config: Config) -> Iterator[str]:
    if config.model.path is None:
        if config.engine.experts is not None:
            yield "engine.experts: the demo model has no experts; name one that has with model.path"
        return
    model = Path(config.model.path).expanduser()
    if not model.is_dir():
        yield f"model.path: there is no folder {model}"
    elif not (model / "config.json").is_file():
        yield f"model.path: {model} holds no checkpoint: it has no config.json"
    elif config.engine.experts is not None:
        problem = experts_problem(config.engine.experts, model)
        if problem is not None:
            yield problem


def _why_not_bindable(host: str, port: int) -> str | None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        return error.strerror or str(error)
    return None


async def _prepare_demo_model(config: Config, progress: Progress) -> None:
    target = demo_model_path(config)
    if is_converted(target):
        progress.note(f"model: {target} (SmolLM2-135M-Instruct, Apache-2.0, converted earlier)")
        return
    with progress.step("model", "converting SmolLM2-135M-Instruct (Apache-2.0), once"):
        lines: list[str] = []
        child = await ChildProcess.start(
            [sys.executable, "-W", "ignore", "-m", "workers.demo_model", str(target)],
            inherited_env(),
            grace_s=1.0,
            log=lines.append,
        )
        try:
            code = await child.wait()
        finally:
            await asyncio.shield(child.kill())
        if code != 0:
            raise UpError("the demo model could not be converted:\n" + "\n".join(lines[-15:]))


@asynccontextmanager
async def _redis(config: Config, log_dir: Path, progress: Progress) -> AsyncIterator[str]:
    if config.redis.url is not None:
        with progress.step("redis", f"connecting to {without_password(config.redis.url)}"):
            async with open_leases(config.redis.url, config.redis.namespace, config.redis):
                pass
        yield config.redis.url
        return
    async with contextlib.AsyncExitStack() as stack:
        with progress.step("redis", "starting an embedded server"):
            url = await stack.enter_async_context(embedded_redis(log_dir))
        progress.note(f"redis: {url}")
        yield url


async def _run_cluster(config: Config, redis_url: str, log_dir: Path, progress: Progress, stop: asyncio.Event) -> None:
    with progress.step("ray", "importing Ray and starting a local cluster"):
        # Imported here: it takes seconds, and every earlier mistake should be reported without them.
        from controlplane.deployment import deployed, local_ray

        ray_context = await _enter_in_thread(local_ray())
    async with _exit_in_thread(ray_context):
        with progress.step("serve", "deploying router and pools"):
            serve_context = await _enter_in_thread(deployed(config, redis_url, log_dir))
        async with _exit_in_thread(serve_context, progress):
            async with open_leases(redis_url, config.redis.namespace, config.redis) as store:
                await _until_engines_ready(config, store, log_dir, progress)
            with progress.step("router", "waiting until a request would be served"):
                await _until_routable(config)
            progress.ready(config)
            await stop.wait()


async def _until_engines_ready(config: Config, store: LeaseStore, log_dir: Path, progress: Progress) -> None:
    expected = config.pools.prefill + config.pools.decode + config.pools.mixed
    epochs: dict[str, set[int]] = {}
    with progress.step("engines", f"starting {expected} x vLLM (about half a minute each on two cores)") as say:
        while True:
            fleet = await read_fleet(store)
            say(", ".join(f"{worker.id} {worker.phase}" for worker in fleet.workers) or "no worker yet")
            if sum(worker.phase == "ready" for worker in fleet.workers) >= expected:
                return
            _raise_if_hopeless(fleet, epochs, log_dir)
            await asyncio.sleep(0.5)


def _raise_if_hopeless(fleet: FleetStatus, epochs: dict[str, set[int]], log_dir: Path) -> None:
    """An engine that failed its first starts will fail the next ones too: show why instead of trying for ever."""
    for worker in fleet.workers:
        starts = epochs.setdefault(worker.id, set())
        starts.add(worker.epoch)
        if worker.phase == "starting" and len(starts) > _MAX_FAILED_STARTS:
            log = log_dir / f"{worker.id}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:]) if log.exists() else "(no log)"
            raise UpError(f"the engine of {worker.id} failed {_MAX_FAILED_STARTS} starts; the end of {log}:\n{tail}")


async def _until_routable(config: Config) -> None:
    http = config.router.http
    if http.tls is not None and http.tls.client_ca_file is not None:
        return  # we have no certificate to show
    url = f"{http.scheme}://{http.host}:{http.port}/readyz"
    deadline_s = time.monotonic() + 30.0
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url, ssl=False) as response:  # our own, whatever name it has
                    if response.status == 200:
                        return
            if time.monotonic() > deadline_s:
                raise UpError(f"{url} is not ready although all engines are: see the router's log")
            await asyncio.sleep(0.2)


@contextmanager
def _cancelled_by_signals() -> Iterator[asyncio.Event]:
    """SIGINT and SIGTERM set the event and cancel what the task is waiting for; later ones are ignored."""
    loop, task, stop = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    assert task is not None

    def on_signal() -> None:
        if not stop.is_set():
            stop.set()
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    yield stop


async def _in_thread(function: Callable[[], _T]) -> _T:
    """Run a blocking call in a thread. A cancellation waits for its end: a half-started cluster cannot be stopped."""
    work = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


async def _enter_in_thread(context: AbstractContextManager[None]) -> AbstractContextManager[None]:
    try:
        await _in_thread(context.__enter__)
    except asyncio.CancelledError:
        await asyncio.to_thread(context.__exit__, None, None, None)
        raise
    return context


@asynccontextmanager
async def _exit_in_thread(
    context: AbstractContextManager[None], progress: Progress | None = None
) -> AsyncIterator[None]:
    try:
        yield
    finally:
        step = progress.step("stop", "draining engines, stopping router and pools") if progress else _no_step()
        with step:
            await asyncio.shield(asyncio.to_thread(context.__exit__, None, None, None))


@contextmanager
def _no_step() -> Iterator[Callable[[str], None]]:
    yield lambda _: None
