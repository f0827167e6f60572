"""A whole Headrace without Ray and without models: the real router, real Redis, real leases, fake engines."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from controlplane.app import RouterPlan, RouterPorts, run_router
from controlplane.config import Config
from controlplane.embedded_redis import embedded_redis
from kvstore.types import WorkerId
from tests.admin_server import VIEWER
from tests.byte_renderer import ByteRenderer
from workers.fake import FakeEngine, FakeSettings, Plan
from workers.ports import free_ports
from workers.types import Role
from workers.worker import new_spec, run_joined

MODEL = "fake"


@dataclass
class Fleet:
    """What a test drives."""

    config: Config
    redis_url: str
    folder: Path
    session: aiohttp.ClientSession
    stack: AsyncExitStack
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    leaving: dict[str, asyncio.Event] = field(default_factory=dict)
    url: str = ""
    grpc_target: str = ""
    picker_port: int | None = None

    async def add(self, role: Role, name: str, plan: Plan | None = None, adapters: tuple[str, ...] = ()) -> FakeEngine:
        """Start a fake engine and bring it into the fleet as `name`."""
        events, replay = free_ports("127.0.0.1", 2)
        settings = FakeSettings(
            model=MODEL,
            plan=plan or Plan(),
            adapters=adapters,
            engine_id=f"engine-{name}",
            kv_events_endpoint=f"tcp://127.0.0.1:{events}",
            kv_replay_endpoint=f"tcp://127.0.0.1:{replay}",
        )
        engine = await self.stack.enter_async_context(FakeEngine(settings).serving())
        self.engines[name] = engine
        await self.join(engine.address, role, name)
        return engine

    async def join(self, address: str, role: Role, name: str) -> None:
        """Bring a running engine into the fleet as `name`."""
        stop = self.leaving[name] = asyncio.Event()
        joined = run_joined(
            address,
            new_spec(WorkerId(name), role, MODEL),
            self.config.engine,
            self.redis_url,
            self.config.redis,
            stop,
            index=self.config.index,
            kv_events=self.config.kv_events,
        )
        self.stack.push_async_callback(_end, asyncio.create_task(joined), stop)

    async def start_router(self) -> None:
        """Start a router; its address becomes `url`."""
        stop = asyncio.Event()
        listening: asyncio.Future[RouterPorts] = asyncio.get_running_loop().create_future()
        plan = RouterPlan(self.config, self.redis_url, str(self.folder), {MODEL: ByteRenderer()})
        task = asyncio.create_task(run_router(plan, listening.set_result, stop))
        self.stack.push_async_callback(_end, task, stop)
        task.add_done_callback(lambda _: listening.cancel())  # a router that cannot start says so below
        try:
            ports = await asyncio.wait_for(asyncio.shield(listening), timeout=20)
        except asyncio.CancelledError:
            await task
            raise
        self.url = f"http://127.0.0.1:{ports.http}"
        self.grpc_target = f"127.0.0.1:{ports.grpc}"
        self.picker_port = ports.endpoint_picker

    async def wait_for_workers(self, names: Sequence[str]) -> None:
        """Wait until the router sees exactly these workers ready."""
        for _ in range(200):
            if sorted(await self.ready_workers()) == sorted(names):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"wanted {sorted(names)}, have {await self.ready_workers()}")

    async def ready_workers(self) -> list[str]:
        """Ready workers by the router's own metrics."""
        text = await self.metrics()
        lines = [line for line in text.splitlines() if line.startswith("headrace_worker_up{") and line.endswith(" 1.0")]
        return [line.split('worker="')[1].split('"')[0] for line in lines]

    async def metrics(self) -> str:
        """The router's metrics."""
        headers = {"Authorization": f"Bearer {VIEWER}"}  # where they are closed
        async with self.session.get(f"{self.url}/metrics", headers=headers) as response:
            return await response.text()

    async def metric(self, name: str) -> float:
        """One of the router's metrics, without labels."""
        lines = [line for line in (await self.metrics()).splitlines() if line.startswith(f"{name} ")]
        return float(lines[0].split()[-1])

    async def wait_for_metric(self, name: str, at_least: float) -> None:
        """Wait until it has risen so far."""
        for _ in range(200):
            if await self.metric(name) >= at_least:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{name} is {await self.metric(name)}, wanted {at_least}")

    async def complete(self, prompt: str = "hello there", max_tokens: int = 6, **fields: Any) -> tuple[int, Any]:
        """Status and parsed answer of one completion that is not streamed."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, **fields}
        async with self.session.post(f"{self.url}/v1/completions", json=body) as response:
            return response.status, await response.json()


@asynccontextmanager
async def fleet(folder: Path, **sections: Any) -> AsyncIterator[Fleet]:
    """An empty fleet: Redis runs; add engines and start the router as the test wants."""
    sections.setdefault("router", {})
    defaults = {"http": {"port": 0}, "grpc": {"port": 0}, "drain_s": 0.5, "hand_off": "always"}
    # Tests look for texts in what engines were sent; ids are sent where they are meant.
    defaults["tokens"] = {"send_ids": False}
    sections["router"] = {**defaults, **sections["router"]}
    sections.setdefault("redis", {"lease_s": 2.0, "heartbeat_s": 0.1})
    # On a busy test machine seconds say little: who is let in is tested where it is meant.
    sections.setdefault("slo", {"enabled": False})
    config = Config.model_validate(sections)
    async with AsyncExitStack() as stack:
        redis_url = await stack.enter_async_context(embedded_redis(folder))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Fleet(config, redis_url, folder, session, stack)


async def _end(task: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    stop.set()
    await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), timeout=20)
