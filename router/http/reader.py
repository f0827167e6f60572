"""The bytes of one connection, cut into requests. Pure.

Invariants
 1. Requests depend on the bytes alone, not on how they were cut into pieces.
 2. No byte behind a request is looked at before the next `feed`: a pipelined request waits as bytes.
 3. An ApiError is the end: where the next request would begin is not known any more.
 4. What is kept is bounded: of a head by `max_head_bytes`, of a body by `max_body_bytes`, of later requests by whoever
    calls `hold`.
"""

from router.errors import malformed_request, too_large
from router.http.chunked import ChunkedBody
from router.http.head import EarlyLook, LastLine, head_too_large, parse_head
from router.http.message import HttpRequest
from router.http.settings import HttpSettings

_END = b"\r\n\r\n"
_AROUND_TARGET_BYTES = 64  # of a request line, at most: method, version, spaces
_SPACE = 0x20


class RequestReader:
    """Reads one request after the other."""

    __slots__ = (
        "_body", "_chunked", "_held", "_last_line", "_limits", "_look", "_max_body_bytes", "_missing", "_partial",
        "expects_continue", "request",
    )  # fmt: skip

    def __init__(self, limits: HttpSettings, max_body_bytes: int) -> None:
        self._limits = limits
        self._max_body_bytes = max_body_bytes
        self._last_line = LastLine()
        self._held = b""
        self._partial = b""  # a head that is not complete
        self._look: EarlyLook | None = None
        self._missing = 0  # bytes of a body of known length
        self._body: bytearray | None = None  # of known length, in pieces
        self._chunked: ChunkedBody | None = None
        self.request: HttpRequest | None = None  # whose head is complete, and whose body is not
        self.expects_continue = False  # and its sender waits to be told to send it

    @property
    def num_held_bytes(self) -> int:
        """Bytes that wait for `feed`."""
        return len(self._held)

    @property
    def is_in_request(self) -> bool:
        """Part of a request has been read."""
        return self.request is not None or bool(self._partial)

    @property
    def num_body_bytes(self) -> int:
        """Of an incomplete body, what is there."""
        return len(self._chunked.body) if self._chunked is not None else len(self._body or b"")

    def hold(self, data: bytes) -> None:
        """Keep bytes that come while a request is served."""
        self._held += data

    def feed(self, data: bytes = b"") -> HttpRequest | None:
        """Take bytes behind those held; a request, once one is complete. Raises ApiError (invariant 3)."""
        if self._held:
            data, self._held = self._held + data, b""
        if self.request is not None:
            return self._read_body(data)
        if self._partial or not data or data[0] <= _SPACE:
            return self._read_partial(data)
        end = data.find(_END)
        if end < 0:
            self._keep_partial(data, 0)
            return None
        return self._read_request(data, end + 4)

    def _read_partial(self, data: bytes) -> HttpRequest | None:
        """As `feed`, of what does not simply begin with a request."""
        before = len(self._partial)
        if before:
            data, self._partial = self._partial + data, b""
        else:
            data = self._skip_empty_line(data)
            if not data:
                return None
        end = data.find(_END, max(0, before - 3))
        if end < 0:
            self._keep_partial(data, before)
            return None
        return self._read_request(data, end + 4)

    def _read_request(self, data: bytes, end: int) -> HttpRequest | None:
        """`data` begins with a head, up to `end`."""
        self._look = None
        request, num_body_bytes, self.expects_continue = parse_head(data[:end], self._limits, self._last_line)
        if num_body_bytes is None:
            self._chunked = ChunkedBody(self._max_body_bytes)
        elif num_body_bytes > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        elif end + num_body_bytes == len(data):  # the usual case: one request is all there is
            request.body = data[end:]
            return request
        else:
            self._missing = num_body_bytes
        self.request = request
        return self._read_body(data[end:])

    def _skip_empty_line(self, data: bytes) -> bytes:
        """One empty line before a request is tolerated: RFC 9112 section 2.2."""
        if data in (b"", b"\r", b"\r\n"):
            self._held = data
            return b""
        if data[:2] == b"\r\n":
            data = data[2:]
            if data[:1] in (b"\r", b"\n"):
                raise malformed_request("it begins with empty lines")
        elif data[:1] in (b"\r", b"\n"):
            raise malformed_request("a line ends without CRLF")
        return data

    def _keep_partial(self, data: bytes, num_looked_at: int) -> None:
        if len(data) > self._limits.max_head_bytes:
            raise head_too_large(self._limits, in_target=False)
        if len(data) > self._limits.max_target_bytes + _AROUND_TARGET_BYTES and b"\r" not in data:
            raise head_too_large(self._limits, in_target=True)
        if not _SPACE < data[0] < 0x7F:
            raise malformed_request("it does not begin with a method")
        if self._look is None:
            self._look = EarlyLook()
        self._look.feed(data[num_looked_at:])
        self._partial = data

    def _read_body(self, data: bytes) -> HttpRequest | None:
        if self._chunked is not None:
            rest = self._chunked.feed(data)
            return None if rest is None else self._complete(bytes(self._chunked.body), rest)
        missing = self._missing
        if len(data) < missing:
            self._missing -= len(data)
            if self._body is None:
                self._body = bytearray()
            self._body += data
            return None
        if self._body is None:
            return self._complete(data[:missing], data[missing:])
        self._body += data[:missing]
        return self._complete(bytes(self._body), data[missing:])

    def _complete(self, body: bytes, rest: bytes) -> HttpRequest:
        request = self.request
        assert request is not None
        self.request = self._body = self._chunked = None
        self._held = rest
        request.body = body
        return request
