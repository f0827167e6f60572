"""The wire to one engine: its own HTTP, bytes in and bytes out. Failures come out as WorkerError and nothing else.

Invariants
 1. A request is sent once; a second time only when a connection that had been idle ended without a byte of the answer,
    and then on a new one: the engine had closed it while the request was on its way, and has not seen it.
 2. An answer that is not read to its end closes its connection, which tells the engine to stop.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kvstore.types import WorkerId
from workers.engine_http.connection import Exchange, ExchangeError, StaleConnectionError
from workers.engine_http.pool import Pools
from workers.engine_http.response import Headers
from workers.engine_http.settings import EngineHttpSettings
from workers.errors import WorkerFailedError, WorkerUnreachableError
from workers.types import WorkerState

Body = bytes | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class EngineReply:
    """A complete answer."""

    status: int
    headers: Headers
    body: bytes


class EngineStream:
    """An answer whose head has arrived; the body is read as it comes. Close it, whether it has ended or not."""

    __slots__ = ("_exchange", "_worker_id")

    def __init__(self, worker_id: WorkerId, exchange: Exchange) -> None:
        self._worker_id = worker_id
        self._exchange = exchange

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._exchange.reader.status

    @property
    def has_ended(self) -> bool:
        """All of the body has been given out, and the connection with it given back."""
        return self._exchange.has_ended

    @property
    def headers(self) -> Headers:
        """Response headers, names in lower case."""
        return Headers(self._exchange.reader.fields)

    async def first_chunk(self) -> bytes:
        """The first bytes of the body, b"" where it has none; raises WorkerUnreachableError where it breaks off."""
        try:
            return await self._exchange.first_chunk()
        except ExchangeError as error:
            raise self._broke_off(error) from error

    async def relay(self, write: Callable[[bytes], object]) -> None:
        """Pass the rest of the body on, piece by piece, from the event loop's read callback; return at its end.

        Raises WorkerUnreachableError where it breaks off, and what `write` raises.
        """
        try:
            await self._exchange.relay(write)
        except ExchangeError as error:
            raise self._broke_off(error) from error

    def pause(self) -> None:
        """Stop reading from the engine; its own buffers, and then it, will wait."""
        self._exchange.pause()

    def resume(self) -> None:
        """Go on reading."""
        self._exchange.resume()

    def close(self) -> None:
        """No more of this answer is wanted. Nothing to do for one that has ended."""
        self._exchange.close()

    def _broke_off(self, error: ExchangeError) -> WorkerUnreachableError:
        return WorkerUnreachableError(self._worker_id, f"the answer broke off: {error}")


class EngineClient:
    """Connections to all engines, pooled by address. Of one event loop."""

    def __init__(self, settings: EngineHttpSettings, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: for https:// engines; without one certificates are verified against the system's authorities."""
        self._settings = settings
        self._pools = Pools(settings, tls)

    @property
    def num_connections(self) -> int:
        """Connections that are open, in use or idle."""
        return self._pools.num_open

    async def post(self, worker: WorkerState, route: str, body: Body, headers: Mapping[str, str]) -> EngineReply:
        """POST and read the whole answer. Raises WorkerUnreachableError, and WorkerFailedError for one too large."""
        stream = await self.open(worker, route, body, headers)
        pieces: list[bytes] = []
        room_bytes = self._settings.max_reply_bytes

        def keep(piece: bytes) -> None:
            nonlocal room_bytes
            room_bytes -= len(piece)
            if room_bytes < 0:
                raise WorkerFailedError(worker.spec.id, f"more than {self._settings.max_reply_bytes} bytes of answer")
            pieces.append(piece)

        try:
            await stream.relay(keep)
        finally:
            stream.close()
        return EngineReply(stream.status, stream.headers, b"".join(pieces))

    async def open(self, worker: WorkerState, route: str, body: Body, headers: Mapping[str, str]) -> EngineStream:
        """POST and hand out the answer as soon as its head is there. Raises WorkerUnreachableError."""
        spec = worker.spec
        try:
            pool = self._pools.get(spec.address)
            request = _request(pool.start(route, spec.rank), headers, body)
            connection = pool.take()
            while True:
                if connection is None:
                    connection = await pool.connect()
                exchange = connection.send(request, self._settings.max_head_bytes)
                try:
                    await exchange.head()
                    return EngineStream(spec.id, exchange)
                except StaleConnectionError:
                    connection = None  # invariant 1: a new one is never stale
        except (ExchangeError, OSError, TimeoutError, ValueError) as error:
            raise WorkerUnreachableError(spec.id, f"no answer from {spec.address}: {error!r}") from error

    async def close(self) -> None:
        """Close all connections."""
        self._pools.close()
        await asyncio.sleep(0)  # in which the event loop lets go of them


def _request(start: str, headers: Mapping[str, str], body: Body) -> list[bytes]:
    """A request in parts; `start` is its first line and what never changes. Raises ValueError for a split header."""
    parts = (body,) if isinstance(body, bytes) else body
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not fields.count("\r") == fields.count("\n") == len(headers) or "\0" in fields:
        raise ValueError("a header that holds a line break or a NUL")
    size_bytes = sum(map(len, parts))
    return [f"{start}{fields}content-length: {size_bytes}\r\n\r\n".encode("latin-1", "replace"), *parts]
