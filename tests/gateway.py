"""A gateway for tests: the real Envoy in front, the real picker and service, and engines behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from router.core import RouterCore
from router.gateway.endpoint_picker import EndpointPicker
from router.gateway.exchange import Picking
from router.openai import COMPLETION_ROUTE
from router.tracing import NoTracing
from tests.envoy_proxy import Envoy, endpoint, gateway_config, running_envoy
from tests.grpc_door import MODEL, Door, open_door
from workers.types import WorkerState


@dataclass
class Gateway:
    """What a test drives."""

    door: Door
    envoy: Envoy
    picker: EndpointPicker
    picker_port: int
    session: aiohttp.ClientSession

    async def ask(self, route: str = COMPLETION_ROUTE, **fields: Any) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed answer and headers of one request that is not streamed; a completion unless told otherwise."""
        headers = fields.pop("headers", {})
        body = fields.pop("raw", None) or json.dumps({"model": MODEL, "prompt": "hello", "max_tokens": 6, **fields})
        async with self.session.post(f"{self.envoy.url}{route}", data=body, headers=headers) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return response.status, json.loads(await response.read()), names

    @asynccontextmanager
    async def stream(self, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A streamed completion."""
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 6, "stream": True, **fields}
        async with self.session.post(f"{self.envoy.url}{COMPLETION_ROUTE}", json=body) as response:
            yield response

    def reserved(self) -> dict[str, int]:
        """Sequences reserved at each worker."""
        core = self.door.core
        return {worker.spec.id: core.candidate(worker).reserved_seqs for worker in self.door.service.fleet()}

    def metric(self, name: str) -> float:
        """One of the router's metrics, with its labels."""
        lines = self.door.service.metrics.exposition().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.rpartition(" ")[0] == name), 0.0)


@asynccontextmanager
async def open_gateway(
    folder: Path, *workers: WorkerState, core: RouterCore | None = None, knows_pool: bool = False, **options: Any
) -> AsyncIterator[Gateway]:
    """A gateway in front of a fleet; nothing may be left in flight or reserved at the end.

    `knows_pool`: Envoy has the workers as endpoints. `options["router"]` is for the picker, `options["identity"]` for
    those who may ask, the rest for Envoy.
    """
    settings = options.pop("router", {})
    identity = options.pop("identity", None)
    if knows_pool:
        options["pool"] = [endpoint(worker.spec.address) for worker in workers]
    async with open_door(*workers, core=core, identity=identity, **settings) as door:
        picker = EndpointPicker(Picking(door.service, door.desk, door.desk.settings, NoTracing()))
        port = await picker.start("127.0.0.1", 0)
        try:
            async with (
                running_envoy(folder / "envoy", gateway_config(port, **options)) as envoy,
                aiohttp.ClientSession() as session,
            ):
                yield Gateway(door, envoy, picker, port, session)
                await door.settle()
        finally:
            await asyncio.wait_for(picker.stop(), 20.0)
