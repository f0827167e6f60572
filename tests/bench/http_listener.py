"""CPU of the HTTP listener, a bare uvloop + httptools echo, and aiohttp: `python -m tests.bench.http_listener`.

Each contender runs in a process of its own and answers 1.6 kB POSTs with 500 bytes, or with streams of 64 chunks of 200
bytes that an event loop turn separates. CPU seconds are the server process's, system calls included; the rounds are
interleaved, and medians are printed.
"""

import argparse
import asyncio
import multiprocessing
import resource
import socket
import statistics
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import httptools
import uvloop
from aiohttp import web

from router.http.message import HttpRequest
from router.http.reply import Reply
from router.http.server import HttpServer
from router.http.settings import HttpSettings

_BODY = b'{"model": "m", "prompt": "' + b"x" * 1570 + b'"}'
_HEADERS = {
    "Host": "127.0.0.1:8000",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "User-Agent": "AsyncOpenAI/Python 2.8.1",
    "Content-Type": "application/json",
    "Authorization": "Bearer sk-0123456789abcdef0123456789abcdef",
    "Content-Length": str(len(_BODY)),
}
_ANSWER = b"y" * 500
_ANSWER_HEADERS = {"content-type": "application/json", "x-request-id": "0123456789abcdef0123456789abcdef"}
_CHUNK = b"data: " + b"z" * 192 + b"\n\n"
_NUM_CHUNKS = 64
_END = b"0\r\n\r\n"

Serve = Callable[[socket.socket], Awaitable[None]]


def _request(path: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + _BODY


class _Echo(asyncio.Protocol):
    """The least that speaks HTTP: a parser without callbacks for headers, an answer made beforehand."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        pass

    def on_message_complete(self) -> None:
        if self._url == b"/stream":
            self._transport.write(_head("transfer-encoding: chunked") + _chunked(_CHUNK))
            self._rest = _NUM_CHUNKS - 1
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._transport.write(_head(f"content-length: {len(_ANSWER)}") + _ANSWER)

    def _next(self) -> None:
        self._rest -= 1
        if self._rest >= 0:
            self._transport.write(_chunked(_CHUNK))
            asyncio.get_running_loop().call_soon(self._next)
        else:
            self._transport.write(_END)


def _head(framing: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in _ANSWER_HEADERS.items())
    return f"HTTP/1.1 200 OK\r\n{lines}{framing}\r\n\r\n".encode()


def _chunked(chunk: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(chunk), chunk)


async def _serve_echo(sock: socket.socket) -> None:
    await asyncio.get_running_loop().create_server(_Echo, sock=sock)


async def _serve_headrace(sock: socket.socket) -> None:
    async def handle(request: HttpRequest, reply: Reply) -> None:
        if request.path == "/stream":
            reply.start(200, _ANSWER_HEADERS)
            for _ in range(_NUM_CHUNKS):
                reply.write(_CHUNK)
                await asyncio.sleep(0)
            reply.finish()
        else:
            reply.send(200, _ANSWER_HEADERS, _ANSWER)

    await HttpServer(handle, HttpSettings(), max_body_bytes=1 << 25).start(sock)


async def _serve_aiohttp(sock: socket.socket) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.path != "/stream":
            return web.Response(body=_ANSWER, headers=_ANSWER_HEADERS)
        response = web.StreamResponse(headers=_ANSWER_HEADERS)
        await response.prepare(request)
        for _ in range(_NUM_CHUNKS):
            await response.write(_CHUNK)
            await asyncio.sleep(0)
        return response

    app = web.Application()
    app.router.add_post("/{any:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()


_CONTENDERS: dict[str, Serve] = {"echo": _serve_echo, "headrace": _serve_headrace, "aiohttp": _serve_aiohttp}


class _Client(asyncio.Protocol):
    """Asks again as soon as it has an answer, until nothing is left to ask."""

    def __init__(self, path: str, left: list[int], done: "asyncio.Future[None]") -> None:
        self._request = _request(path)
        self._ending = _END if path == "/stream" else _ANSWER[-1:] * 500
        self._left = left
        self._done = done
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-len(self._ending) :]
        if self._tail != self._ending:
            return
        self._tail = b""
        self._left[0] -= 1
        if self._left[0] > 0:
            self._transport.write(self._request)
        elif not self._done.done():
            self._done.set_result(None)


async def _load(port: int, path: str, num_connections: int, num_requests: int) -> None:
    loop = asyncio.get_running_loop()
    left, done = [num_requests], loop.create_future()
    opened = [
        await loop.create_connection(lambda: _Client(path, left, done), "127.0.0.1", port)
        for _ in range(num_connections)
    ]
    await done
    for transport, _ in opened:
        transport.abort()


def _server(name: str, pipe: Pipe) -> None:
    async def main() -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        await _CONTENDERS[name](sock)
        pipe.send(sock.getsockname()[1])
        while await asyncio.to_thread(pipe.recv):
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((used.ru_utime, used.ru_stime))

    uvloop.run(main())


def _measure(name: str, path: str, num_connections: int, num_requests: int) -> tuple[float, float]:
    """User and system microseconds a request, of one fresh server."""
    context: Any = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_server, args=(name, theirs), daemon=True)
    process.start()
    port = ours.recv()

    def used() -> tuple[float, float]:
        ours.send(True)
        seconds: tuple[float, float] = ours.recv()
        return seconds

    uvloop.run(_load(port, path, num_connections, max(100, num_requests // 10)))
    before = used()
    uvloop.run(_load(port, path, num_connections, num_requests))
    after = used()
    ours.send(False)
    process.join(5)
    process.kill()
    return (after[0] - before[0]) / num_requests * 1e6, (after[1] - before[1]) / num_requests * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--contenders", nargs="+", default=list(_CONTENDERS))
    options = parser.parse_args()
    print(f"{'case':<10} {'connections':>11} {'contender':<10} {'CPU us':>8} {'user':>7} {'system':>7}")
    for path, num_requests, per in (("/unary", options.requests, 1), ("/stream", options.requests // 20, _NUM_CHUNKS)):
        for num_connections in options.connections:
            rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in options.contenders}
            for _ in range(options.rounds):
                for name in options.contenders:
                    rounds[name].append(_measure(name, path, num_connections, num_requests))
            for name, measured in rounds.items():
                user, system = (statistics.median(column) / per for column in zip(*measured, strict=True))
                case = "request" if per == 1 else "chunk"
                total = f"{user + system:8.2f} {user:7.2f} {system:7.2f}"
                print(f"{case:<10} {num_connections:>11} {name:<10} {total}", flush=True)


if __name__ == "__main__":
    main()
