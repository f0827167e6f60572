"""Ray Serve deployment of the router. Serve places and replaces it; clients reach its own listeners directly."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvloop
from ray import serve

# run(listening, stop): the router as composed by the caller; calls `listening` once it accepts connections.
RunRouter = Callable[[Callable[[object], None], asyncio.Event], Awaitable[None]]


class RouterReplica:
    """One router process: a uvloop thread of its own, away from Serve's event loop."""

    async def __init__(self, run: RunRouter) -> None:  # type: ignore[misc]  # Serve awaits it
        self._run = run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._listening = threading.Event()
        self._ports: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="router", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._listening.wait)
        await self.check_health()

    async def check_health(self) -> None:
        """Raise when the router thread has ended: Serve then replaces the replica."""
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise RuntimeError("the router thread has ended")

    async def ports(self) -> object:
        """Where this replica listens."""
        return self._ports

    async def __del__(self) -> None:
        """Serve awaits this on shutdown, scale-down and upgrade: stop accepting, drain, end."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.to_thread(self._thread.join)

    def _main(self) -> None:
        def listening(ports: object) -> None:
            self._ports = ports
            self._listening.set()

        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await self._run(listening, self._stop)

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run())
        except BaseException as error:
            self._error = error
        finally:
            self._listening.set()


def build_router(run: RunRouter, *, num_replicas: int, drain_s: float, resources: Mapping[str, float]) -> Any:
    """The Serve application node of the routers. `resources`: what a replica takes of its Ray node, by name."""
    deployment: Any = serve.deployment(
        RouterReplica,
        name="Router",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": 0, "resources": dict(resources)},
        graceful_shutdown_timeout_s=drain_s + 10.0,
        health_check_period_s=5.0,
    )
    return deployment.bind(run)
