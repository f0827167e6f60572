"""The client's side of one answer: status, headers and body, framed for its HTTP version.

Invariants
 1. The head leaves with the first bytes of the body, in one write.
 2. What the client reads as the end of the answer is sent by `finish` and `send` alone. An answer that cannot be
    finished is cut.
 3. A body that does not have the announced length is cut: the next answer must not be read as part of it.
 4. After the client has gone every call is harmless.
"""

import http
from collections.abc import Mapping
from typing import Protocol

from router.http.message import HttpRequest
from router.interfaces import Flow

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in http.HTTPStatus if status.value >= 200
}
_SIZES = tuple(b"%x\r\n" % size for size in range(4096))
# Written here and by nobody else. RFC 9110 sections 6.6.1 and 7.6.1, RFC 9112 section 6.
_CONNECTION_HEADERS = ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
_OURS = frozenset((*_CONNECTION_HEADERS, "content-length", "date"))
_COPIED_BYTES = 32_768  # pieces up to this size are joined with their framing: cheaper than a second buffer

# How the end of a body is told.
_NO_BODY, _LENGTH, _CHUNKED, _CLOSE = range(4)


class Link(Protocol):
    """What an answer needs of its connection."""

    @property
    def date_line(self) -> str:
        """`date: ...` as a header line."""
        ...

    def keeps_open(self) -> bool:
        """Whether the connection may serve another request after this one."""
        ...

    def transmit(self, data: bytes) -> None:
        """Send bytes; nothing, if the client has gone."""
        ...

    def answered(self, *, keep_open: bool) -> None:
        """The answer is complete."""
        ...

    def cut(self) -> None:
        """Break the connection now."""
        ...

    def attach_flow(self, flow: Flow | None) -> None:
        """Whom to pause while the client takes no more."""
        ...


class Reply:
    """One answer. Nothing here waits."""

    __slots__ = (
        "_framing", "_head", "_is_head", "_is_http_11", "_keep_alive", "_link", "_remaining",
        "extra_headers", "finished", "started",
    )  # fmt: skip

    def __init__(self, request: HttpRequest | None, link: Link) -> None:
        """`request` None: what was asked could not be read; the connection ends with this answer."""
        self._link = link
        self._is_http_11 = request is None or request.is_http_11
        self._is_head = request is not None and request.method == "HEAD"
        self._keep_alive = request is not None and request.keep_alive
        self._head = b""  # until it is sent
        self._framing = _NO_BODY
        self._remaining = 0  # of the announced length
        self.started = False  # the status is decided
        self.finished = False  # the answer is complete, or cut
        self.extra_headers: Mapping[str, str] | None = None  # added to those of `start`

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin the answer. Content-Length is kept; without it the body is chunked, or ends the connection in 1.0.

        Headers about the connection are left out. Raises ValueError for one that would not be one header.
        """
        self._start(status, headers, None)

    def write(self, chunk: bytes) -> None:
        """Send bytes of the body at once. Never waits."""
        if self._framing != _CHUNKED:
            self._write_plain(chunk)
            return
        size = len(chunk)
        if size == 0 or self.finished:
            return
        size_line = _SIZES[size] if size < 4096 else b"%x\r\n" % size
        if size <= _COPIED_BYTES:
            self._link.transmit(b"".join((self._head, size_line, chunk, b"\r\n")))
        else:
            self._link.transmit(self._head + size_line)
            self._link.transmit(chunk)
            self._link.transmit(b"\r\n")
        self._head = b""

    def finish(self) -> None:
        """The answer is complete. Cuts, if less was written than was announced."""
        if self.finished:
            return
        if self._framing == _LENGTH and self._remaining > 0:
            self.cut()
            return
        self.finished = True
        last = self._head + b"0\r\n\r\n" if self._framing == _CHUNKED else self._head
        self._head = b""
        if last:
            self._link.transmit(last)
        self._link.answered(keep_open=self._keep_alive)

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """An answer in one piece, with its Content-Length."""
        self._start(status, headers, len(body))
        self.finished = True
        self._link.transmit(self._head + body if self._framing == _LENGTH else self._head)
        self._head = b""
        self._link.answered(keep_open=self._keep_alive)

    def cut(self) -> None:
        """Break the connection: the truthful end of an answer that broke off."""
        self.finished = True
        self._head = b""
        self._link.cut()

    def attach_flow(self, flow: Flow | None) -> None:
        """Whom to pause while the client takes no more; None: nobody any more."""
        self._link.attach_flow(flow)

    def _start(self, status: int, headers: Mapping[str, str], length: int | None) -> None:
        if self.started:
            raise RuntimeError("an answer starts once")
        text = _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n"
        num_lines = 1
        for given in (headers,) if self.extra_headers is None else (headers, self.extra_headers):
            for name, value in given.items():
                lower = name.lower()
                if lower in _OURS:
                    if lower == "content-length" and length is None:
                        length = int(value)
                    continue
                text += f"{name}: {value}\r\n"
                num_lines += 1
        if text.count("\r") != num_lines or text.count("\n") != num_lines:
            raise ValueError("a header holds a line break")
        self._head = f"{text}{self._link.date_line}{self._frame(status, length)}\r\n".encode("latin-1")
        self.started = True

    def _frame(self, status: int, length: int | None) -> str:
        """Choose how the end of the body is told; the headers that say so. RFC 9112 section 6.3."""
        keep_alive = self._keep_alive and self._link.keeps_open()
        framing = ""
        if status in (204, 304):
            self._framing = _NO_BODY
        elif length is not None:
            framing = f"content-length: {length}\r\n"
            self._framing, self._remaining = _LENGTH, length
        elif self._is_http_11:
            framing = "transfer-encoding: chunked\r\n"
            self._framing = _CHUNKED
        else:
            self._framing, keep_alive = _CLOSE, False
        if self._is_head:
            self._framing = _NO_BODY
        self._keep_alive = keep_alive
        if keep_alive:
            return framing if self._is_http_11 else f"{framing}connection: keep-alive\r\n"
        return f"{framing}connection: close\r\n"

    def _write_plain(self, chunk: bytes) -> None:
        if self.finished or self._framing == _NO_BODY:
            return
        if self._framing == _LENGTH:
            self._remaining -= len(chunk)
            if self._remaining < 0:
                self.cut()
                return
        if len(chunk) <= _COPIED_BYTES:
            self._link.transmit(self._head + chunk)
        else:
            if self._head:
                self._link.transmit(self._head)
            self._link.transmit(chunk)
        self._head = b""
