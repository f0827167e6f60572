"""Streams that have begun and say nothing more: what they cost a router in memory."""

import asyncio
from typing import Any, cast

from tests.bench.data_plane import prompts
from tests.bench.data_plane.jobs import Job, Requests
from tests.bench.data_plane.meter import rss_bytes

_IDLE_AT_ONCE = 250
_IDLE_PATIENCE_S = 20.0


class IdleStream(asyncio.Protocol):
    """A client whose stream has begun and goes no further."""

    __slots__ = ("_began", "_request", "transport")

    def __init__(self, request: bytes, began: "asyncio.Future[None]") -> None:
        self._request = request
        self._began = began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for it."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Its first event."""
        if not self._began.done() and b"data: {" in data:
            self._began.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """It was refused, or is over."""
        if not self._began.done():
            self._began.set_exception(ConnectionError("it was closed before its first event"))


def _has_begun(began: "asyncio.Future[None]") -> bool:
    return began.done() and not began.cancelled() and began.exception() is None


async def hold_idle_streams(workload: prompts.Workload, job: Job) -> dict[str, Any]:
    """Open `connections` streams that say nothing after their first event; memory before, and with all of them."""
    loop, requests = asyncio.get_running_loop(), Requests(workload, job)
    before = rss_bytes(job.pids)
    open_streams: list[IdleStream] = []
    measured: dict[str, Any] = {"errors": 0, "error": None}
    while len(open_streams) < job.connections and not measured["errors"]:
        part = [loop.create_future() for _ in range(min(_IDLE_AT_ONCE, job.connections - len(open_streams)))]
        made = [IdleStream(requests.take(), began) for began in part]
        try:
            async with asyncio.timeout(_IDLE_PATIENCE_S):
                for stream in made:
                    await loop.create_connection(lambda stream=stream: stream, "127.0.0.1", job.port)  # type: ignore[misc]
                await asyncio.gather(*part)
        except (OSError, TimeoutError) as error:
            measured = {"errors": sum(not _has_begun(each) for each in part)}
            measured["error"] = f"after {len(open_streams)} streams: {error!r}"
        open_streams += made
    await asyncio.sleep(job.warm_s)
    measured |= {"streams": len(open_streams) - measured["errors"], "rss_before_mb": before / 1e6}
    measured["rss_mb"] = rss_bytes(job.pids) / 1e6
    for stream in open_streams:
        stream.transport.abort()
    await asyncio.sleep(job.warm_s)
    return measured
