"""Frames one answer of an engine: bytes in, pieces of the body out. Pure.

llhttp (through httptools) reads the bytes, strictly. What it lets through and we do not: transfer codings other than
`chunked`, versions other than 1.0 and 1.1, statuses below 100, a switch of protocols, heads without an end.
Source: RFC 9112, sections 4 to 7.

Invariants
 1. `is_complete` is true only when the framing says that the body is whole: its length, its last chunk, or for an
    answer with neither the end of the connection.
 2. Whatever is wrong with the bytes is a MalformedResponseError, and so is a byte after the end of the answer.
 3. How the bytes were cut on the way changes neither the body nor the verdict (a head padded to four times its limit
    aside).
"""

from collections.abc import Callable, Iterator, Mapping

from httptools import HttpParserCallbackError, HttpParserError, HttpResponseParser

_BODILESS = (204, 304)
_INTERIM_BYTES = 32  # what the status line of an interim answer counts for


class MalformedResponseError(Exception):
    """The bytes are no HTTP answer, or not one answer."""


class Headers(Mapping[str, str]):
    """Header fields by lower-case name, decoded when they are read. Of a repeated field the last counts."""

    __slots__ = ("_fields",)

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        """The value; raises KeyError."""
        return self._fields[name.encode("latin-1")].decode("latin-1")

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return (name.decode("latin-1") for name in self._fields)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._fields)

    def picked(self, names: Mapping[bytes, str]) -> dict[str, str]:
        """Those of these names that came, under the names given: `Mapping.get` raises and catches what is missing."""
        fields = self._fields
        return {name: fields[raw].decode("latin-1") for raw, name in names.items() if raw in fields}


class ResponseReader:
    """Reads one answer. `deliver` is called with each piece of the body; what it raises comes out of `feed`."""

    __slots__ = (
        "_head_bytes", "_is_delimited", "_is_interim", "_max_head_bytes", "_parser", "_unread_bytes",
        "deliver", "fields", "has_begun", "has_head", "is_complete", "keeps_alive", "status",
    )  # fmt: skip

    def __init__(self, deliver: Callable[[bytes], object], max_head_bytes: int) -> None:
        """`max_head_bytes` bounds names and values of the head, interim answers and trailers, in sum."""
        self.deliver = deliver
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        self.has_begun = False  # a byte of the answer has come
        self.has_head = False
        self.is_complete = False
        self.keeps_alive = False  # the engine will take another request on this connection
        self._is_delimited = False
        self._is_interim = False
        self._head_bytes = 0
        self._unread_bytes = 0  # that came before the head was complete
        self._max_head_bytes = max_head_bytes
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """The next bytes. Raises MalformedResponseError, and what `deliver` raises."""
        parser = self._parser
        if parser is None:
            raise MalformedResponseError("bytes after the end")
        try:
            parser.feed_data(data)
        except HttpParserCallbackError as error:
            cause = error.__context__
            raise cause if cause is not None else MalformedResponseError(str(error)) from None
        except HttpParserError as error:
            raise MalformedResponseError(str(error)) from None
        if not self.has_head:  # a field that never ends does not come by in on_header
            self._unread_bytes += len(data)
            if self._unread_bytes > 4 * self._max_head_bytes:
                raise MalformedResponseError("its head has no end")

    def feed_eof(self) -> None:
        """The engine sends no more; raises MalformedResponseError where it ought to."""
        if not self.is_complete:
            if not self.has_head:
                raise MalformedResponseError("it ends within its head")
            if self._is_delimited:
                raise MalformedResponseError("it ends before its body does")
            self.is_complete = True

    def release(self) -> None:
        """Let go of the parser, which refers back to this object."""
        self._parser = None

    def on_message_begin(self) -> None:
        """Called by the parser."""
        if self.is_complete:
            raise MalformedResponseError("bytes after the end")
        self.has_begun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for trailers too: they are counted and left out."""
        self._count(len(name) + len(value) + 4)
        if not self.has_head:
            self.fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        parser, fields = self._parser, self.fields
        assert parser is not None
        status, version = parser.get_status_code(), parser.get_http_version()
        if version not in ("1.1", "1.0") or not 100 <= status <= 599 or status == 101:
            raise MalformedResponseError(f"status {status} in HTTP/{version}")
        if status < 200:
            self._is_interim = True
            fields.clear()
            self._count(_INTERIM_BYTES)
            return
        coding = fields.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise MalformedResponseError(f"transfer coding {coding[:64]!r}")
        self.status = status
        self.has_head = True
        self._is_delimited = coding is not None or b"content-length" in fields or status in _BODILESS
        self.keeps_alive = self._is_delimited and parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
        self.deliver(piece)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._is_interim:
            self._is_interim = False
        else:
            self.is_complete = True

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > self._max_head_bytes:
            raise MalformedResponseError("its head is too large")
