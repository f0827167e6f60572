"""The floor: the least that a Python process must do to relay HTTP. uvloop, httptools, pooled connections, no routing.

    python -m tests.bench.data_plane.relay PORT UPSTREAM_PORT ...

Both parsers run, only to find where messages end; all bytes pass as they came. Nothing is checked, counted or limited,
a slow client grows memory, and what fails closes both sides: it is a measure, not a proxy.
"""

import asyncio
import itertools
import sys
from collections.abc import Iterator
from typing import cast

import httptools
import uvloop

Pool = list["Upstream"]


class Upstream(asyncio.Protocol):
    """A connection to an engine; serves one client's request at a time."""

    __slots__ = ("_parser", "_pool", "client", "transport")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.client: Downstream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready for a request."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it

    def send(self, client: "Downstream", request: bytes) -> None:
        """Relay one request of a client."""
        self.client = client
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Part of an answer."""
        if self.client is None:
            self.transport.close()
            return
        self.client.transport.write(data)
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """httptools: the answer has ended."""
        self.client = None
        self._pool.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        """An answer that was under way is lost."""
        if self in self._pool:
            self._pool.remove(self)
        if self.client is not None:
            self.client.transport.close()


class Downstream(asyncio.Protocol):
    """A client's connection."""

    __slots__ = ("_parser", "_raw", "_turns", "_upstream", "transport")

    def __init__(self, turns: "Iterator[tuple[int, Pool]]") -> None:
        self._turns = turns
        self._raw = b""
        self._upstream: Upstream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connects."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        self._raw = self._raw + data if self._raw else data
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """httptools: the request is complete."""
        raw, self._raw = self._raw, b""
        port, pool = next(self._turns)
        if pool:
            self._upstream = pool.pop()
            self._upstream.send(self, raw)
        else:
            connecting = asyncio.ensure_future(self._connect(port, pool, raw))
            connecting.add_done_callback(_raise_error)

    async def _connect(self, port: int, pool: Pool, raw: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, self._upstream = await loop.create_connection(lambda: Upstream(pool), "127.0.0.1", port)
        self._upstream.send(self, raw)

    def connection_lost(self, error: Exception | None) -> None:
        """The engine is told by closing its connection."""
        if self._upstream is not None and self._upstream.client is self:
            self._upstream.client = None
            self._upstream.transport.close()


def _raise_error(task: "asyncio.Task[None]") -> None:
    task.result()


async def serve(port: int, upstream_ports: list[int]) -> None:
    """Listen until the process ends."""
    pools: list[tuple[int, Pool]] = [(each, []) for each in upstream_ports]
    turns = itertools.cycle(pools)
    await asyncio.get_running_loop().create_server(lambda: Downstream(turns), "127.0.0.1", port, backlog=8192)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """`PORT UPSTREAM_PORT ...`"""
    port, *upstream_ports = map(int, sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(port, upstream_ports))


if __name__ == "__main__":
    main()
