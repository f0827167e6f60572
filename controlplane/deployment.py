"""The Ray Serve application: admin ingress, routers and pools as one graph; and a local Ray to run it on."""

import asyncio
import contextlib
import functools
import io
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.common import DeploymentID  # the controller's methods ask for it
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from controlplane.admin import AdminApi
from controlplane.admin_routes.audit import AUDIT
from controlplane.admin_routes.pools import PoolsError
from controlplane.app import RouterPlan, run_router, worker_plan
from controlplane.config import Config, ConfigError, load_config
from router.deployment import build_router
from workers.deployment import POOL_NAMES, build_pool
from workers.logs import logging_to
from workers.types import Role

APPLICATION = "headrace"


_A_LITTLE = 0.01  # of a resource that says where: an old replica and its successor fit beside each other
_MOST_CALLS = 256  # at once; each open stream of events is one
_GOING = ("STOPPING", "STOPPED")


class ServePools:
    """The pools of this application, as Serve's controller counts them."""

    async def sizes(self) -> Mapping[Role, int]:
        """By Serve's status. Raises PoolsError."""
        try:
            found = await asyncio.to_thread(serve.status)
        except RayError as error:
            raise PoolsError(f"Serve does not say how many workers there are: {error}") from error
        deployed = found.applications[APPLICATION].deployments
        return {
            role: sum(count for state, count in deployed[name].replica_states.items() if state not in _GOING)
            for role, name in POOL_NAMES.items()
            if name in deployed
        }

    async def resize(self, role: Role, size: int) -> None:
        """Through the controller's method for external scalers: a redeployment would restart every worker."""
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        deployment = DeploymentID(name=POOL_NAMES[role], app_name=APPLICATION)
        try:
            await controller.update_deployment_replicas.remote(deployment, size)
        except (RayError, ValueError) as error:
            raise PoolsError(f"Serve does not change the pool's size: {error}") from error


class ControlPlaneReplica:
    """The admin API. Its children, routers and pools, are deployed with it and reached on their own ports."""

    async def __init__(self, config: Config, redis_url: str, log_dir: Path, *children: Any) -> None:  # type: ignore[misc]
        self._children = children  # handles: held so that Serve deploys them
        self._audit = _audit_to(log_dir / "audit.jsonl")
        self._log = contextlib.ExitStack()
        log_path = log_dir / "control-plane.log"
        self._log.enter_context(logging_to(log_path, config.telemetry.log_style, without=(AUDIT.name,)))
        self._api = AdminApi(config, redis_url, ServePools())
        self._api.start()

    async def __call__(self, request: Request) -> Response:
        """See AdminApi."""
        # The target as it came: a decoded path has lost which slashes were part of a name.
        path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii", "replace").partition("?")[0]
        target = f"{path}?{request.url.query}" if request.url.query else path
        answer = await self._api.answer(request.method, target, request.headers, await request.body())
        headers = dict(answer.headers)
        if answer.stream is not None:
            return StreamingResponse(answer.stream, answer.status, headers, answer.media_type)
        return Response(answer.body, answer.status, headers, answer.media_type)

    async def __del__(self) -> None:
        """Serve awaits this on shutdown."""
        await self._api.close()
        AUDIT.removeHandler(self._audit)
        self._audit.close()
        self._log.close()


def _audit_to(path: Path) -> logging.Handler:
    """Audit lines in a file of their own beside the other logs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    AUDIT.addHandler(handler)
    AUDIT.setLevel(logging.INFO)
    return handler


def build_application(config: Config, redis_url: str, log_dir: Path, *, by_group: bool = False) -> Any:
    """The graph to hand to `serve.run`. `by_group`: routers and pools run on Ray nodes that offer the resource of their
    name (`headrace_router`, `headrace_prefill`, ...), one replica for each unit of it; the control plane where
    `headrace_control_plane` is: there its files are."""
    router = build_router(
        functools.partial(run_router, RouterPlan(config, redis_url, str(log_dir))),
        num_replicas=config.router.replicas,
        drain_s=config.router.drain_s,
        resources={"headrace_router": 1.0} if by_group else {},
    )
    sizes = {Role.PREFILL: config.pools.prefill, Role.DECODE: config.pools.decode, Role.MIXED: config.pools.mixed}
    pools = [
        build_pool(
            worker_plan(config, role, redis_url, log_dir),
            size,
            resources={f"headrace_{role.value}": 1.0} if by_group else {},
        )
        for role, size in sizes.items()
        if size > 0
    ]
    place = {"headrace_control_plane": _A_LITTLE} if by_group else {}
    return bind_control_plane(config, redis_url, log_dir, router, *pools, resources=place)


def bind_control_plane(
    config: Config, redis_url: str, log_dir: Path, *children: Any, resources: Mapping[str, float] = MappingProxyType({})
) -> Any:
    """The ingress, with what is deployed beside it."""
    control_plane: Any = serve.deployment(
        ControlPlaneReplica,
        name="ControlPlane",
        num_replicas=1,
        max_ongoing_requests=_MOST_CALLS,
        ray_actor_options={"num_cpus": 0, "resources": dict(resources)},
    )
    return control_plane.bind(config, redis_url, log_dir, *children)


def serve_application(arguments: Mapping[str, str]) -> Any:
    """The application as a Serve config file imports it. `arguments`: `config`, the path of headrace.yaml as every Ray
    node sees it; `redis_url`, in place of the file's. Raises ConfigError."""
    path = Path(arguments["config"])
    config = load_config(path, [f"redis.url={arguments['redis_url']}"] if arguments.get("redis_url") else [])
    if config.redis.url is None:
        raise ConfigError(
            str(path), ["redis.url: none is given; Ray nodes meet in a Redis, such as redis://host:6379/0"]
        )
    return build_application(config, config.redis.url, config.state_path / "logs", by_group=True)


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray cluster of this process's own, on loopback; ends with the context."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report home; there is no argument for it
    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray's default of 15 would be inherited by every engine
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A terminal's Ctrl-C goes to the whole process group. Ray's processes inherit this mask, so that it reaches only us
    # and the engines are drained before anything under them ends.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            num_cpus=1,  # one idle worker process is started for each
            object_store_memory=100 << 20,
            namespace=APPLICATION,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def deployed(config: Config, redis_url: str, log_dir: Path) -> Iterator[None]:
    """Deploy the application; shut it down, engines included, at the end. Raises RuntimeError if Serve cannot."""
    with running(config, build_application(config, redis_url, log_dir)):
        yield


@contextmanager
def running(config: Config, application: Any) -> Iterator[None]:
    """An application on the admin address. Raises RuntimeError if Serve cannot."""
    serve.start(http_options=_http_options(config), logging_config={"log_level": "ERROR"})
    try:
        # The external scaler is ServePools.
        serve.run(application, name=APPLICATION, route_prefix="/", external_scaler_enabled=True)
        yield
    finally:
        # Ray's own threads print the controller's intended death as an error, on whatever sys.stdout is then.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if ray.is_initialized():  # else Ray has died, and Serve would start another to shut down
                serve.shutdown()


def _http_options(config: Config) -> dict[str, Any]:
    """Where the admin API listens, with its certificates."""
    admin = config.admin
    options: dict[str, Any] = {"host": admin.host, "port": admin.port}
    if admin.tls is not None:
        options |= {"ssl_certfile": admin.tls.cert_file, "ssl_keyfile": admin.tls.key_file}
    return options
