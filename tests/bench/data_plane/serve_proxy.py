"""Ray Serve's own proxy in front of the engines: the smallest application that relays, with aiohttp, in one replica.

python -m tests.bench.data_plane.serve_proxy PORT UPSTREAM_PORT ...
"""

import itertools
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse


class Relay:
    """Takes a request from Serve's proxy, sends it to the next engine, streams the answer back."""

    def __init__(self, upstream_ports: list[int]) -> None:
        self._ports = itertools.cycle(upstream_ports)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, request: Request) -> StreamingResponse:
        """One request."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        url = f"http://127.0.0.1:{next(self._ports)}{request.url.path}"
        headers = {"content-type": "application/json"}
        response = await self._session.post(url, data=await request.body(), headers=headers)
        return StreamingResponse(
            _chunks(response), status_code=response.status, media_type=response.headers["content-type"]
        )


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with response:
        async for chunk in response.content.iter_any():
            yield chunk


def main() -> None:
    """`PORT UPSTREAM_PORT ...`"""
    port, *upstream_ports = map(int, sys.argv[1:])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "access_log": False}, logging_config=_QUIET)
    deployment: Any = serve.deployment(Relay, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    serve.run(deployment.bind(upstream_ports), logging_config=_QUIET)
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


_QUIET = {"log_level": "WARNING", "enable_access_log": False}

if __name__ == "__main__":
    main()
