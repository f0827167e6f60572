"""The router's HTTP server on a real socket with a handler of the test's, and clients that send any bytes."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from router.http.message import HttpRequest
from router.http.reply import Reply
from router.http.server import HttpServer
from router.http.settings import HttpSettings

TIMEOUT_S = 20.0  # of whatever a test waits for: a test that waits so long has failed


@dataclass
class Served:
    """A running server and what its handler has seen."""

    server: HttpServer
    port: int
    requests: list[HttpRequest] = field(default_factory=list)
    cancelled: list[HttpRequest] = field(default_factory=list)
    clients: list["Client"] = field(default_factory=list)

    async def connect(self, **options: Any) -> "Client":
        """A new connection to it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def exchange(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, then nothing more; everything that comes back."""
        client = await self.connect()
        with contextlib.suppress(ConnectionError):
            client.writer.write(data)
            client.writer.write_eof()
        return await client.read_all()


@dataclass
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    async def read_all(self) -> bytes:
        """Until the server closes."""
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT_S):
                while data := await self.reader.read(1 << 16):
                    received += data
        self.writer.close()
        return received

    async def read_head(self) -> bytes:
        """One head, with its empty line."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One whole answer: status, headers with lower-case names, body."""
        head = (await self.read_head()).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        body = b""
        async with asyncio.timeout(TIMEOUT_S):
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            else:
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body

    def reset(self) -> None:
        """Go away at once."""
        self.writer.transport.abort()


async def echo(request: HttpRequest, reply: Reply) -> None:
    """Answer with what was understood."""
    seen = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": dict(request.headers),
        "body": request.body.decode("latin-1"),
    }
    reply.send(200, {"content-type": "application/json"}, json.dumps(seen).encode())


@asynccontextmanager
async def serving(
    handler: Callable[[HttpRequest, Reply], Awaitable[None]] = echo,
    *,
    max_body_bytes: int = 1 << 20,
    drain_s: float = 0.2,
    never_shed: frozenset[str] = frozenset(),
    **settings: Any,
) -> AsyncIterator[Served]:
    """A server for the time of a test. Ends with nothing open."""
    http = HttpSettings(port=0, **settings)
    served: Served

    async def handle(request: HttpRequest, reply: Reply) -> None:
        served.requests.append(request)
        try:
            await handler(request, reply)
        except asyncio.CancelledError:
            served.cancelled.append(request)
            raise

    server = HttpServer(handle, http, max_body_bytes=max_body_bytes, drain_s=drain_s, never_shed=never_shed)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    served = Served(server, sock.getsockname()[1])
    await server.start(sock)
    try:
        yield served
    finally:
        await server.stop()
        for client in served.clients:
            client.reset()
        await asyncio.sleep(0)
        assert server.num_connections == 0
        assert server.num_buffered_bytes == 0


def run(test: Callable[[], Awaitable[None]]) -> None:
    """On the event loop that routers have."""

    async def main() -> None:
        await test()

    uvloop.run(main())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


def post(body: bytes, *headers: str, path: str = "/p", framing: str | None = None) -> bytes:
    """A POST with Content-Length, or with the framing header given."""
    lines = ["Host: h", framing or f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body


GET = b"GET /g HTTP/1.1\r\nHost: h\r\n\r\n"


def statuses(data: bytes) -> list[int]:
    """Of all answers in `data` whose heads begin a line, in order; 100s are left out."""
    parts = data.split(b"HTTP/1.1 ")[1:]
    return [int(part[:3]) for part in parts if part[:3] != b"100"]
