"""One connection to one engine, and the exchange that it carries.

Invariants
 1. A connection carries one exchange at a time. It is handed to the next only when the answer was whole, the engine
    keeps the connection, and all of the request has been sent; in every other case it is closed.
 2. A connection that carries none is closed by any byte and by the end of the engine's side.
 3. An exchange ends once: whole, or with an error. From then on it does not touch the connection.
 4. Pieces go to the reader of an answer in the call in which they arrive; before it has asked for them they are kept,
    and beyond `_EARLY_BYTES` the engine's socket is not read.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from workers.engine_http.response import MalformedResponseError, ResponseReader

_EARLY_BYTES = 256 << 10


class ExchangeError(Exception):
    """There will be no whole answer; the message says why."""


class StaleConnectionError(ExchangeError):
    """A connection that had been used before ended without a byte of the answer: the engine had given it up."""


class Exchange:
    """One request and its answer."""

    __slots__ = ("_connection", "_early", "_error", "_is_relaying", "_loop", "_waiter", "reader")

    def __init__(self, connection: "Connection", max_head_bytes: int) -> None:
        self._loop = connection.loop
        self._early: list[bytes] = []
        self.reader = ResponseReader(self._early.append, max_head_bytes)
        self._connection: Connection | None = connection
        self._error: Exception | None = None
        self._is_relaying = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_ended(self) -> bool:
        """The answer was whole, and all of it has been given out."""
        return self.reader.is_complete and not self._early and self._error is None

    async def head(self) -> None:
        """Wait for status and headers; raises ExchangeError. Whoever is cancelled here has closed the exchange."""
        try:
            while not self.reader.has_head:
                await self._change()
                self._check()
        except BaseException:
            self.close()
            raise

    async def first_chunk(self) -> bytes:
        """Wait for the first bytes of the body and give them out, b"" where there are none; raises ExchangeError."""
        early = self._early
        while not early and not self.reader.is_complete:
            await self._change()
            self._check()
        chunk = early[0] if len(early) == 1 else b"".join(early)
        early.clear()
        self.resume()
        return chunk

    async def relay(self, write: Callable[[bytes], object]) -> None:
        """Have `write` called with every piece from here on; returns at the end. Raises ExchangeError."""
        for piece in self._early:
            write(piece)
        self._early.clear()
        self.reader.deliver = write
        self._is_relaying = True
        self.resume()
        while not self.reader.is_complete:
            await self._change()
            self._check()
        self._check()  # bytes may have come after the end

    def pause(self) -> None:
        """Read no more from the engine's socket."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume_reading()

    def close(self) -> None:
        """Give up what has not come yet: the engine sees its connection end."""
        if self._connection is not None:
            self.fail(ExchangeError("it was closed here"))

    def receive(self, data: bytes) -> None:
        """Bytes from the engine."""
        reader = self.reader
        try:
            reader.feed(data)
        except MalformedResponseError as error:
            self.fail(ExchangeError(f"it is no HTTP: {error}"))
        except Exception as error:  # of whoever is written to
            self.fail(error)
        else:
            if reader.is_complete:
                self._end(reader.keeps_alive)
            elif not self._is_relaying:
                self._wake()
                if sum(map(len, self._early)) > _EARLY_BYTES:
                    self.pause()

    def receive_eof(self) -> None:
        """The engine sends no more."""
        try:
            self.reader.feed_eof()
        except MalformedResponseError as error:
            self.fail(ExchangeError(str(error)))
        else:
            self._end(False)

    def fail(self, error: Exception) -> None:
        """End without a whole answer, and close the connection."""
        if self._connection is not None:
            self._error = error
            self._end(False)

    def _end(self, keep: bool) -> None:
        connection, self._connection = self._connection, None
        self.reader.release()
        self._wake()
        if connection is not None:
            connection.on_exchange_over(keep)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _change(self) -> "asyncio.Future[None]":
        """Ends with the next change; raises what has ended the exchange already."""
        self._check()
        self._waiter = self._loop.create_future()
        return self._waiter

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Connection(asyncio.Protocol):
    """A connection. `on_idle` is called when it can take another request, `on_closed` once when it is gone."""

    def __init__(self, on_idle: "Callable[[Connection], None]", on_closed: "Callable[[Connection], None]") -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self.loop = asyncio.get_running_loop()  # kept: asking for it is a system call
        self._transport: asyncio.Transport | None = None
        self._was_used = False
        self._is_paused = False
        self.exchange: Exchange | None = None
        self.was_touched = True  # since the last look at how long it has been silent
        self.silent_since_s = 0.0

    @property
    def is_open(self) -> bool:
        """Neither side has ended it."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_silent(self) -> bool:
        """Nothing has come since the last call, though something might have."""
        was_touched, self.was_touched = self.was_touched or self._is_paused, False
        return not was_touched

    def send(self, parts: Sequence[bytes], max_head_bytes: int) -> Exchange:
        """Send a request, in parts."""
        assert self._transport is not None
        assert self.exchange is None, "invariant 1"
        self.was_touched = True
        exchange = self.exchange = Exchange(self, max_head_bytes)
        self._transport.writelines(parts)
        return exchange

    def close(self) -> None:
        """Close it at once, whatever it carries."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        if not self._is_paused and self.is_open:
            assert self._transport is not None
            self._transport.pause_reading()
            self._is_paused = True

    def resume_reading(self) -> None:
        """Take it again."""
        if self._is_paused and self.is_open:
            assert self._transport is not None
            self._transport.resume_reading()
            self._is_paused = False
            self.was_touched = True

    def on_exchange_over(self, keep: bool) -> None:
        """Called by the exchange, when it ends."""
        self.exchange = None
        transport = self._transport
        assert transport is not None
        if keep and not transport.is_closing() and not transport.get_write_buffer_size():
            self.resume_reading()
            self._was_used = True
            self.was_touched = True
            self._on_idle(self)
        else:
            transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self.was_touched = True
        if self.exchange is not None:
            self.exchange.receive(data)
        else:
            self.close()  # invariant 2

    def eof_received(self) -> None:
        """Called by the event loop; returning nothing closes the connection."""
        if self.exchange is not None:
            if self._is_unanswered(self.exchange):
                self.exchange.fail(StaleConnectionError("the engine had closed the connection"))
            else:
                self.exchange.receive_eof()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        if self.exchange is not None:
            stale = self._is_unanswered(self.exchange)
            kind = StaleConnectionError if stale else ExchangeError
            self.exchange.fail(kind(f"the connection was lost: {error!r}"))
        self._on_closed(self)

    def _is_unanswered(self, exchange: Exchange) -> bool:
        return self._was_used and not exchange.reader.has_begun
