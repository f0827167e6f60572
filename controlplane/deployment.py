"""The Ray Serve application: admin ingress, routers and pools as one graph; and a local Ray to run it on."""

import contextlib
import functools
import io
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from controlplane.admin import AdminApi
from controlplane.app import RouterPlan, run_router, worker_plan
from controlplane.config import Config
from router.deployment import build_router
from workers.deployment import build_pool
from workers.types import Role

APPLICATION = "headrace"


class ControlPlaneReplica:
    """The admin API. Its children, routers and pools, are deployed with it and reached on their own ports."""

    async def __init__(self, config: Config, redis_url: str, *children: Any) -> None:  # type: ignore[misc]
        self._children = children  # handles: held so that Serve deploys them
        self._api = AdminApi(config, redis_url)
        self._api.start()

    async def __call__(self, request: Request) -> Response:
        """See AdminApi."""
        answer = await self._api.answer(request.method, request.url.path, await request.body())
        return Response(answer.body, status_code=answer.status, media_type=answer.media_type)

    async def __del__(self) -> None:
        """Serve awaits this on shutdown."""
        await self._api.close()


def build_application(config: Config, redis_url: str, log_dir: Path) -> Any:
    """The graph to hand to `serve.run`."""
    router = build_router(
        functools.partial(run_router, RouterPlan(config, redis_url, str(log_dir))),
        num_replicas=config.router.replicas,
        drain_s=config.router.drain_s,
    )
    sizes = {Role.PREFILL: config.pools.prefill, Role.DECODE: config.pools.decode, Role.MIXED: config.pools.mixed}
    pools = [
        build_pool(worker_plan(config, role, redis_url, log_dir), size) for role, size in sizes.items() if size > 0
    ]
    control_plane: Any = serve.deployment(
        ControlPlaneReplica, name="ControlPlane", num_replicas=1, ray_actor_options={"num_cpus": 0}
    )
    return control_plane.bind(config, redis_url, router, *pools)


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
    serve.start(
        http_options={"host": config.admin.host, "port": config.admin.port}, logging_config={"log_level": "ERROR"}
    )
    try:
        serve.run(build_application(config, redis_url, log_dir), name=APPLICATION, route_prefix="/")
        yield
    finally:
        # Ray's own threads print the controller's intended death as an error, on whatever sys.stdout is then.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            serve.shutdown()
