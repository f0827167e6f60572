"""Ray Serve deployments of workers: Ray places, counts and replaces the supervisors; tokens never pass through it."""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray import serve
from ray.util import get_node_ip_address

from kvstore.types import WorkerId
from workers.settings import NODE_HOST
from workers.types import Role
from workers.worker import WorkerPlan, run_worker


class WorkerReplica:
    """One replica: supervises one engine. Readiness is the lease's phase, not the replica's existence."""

    async def __init__(self, plan: WorkerPlan) -> None:  # type: ignore[misc]  # Serve awaits it
        self._stop = asyncio.Event()
        plan = replace(_at_home(plan), worker_id=WorkerId(f"{plan.role}-{uuid.uuid4().hex[:6]}"))
        self._task = asyncio.get_running_loop().create_task(run_worker(plan, self._stop))

    async def check_health(self) -> None:
        """Unhealthy when the supervisor itself has ended; a failing engine is the supervisor's business."""
        if self._task.done():
            await self._task
            raise RuntimeError("the worker's supervisor has ended")

    async def __del__(self) -> None:
        """Serve awaits this on shutdown, scale-down and upgrade: drain, stop the engine, give the lease back."""
        self._stop.set()
        await asyncio.gather(self._task, return_exceptions=True)


def _at_home(plan: WorkerPlan) -> WorkerPlan:
    """The plan with this node's address, where `engine.host` leaves that open."""
    if plan.engine.host != NODE_HOST:
        return plan
    return replace(plan, engine=plan.engine.model_copy(update={"host": get_node_ip_address()}))


POOL_NAMES = {Role.PREFILL: "PrefillWorker", Role.DECODE: "DecodeWorker", Role.MIXED: "MixedWorker"}


def build_pool(plan: WorkerPlan, num_replicas: int, *, resources: Mapping[str, float]) -> Any:
    """The Serve application node of one pool; `plan.worker_id` is replaced per replica.

    `resources`: what a replica takes of its Ray node beside CPUs and GPUs, by name.
    """
    engine = plan.engine
    deployment: Any = serve.deployment(
        WorkerReplica,
        name=POOL_NAMES[plan.role],
        num_replicas=num_replicas,
        ray_actor_options={
            "num_cpus": engine.num_cpus,
            "num_gpus": engine.reserved_gpus,
            "resources": dict(resources),
        },
        graceful_shutdown_timeout_s=2 * engine.shutdown_timeout_s + 15.0,
        health_check_period_s=5.0,
    )
    return deployment.bind(plan)
