"""An engine's side of the wire that sends exactly the bytes it is told, and counts what is done to it."""

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import uvloop

from tests.builders import make_worker
from workers.client import EngineClient
from workers.engine_http.settings import EngineHttpSettings
from workers.types import WorkerState

ROUTE = "/v1/completions"
HEADERS = {"content-type": "application/json", "x-request-id": "r1"}
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")

# keep: wait for the next request. close: end our side. reset: RST. wait: say nothing until the client ends its side.
Then = Literal["keep", "close", "reset", "wait"]


@dataclass(frozen=True)
class Script:
    """The answer to one request: bytes, each piece sent by itself, and what follows."""

    pieces: tuple[bytes, ...]
    then: Then = "keep"


def says(*pieces: bytes, then: Then = "keep") -> Script:
    """A script."""
    return Script(pieces, then)


def whole(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer with a length."""
    head = b"".join(field + b"\r\n" for field in (*fields, b"Content-Length: %d" % len(body)))
    return b"HTTP/1.1 " + status + b"\r\n" + head + b"\r\n" + body


def chunked(*pieces: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    """A chunked answer."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + last


@dataclass
class RawUpstream:
    """Answers requests in the order of its scripts; the last one is for all that follow."""

    scripts: list[Script]
    address: str = ""
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)  # head, body
    num_connections: int = 0
    num_open: int = 0
    num_pieces_sent: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> "AsyncIterator[RawUpstream]":
        """Listen while the context is open."""
        server = await asyncio.start_server(self._accept, host, 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        self.address = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            yield self
        finally:
            server.close()
            for writer in self.writers:
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.writers.append(writer)
        self.num_connections += 1
        self.num_open += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self.num_open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None, head
        self.requests.append((head, await reader.readexactly(int(length[1]))))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        for piece in script.pieces:
            writer.write(piece)
            await writer.drain()
            self.num_pieces_sent += 1
            await asyncio.sleep(0)
        match script.then:
            case "close":
                if writer.can_write_eof():
                    writer.write_eof()
                else:
                    writer.close()
                await reader.read()
            case "reset":
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case "wait":
                await reader.read()
        return script.then == "keep"


def worker_at(address: str, rank: int | None = None) -> WorkerState:
    """A worker that serves at an address."""
    worker = make_worker("w1")
    return replace(worker, spec=replace(worker.spec, address=address, rank=rank))


@dataclass
class Line:
    """A client and the upstream that it talks to."""

    client: EngineClient
    upstream: RawUpstream
    worker: WorkerState

    async def post(self, body: bytes = b"{}") -> tuple[int, bytes]:
        """Status and body of one answer."""
        reply = await self.client.post(self.worker, ROUTE, body, HEADERS)
        return reply.status, reply.body

    async def closed(self) -> None:
        """Wait until every connection has ended on the upstream's side."""
        await eventually(lambda: self.upstream.num_open == 0)


@asynccontextmanager
async def line(*scripts: Script, **settings: Any) -> AsyncIterator[Line]:
    """A client and a scripted upstream."""
    async with RawUpstream(list(scripts)).serving() as upstream:
        client = EngineClient(EngineHttpSettings(**settings))
        try:
            yield Line(client, upstream, worker_at(upstream.address))
        finally:
            await client.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.005)


LOOPS: tuple[Callable[[], asyncio.AbstractEventLoop], ...] = (uvloop.new_event_loop, asyncio.new_event_loop)


def run(test: Coroutine[Any, Any, None], new_loop: Callable[[], asyncio.AbstractEventLoop] = LOOPS[0]) -> None:
    """Run one test, not forever."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(test, 60.0))
