"""Clients of every kind, polite and not, and what became of each of their requests.

A request ends in one of these ways. Answered: complete, status 200. Refused: complete, another status, and a JSON error
that says why. Broken off: an answer had begun, and its connection was closed before its end, which is the only honest
sign left. Cut: by its own client. Lost: anything else, silence for PATIENCE_S among it; a soak without losses is one
in which there are none.
"""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format

from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from tests.fleet import MODEL

PATIENCE_S = 60.0
_LONGEST_S = 600.0  # a slow reader of a long stream, on a machine that has other things to do
ANSWERED, REFUSED, BROKEN, CUT, LOST = "answered", "refused", "broken off", "cut", "lost"
_CONNECTION_ERRORS = (ConnectionError, asyncio.IncompleteReadError)
_SMALL_WINDOW_BYTES = 4096
_TOPICS = 200  # prompts come again, so there is something to be cached; the other half is new


class BrokenOffError(Exception):
    """The connection was closed within an answer."""


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes

    @property
    def outcome(self) -> str:
        """How the request ended."""
        if self.status == 200:
            return ANSWERED
        try:
            return REFUSED if json.loads(self.body)["error"]["message"] else LOST
        except (ValueError, KeyError, TypeError):
            return LOST


class Connection:
    """One client connection, by hand: what a library would repair is what is looked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, small_window: bool = False) -> "Connection":
        """Connect; `small_window`: the kernel takes little from the server before the client reads it."""
        sock = socket.socket()
        if small_window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_WINDOW_BYTES)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 20))

    async def send(self, body: bytes, *, keep_alive: bool = True, only: float = 1.0) -> None:
        """Send a request, or a part of it."""
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        )
        whole = head.encode() + body
        self._writer.write(whole[: int(len(whole) * only)])
        await self._writer.drain()

    async def receive(self, *, cut_after: int | None = None, pause_s: float = 0.0) -> _Reply | None:
        """The answer; None if it was cut after so many pieces.

        Raises BrokenOffError, TimeoutError where nothing came for PATIENCE_S, or a connection's error.
        """
        async with asyncio.timeout(PATIENCE_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        try:
            if b"transfer-encoding: chunked" not in head:
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                async with asyncio.timeout(PATIENCE_S):
                    return _Reply(status, await self._reader.readexactly(length))
            parts: list[bytes] = []
            while True:
                async with asyncio.timeout(PATIENCE_S):
                    size = int(await self._reader.readuntil(b"\r\n"), 16)
                    parts.append((await self._reader.readexactly(size + 2))[:size])
                if size == 0:
                    return _Reply(status, b"".join(parts))
                if cut_after is not None and len(parts) >= cut_after:
                    return None
                await asyncio.sleep(pause_s)
        except _CONNECTION_ERRORS as error:
            raise BrokenOffError from error

    async def close(self) -> None:
        """Close, whatever is still under way."""
        self._writer.transport.abort()


@dataclass
class Clients:
    """So many at once, each of them doing one thing after another."""

    http_port: int
    grpc_port: int
    rng: Random
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    details: Counter[str] = field(default_factory=Counter)  # of what was lost

    async def run(self, number: int, stop: asyncio.Event) -> None:
        """`number` clients until `stop`; then each ends what it does."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            stub: Any = pb_grpc.InferenceStub(channel)
            acts: dict[str, Callable[[str], Awaitable[None]]] = {
                "keep-alive": self._keep_alive,
                "one a connection": self._one_a_connection,
                "stream": self._stream,
                "cut stream": self._cut_stream,
                "gone before the answer": self._gone_early,
                "half a request": self._half,
                "slow reader": self._slow_reader,
                "bad request": self._bad,
                "idle connection": self._idle,
                "gRPC": lambda name: self._grpc(name, stub, cut=False),
                "cut gRPC": lambda name: self._grpc(name, stub, cut=True),
            }
            async with asyncio.TaskGroup() as group:
                for _ in range(number):
                    group.create_task(self._client(acts, stop))

    def total(self, outcome: str) -> int:
        """Requests that ended so."""
        return sum(counter[outcome] for counter in self.outcomes.values())

    async def _client(self, acts: dict[str, Callable[[str], Awaitable[None]]], stop: asyncio.Event) -> None:
        while not stop.is_set():
            name = self.rng.choice(list(acts))
            try:
                async with asyncio.timeout(_LONGEST_S):
                    await acts[name](name)
            except BrokenOffError:
                self._count(name, BROKEN)
            except TimeoutError:
                self._lost(name, "silence")
            except (*_CONNECTION_ERRORS, OSError, ValueError, IndexError) as error:
                self._lost(name, type(error).__name__)
            await asyncio.sleep(self.rng.uniform(0.0, 0.05))

    def _count(self, name: str, outcome: str) -> None:
        self.outcomes.setdefault(name, Counter())[outcome] += 1

    def _lost(self, name: str, detail: str) -> None:
        self._count(name, LOST)
        self.details[f"{name}: {detail}"] += 1

    def _body(self, **fields: Any) -> bytes:
        topic = self.rng.randrange(_TOPICS) if self.rng.random() < 0.5 else self.rng.random()
        prompt = f"{topic} ".ljust(self.rng.choice((80, 300, 900)), "x")
        return json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 16, **fields}).encode()

    async def _keep_alive(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        try:
            for _ in range(self.rng.randint(2, 10)):
                await connection.send(self._body(stream=self.rng.random() < 0.5))
                await self._whole(name, connection)
        finally:
            await connection.close()

    async def _one_a_connection(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        try:
            await connection.send(self._body(), keep_alive=False)
            await self._whole(name, connection)
        finally:
            await connection.close()

    async def _stream(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        try:
            await connection.send(self._body(stream=True, max_tokens=self.rng.randint(8, 200)))
            await self._whole(name, connection)
        finally:
            await connection.close()

    async def _cut_stream(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        try:
            await connection.send(self._body(stream=True, max_tokens=300))
            await self._whole(name, connection, cut_after=self.rng.randint(1, 20))
        finally:
            await connection.close()

    async def _slow_reader(self, name: str) -> None:
        """Each event is some kilobytes; the router must not keep them all for this client."""
        connection = await Connection.open(self.http_port, small_window=True)
        try:
            await connection.send(self._body(stream=True, max_tokens=600, logprobs=20))
            cut_after = self.rng.choice((None, 300))
            await self._whole(name, connection, cut_after=cut_after, pause_s=0.01)
        finally:
            await connection.close()

    async def _gone_early(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        await connection.send(self._body(stream=self.rng.random() < 0.5, max_tokens=100))
        await asyncio.sleep(self.rng.uniform(0.0, 0.05))
        await connection.close()
        self._count(name, CUT)

    async def _half(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        await connection.send(self._body(), only=self.rng.uniform(0.05, 0.95))
        await asyncio.sleep(self.rng.uniform(0.0, 0.05))
        await connection.close()
        self._count(name, CUT)

    async def _bad(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        try:
            bodies = (b"{", b"[]", b'{"model":"nobody","prompt":"x"}', b'{"model":"fake","prompt":"x","promt":1}')
            await connection.send(self.rng.choice(bodies), keep_alive=False)
            await self._whole(name, connection)
        finally:
            await connection.close()

    async def _idle(self, name: str) -> None:
        connection = await Connection.open(self.http_port)
        await asyncio.sleep(self.rng.uniform(0.0, 2.0))
        await connection.close()
        self._count(name, CUT)

    async def _whole(
        self, name: str, connection: Connection, *, cut_after: int | None = None, pause_s: float = 0.0
    ) -> None:
        reply = await connection.receive(cut_after=cut_after, pause_s=pause_s)
        outcome = CUT if reply is None else reply.outcome
        self._count(name, outcome)
        if outcome == LOST and reply is not None:
            self.details[f"{name}: {reply.status} {reply.body[:60]!r}"] += 1

    async def _grpc(self, name: str, stub: Any, *, cut: bool) -> None:
        body = json.loads(self._body())
        request = {"model": MODEL, "prompt": body["prompt"], "sampling": {"maxTokens": 50}}
        call = stub.Generate(json_format.ParseDict(request, pb.GenerateRequest()))
        num_read = 0
        try:
            async for _ in call:
                num_read += 1
                if cut and num_read == 5:
                    call.cancel()
                    self._count(name, CUT)
                    return
        except grpc.aio.AioRpcError as error:
            outcome = LOST if error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL) else REFUSED
            self._count(name, outcome)
            if outcome == LOST:
                self.details[f"{name}: {error.code().name} {error.details()}"] += 1
        else:
            self._count(name, ANSWERED)
