"""A chunked request body, strictly read. Pure. RFC 9112 section 7.1.

Strict where readers differ, for what two readers end at different bytes smuggles a request: every line ends with CRLF,
a size is 1 to 16 hex digits with nothing around them, extensions follow the grammar, data is followed by CRLF.

Invariants
 1. `body` holds the data of all chunks so far and nothing else.
 2. Bytes that are not data are at most `_MAX_FRAMING_BYTES` more than the data: a body in tiny chunks costs time.
"""

import re

from router.errors import ApiError, malformed_request, too_large

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb"\"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*\""
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*")
_TRAILER_LINE = re.compile(_TOKEN + rb":[^\x00-\x08\x0a-\x1f\x7f]*")
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_MAX_FRAMING_BYTES = 65_536
_MAX_LINE_BYTES = 4096


class ChunkedBody:
    """Takes a body apart as it comes."""

    __slots__ = ("_in_trailer", "_max_body_bytes", "_num_framing_bytes", "_remaining", "_unread", "body")

    def __init__(self, max_body_bytes: int) -> None:
        self.body = bytearray()
        self._max_body_bytes = max_body_bytes
        self._num_framing_bytes = 0
        self._remaining = 0  # bytes of the present chunk that are still to come, its CRLF included; 0: a line is next
        self._in_trailer = False
        self._unread = b""  # an incomplete line

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; return those behind the body, or None while it goes on. Raises ApiError 400 or 413."""
        if self._unread:
            data, self._unread = self._unread + data, b""
        at = 0
        while True:
            if self._remaining:
                at = self._take_data(data, at)
                if self._remaining:
                    return None
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:])
                return None
            line = data[at:end]
            at = end + 2
            if len(line) > _MAX_LINE_BYTES:
                raise _line_too_long()
            self._count_framing(len(line) + 2)
            if not self._in_trailer:
                self._start_chunk(line)
            elif not line:
                return data[at:]
            elif not _TRAILER_LINE.fullmatch(line):
                raise malformed_request("a trailer is no header")

    def _start_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise malformed_request("a chunk begins without its size")
        size = int(match[1], 16)
        if size == 0:
            self._in_trailer = True
            return
        if len(self.body) + size > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        self._remaining = size + 2

    def _take_data(self, data: bytes, at: int) -> int:
        """Take data and the CRLF behind it; return where what follows begins."""
        num_data = self._remaining - 2
        if num_data > 0:
            piece = data[at : at + num_data]
            self.body += piece
            self._remaining -= len(piece)
            at += len(piece)
        if self._remaining <= 2:
            ending = data[at : at + self._remaining]
            if ending != b"\r\n"[2 - self._remaining :][: len(ending)]:
                raise malformed_request("a chunk is longer than its size")
            self._remaining -= len(ending)
            at += len(ending)
            if not self._remaining:
                self._count_framing(2)
        return at

    def _keep(self, line: bytes) -> None:
        if len(line) - line.endswith(b"\r") > _MAX_LINE_BYTES:
            raise _line_too_long()
        if _BARE.search(line, 0, len(line) - 1) or line.endswith(b"\n"):
            raise malformed_request("a line of a chunked body ends without CRLF")
        self._unread = line

    def _count_framing(self, num_bytes: int) -> None:
        self._num_framing_bytes += num_bytes
        if self._num_framing_bytes > _MAX_FRAMING_BYTES + len(self.body):
            raise malformed_request("a chunked body is mostly made of other things than data")


def _line_too_long() -> ApiError:
    return malformed_request("a line of a chunked body is too long")
