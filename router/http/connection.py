"""One client's connection: bytes to requests, requests to the handler, one at a time, answers in order.

Invariants
 1. At most one request is served. Later ones wait as bytes; over `max_pipelined_bytes` of them reading stops.
 2. The client's end is noticed at every stage, and cancels the handler. Reading goes on while a request is served;
    where it has stopped, or has met the end of input, `presence.py` finds out.
 3. A client that has only finished sending gets its answer. What is sent to find out whether it has gone is a
    `100 Continue` (RFC 9110 section 15.2: a client takes any number of them). In HTTP/1.0 and after the answer's first
    byte the answer's next bytes do the same, no sooner. Over TLS the end of input is the end.
 4. After an error no more is read as a request. The refusal is sent, input is thrown away for `linger_s` so that no
    reset overtakes it (RFC 9112 section 9.6), then the connection is closed.
 5. Bytes for a client that takes none are bounded: its flow is paused at `write_buffer_bytes`, no new request begins
    until the client has caught up, and `write_timeout_s` without progress cuts it off.
"""

import asyncio
import logging
import math
import socket
import struct
from enum import Enum
from typing import cast

from router.errors import ApiError, bad_request, internal
from router.http.message import HttpRequest
from router.http.presence import Presence
from router.http.reader import RequestReader
from router.http.reply import Reply
from router.http.shared import Shared
from router.interfaces import Flow

_log = logging.getLogger(__name__)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class _Stage(Enum):
    IDLE = "no byte of a request"
    HEAD = "part of a head"
    BODY = "a head, part of its body"
    SERVING = "the handler works"
    CLOSING = "nothing is read as a request any more"


_IDLE, _HEAD, _BODY, _SERVING, _CLOSING = _Stage


class Connection(asyncio.Protocol):
    """Protocol of one accepted socket."""

    __slots__ = (
        "_began_at_s", "_buffered_bytes", "_flow", "_has_tls", "_is_excess", "_is_reading", "_keep_open", "_met_eof",
        "_peer", "_presence", "_reader", "_reply", "_request", "_shared", "_stage", "_stalled_bytes", "_transport",
        "deadline_s", "task",
    )  # fmt: skip

    def __init__(self, shared: Shared, *, has_tls: bool) -> None:
        self._shared = shared
        self._has_tls = has_tls
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(shared.settings, shared.max_body_bytes)
        self._stage = _IDLE
        self._request: HttpRequest | None = None
        self._reply: Reply | None = None
        self._flow: Flow | None = None
        self._presence: Presence | None = None
        self._is_reading = True
        self._met_eof = False
        self._is_excess = False
        self._keep_open = True
        self._stalled_bytes: int | None = None  # unsent when progress was last looked for; None: the client keeps up
        self._buffered_bytes = 0
        self._began_at_s = 0.0
        self._peer = ""
        self.deadline_s = math.inf
        self.task: asyncio.Task[None] | None = None

    # What uvloop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        shared = self._shared
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=shared.settings.write_buffer_bytes)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        shared.members.add(self)
        shared.counters.connections += 1
        self._is_excess = len(shared.members) > shared.settings.max_connections
        self.deadline_s = shared.now_s + shared.settings.keep_alive_s
        if shared.is_draining:
            self._end()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._stage is _CLOSING:
            return
        if self.task is None and self._stalled_bytes is None:
            self._advance(data)
            return
        self._reader.hold(data)
        if self._is_reading and self._reader.num_held_bytes > self._shared.settings.max_pipelined_bytes:
            assert self._transport is not None
            self._transport.pause_reading()
            self._is_reading = False
            self._watch()

    def eof_received(self) -> bool:
        """The client sends no more. True: it may still get its answer (invariant 3)."""
        self._met_eof = True
        if self._stage is not _CLOSING and not self._has_tls:
            if self.task is not None:
                self._watch()
                return True
            if self._stalled_bytes is not None and self._reader.num_held_bytes:
                return True
        self._stage = _CLOSING
        return False

    def connection_lost(self, _: Exception | None) -> None:
        """The client has gone, or we have closed."""
        self._transport = None
        self._stage = _CLOSING
        self.deadline_s = math.inf
        self._flow = None
        if self._presence is not None:
            self._presence.stop()
        self._release()
        self._shared.leave(self)
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        assert self._transport is not None
        self._stalled_bytes = self._transport.get_write_buffer_size()
        if self._stage is not _CLOSING:
            self.deadline_s = self._shared.now_s + self._shared.settings.write_timeout_s
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._stalled_bytes = None
        if self._stage is _CLOSING:
            return
        if self.task is not None:
            self.deadline_s = math.inf
            if self._flow is not None:
                self._flow.resume()
        else:
            self.deadline_s = self._shared.now_s + self._shared.settings.keep_alive_s
            self._advance(b"")

    # What the server tells.

    def expire(self) -> None:
        """The deadline has passed."""
        transport = self._transport
        if transport is None:
            return
        if self._stage is _CLOSING:
            self.abort()
        elif self._stalled_bytes is not None:
            unsent = transport.get_write_buffer_size()
            if unsent < self._stalled_bytes:
                self._stalled_bytes = unsent
                self.deadline_s = self._shared.now_s + self._shared.settings.write_timeout_s
            else:
                self._shared.counters.stalled += 1
                self.abort()
        elif self._stage is _IDLE:
            self._end()
        else:
            late = "head (router.http.head_timeout_s)"
            if self._stage is _BODY:
                late = "body (router.http.body_timeout_s, min_body_bytes_per_s)"
            message = f"the rest of the request's {late} did not come in time"
            self._refuse(bad_request(message, code="request_timeout", status=408))

    def drain(self) -> None:
        """Take no more requests; close, if there is none."""
        if self._transport is not None and self._stage is _IDLE and not self._reader.num_held_bytes:
            self._end()

    def abort(self) -> None:
        """Break the connection now."""
        self._stage = _CLOSING
        if self._transport is not None:
            self._transport.abort()

    # What an answer asks for: `reply.Link`.

    @property
    def date_line(self) -> str:
        """`date: ...`, as a header line."""
        return self._shared.date_line

    def keeps_open(self) -> bool:
        """Whether another request may follow."""
        return not (self._shared.is_draining or self._is_excess or (self._met_eof and not self._reader.num_held_bytes))

    def transmit(self, data: bytes) -> None:
        """Send bytes; nothing, if the client has gone."""
        if self._transport is not None and self._stage is not _CLOSING:
            self._transport.write(data)

    def answered(self, *, keep_open: bool) -> None:
        """The answer is complete."""
        self._keep_open = keep_open

    def cut(self) -> None:
        """Break the connection behind what was sent. Where its end would read as the answer's end, reset it."""
        transport = self._transport
        if transport is None or self._stage is _CLOSING:
            return
        self._stage = _CLOSING
        if self._request is not None and not self._request.is_http_11:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            transport.abort()
        else:
            self.deadline_s = self._shared.now_s + self._shared.settings.linger_s
            transport.close()

    def attach_flow(self, flow: Flow | None) -> None:
        """Whom to pause while the client takes no more."""
        self._flow = flow
        if flow is not None and self._stalled_bytes is not None:
            flow.pause()

    # One request after the other.

    def _advance(self, data: bytes) -> None:
        """Read on, until a request is served or more bytes are needed."""
        shared, reader = self._shared, self._reader
        while True:
            try:
                request = reader.feed(data)
            except ApiError as error:
                shared.counters.refused += 1
                self._refuse(error)
                return
            if request is None:
                self._await_more()
                return
            shared.counters.requests += 1
            request.peer = self._peer
            reply = Reply(request, self)
            self._request = request
            overload = None
            if (shared.is_strained or self._is_excess) and self._stage is not _BODY:  # else it was let in before
                overload = shared.why_shed(request.path, is_excess=self._is_excess)
            if overload is None:
                self._serve(request, reply)
                return
            _send_error(reply, overload)
            self._release()
            if not self._goes_on() or self._stalled_bytes is not None:
                return
            data = b""

    def _await_more(self) -> None:
        """Set the deadline for what is missing."""
        shared, settings, reader = self._shared, self._shared.settings, self._reader
        self._read_again()
        if self._met_eof:
            self._close()
        elif reader.request is None:
            if self._stage is _IDLE and reader.is_in_request:
                self._stage = _HEAD
                self.deadline_s = shared.now_s + settings.head_timeout_s
        else:
            if self._stage is not _BODY and not self._begin_body():
                return
            num_bytes = reader.num_body_bytes
            shared.num_buffered_bytes += num_bytes - self._buffered_bytes
            self._buffered_bytes = num_bytes
            self.deadline_s = self._began_at_s + settings.body_timeout_s + num_bytes / settings.min_body_bytes_per_s
            if shared.num_buffered_bytes > settings.max_buffered_bytes:
                self._refuse(shared.shed("too much of requests is under way (router.http.max_buffered_bytes)"))

    def _begin_body(self) -> bool:
        """A head is there, its body is not. False: it will not be read."""
        request = self._reader.request
        assert request is not None
        overload = self._shared.why_shed(request.path, is_excess=self._is_excess)
        if overload is not None:
            self._refuse(overload)
            return False
        self._stage = _BODY
        self._began_at_s = self._shared.now_s
        if self._reader.expects_continue and not self._reader.num_body_bytes:
            self.transmit(_CONTINUE)
        return True

    def _serve(self, request: HttpRequest, reply: Reply) -> None:
        self._stage = _SERVING
        self.deadline_s = math.inf
        self._reply = reply
        self.task = self._shared.loop.create_task(self._run(request, reply))
        if not self._is_reading:
            self._read_again()

    async def _run(self, request: HttpRequest, reply: Reply) -> None:
        try:
            await self._shared.handler(request, reply)
        except Exception:
            _log.exception("%s %s failed", request.method, request.path[:200])
            if not reply.started:
                _send_error(reply, internal())
        finally:
            self.task = self._reply = self._flow = None
            if self._buffered_bytes:
                self._release()
            if self._transport is not None:
                if not reply.finished:
                    reply.cut()
                elif self._goes_on() and self._stalled_bytes is None and (self._met_eof or self._reader.num_held_bytes):
                    self._advance(b"")

    def _goes_on(self) -> bool:
        """After an answer: whether another request may follow. Else the connection is closing."""
        if self._stage is _CLOSING:
            return False
        shared = self._shared
        if not self._keep_open or shared.is_draining:
            self._close()
            return False
        self._stage = _IDLE
        self._request = None
        if self._stalled_bytes is None:
            self.deadline_s = shared.now_s + shared.settings.keep_alive_s
        return True

    def _end(self) -> None:
        """Close an idle connection."""
        self._stage = _CLOSING
        if self._transport is not None:
            self._transport.close()

    def _close(self) -> None:
        """Close behind what was sent. Input that nobody reads would reset the connection: it is read, for a while."""
        transport = self._transport
        assert transport is not None
        asked = self._request is not None and not self._request.keep_alive
        self._stage = _CLOSING
        self.deadline_s = self._shared.now_s + self._shared.settings.linger_s
        if self._met_eof or not transport.can_write_eof() or (asked and not self._reader.num_held_bytes):
            transport.close()
        else:
            transport.write_eof()
            self._read_again()

    def _refuse(self, error: ApiError) -> None:
        """Invariant 4."""
        self._release()
        reply = Reply(None, self)
        _send_error(reply, error)
        self._request = None
        self._close()

    def _release(self) -> None:
        self._shared.num_buffered_bytes -= self._buffered_bytes
        self._buffered_bytes = 0

    def _read_again(self) -> None:
        if self._is_reading or self._transport is None:
            return
        limit = self._shared.settings.max_pipelined_bytes
        if self._stage is _CLOSING or self._reader.num_held_bytes <= limit:
            self._is_reading = True
            self._transport.resume_reading()
            if self._presence is not None and not self._met_eof:
                self._presence.stop()
                self._presence = None

    # Whether the client is still there.

    def _watch(self) -> None:
        """Invariant 2."""
        if self._presence is None and self._transport is not None:
            self._presence = Presence(self._transport, self._probe, self.abort)

    def _probe(self) -> None:
        """Invariant 3."""
        request, reply = self._request, self._reply
        if request is not None and request.is_http_11 and reply is not None and not reply.started:
            self.transmit(_CONTINUE)


def _send_error(reply: Reply, error: ApiError) -> None:
    reply.send(error.status, {"content-type": "application/json", **error.headers()}, error.body())
