"""What an engine says a request used, read from its answer without decoding the answer. Pure.

An engine tells it in the last event of a stream, if it was asked to (`stream_options.include_usage`), and at the end of
an answer in one piece. The router asks for it always, takes the event out again where the client did not ask, and
passes every other byte on unchanged (architecture law 8). Source: vLLM 0.32, entrypoints/openai/*/serving.py: one
event whose `choices` is empty, before `data: [DONE]`.

Inside JSON a quote in a text is escaped, so the byte patterns below cannot come from a completion.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from router.types import Usage

_USAGE = b'"usage":{'
_USAGE_EVENT = b'"choices":[]'
_END_OF_EVENT = b"\n\n"
_LAST_EVENT = b"data: [DONE]\n\n"
_TAIL_BYTES = 4096  # of an answer in one piece; its usage is behind the choices
_LONGEST_EVENT_BYTES = 1 << 20  # held back at most; a longer event is passed on as it comes


def asks_for_usage(fields: Mapping[str, Any]) -> bool:
    """Whether the client wants the usage event of its stream itself."""
    options = fields.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def with_usage(raw_body: bytes, fields: Mapping[str, Any]) -> bytes:
    """The body of a stream request that does not ask for usage, asking for it. Other bytes stay where that is possible.

    `stream_options` that are there and no object are left alone: the engine will word the error.
    """
    options = fields.get("stream_options")
    if options is None and "stream_options" not in fields:
        start = raw_body.index(b"{") + 1
        return b"".join((raw_body[:start], b'"stream_options":{"include_usage":true},', raw_body[start:]))
    if options is None or isinstance(options, dict):
        return msgspec.json.encode({**fields, "stream_options": {**(options or {}), "include_usage": True}})
    return raw_body


class StreamTap:
    """Reads the usage event of one stream as its bytes go by.

    Invariant: the output is the input without the usage event (`strip`), or all of it; only an event that has not
    arrived completely is held back, and `flush` gives it out.
    """

    def __init__(self, *, strip: bool) -> None:
        self._strip = strip
        self._held = b""
        self._latest = b""
        self.usage: Usage | None = None

    @property
    def is_complete(self) -> bool:
        """The client has been given the last event."""
        return not self._held and self._latest.endswith(_LAST_EVENT)

    def feed(self, chunk: bytes) -> bytes:
        """Bytes from the engine; returns those for the client, possibly none."""
        self._latest = chunk or self._latest
        if not self._held and chunk.endswith(_END_OF_EVENT) and _USAGE_EVENT not in chunk:
            return chunk
        data = self._held + chunk
        complete, separator, self._held = data.rpartition(_END_OF_EVENT)
        self._latest = complete + separator or self._latest
        if len(self._held) > _LONGEST_EVENT_BYTES:
            self._held, held = b"", self._held
            return complete + separator + held
        if not separator or _USAGE_EVENT not in complete:
            return complete + separator
        return b"".join(event + _END_OF_EVENT for event in complete.split(_END_OF_EVENT) if not self._takes_out(event))

    def flush(self) -> bytes:
        """The stream has ended: what was held back."""
        held, self._held = self._held, b""
        return held

    def _takes_out(self, event: bytes) -> bool:
        if _USAGE_EVENT not in event:
            return False
        usage = find_usage(event)
        if usage is None:
            return False
        self.usage = usage
        return self._strip


class UnaryTap:
    """Reads the usage at the end of an answer in one piece; passes every byte on."""

    is_complete = False  # its length tells, not its text

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, chunk: bytes) -> bytes:
        """Bytes from the engine, unchanged."""
        self._tail = (self._tail + chunk)[-_TAIL_BYTES:] if len(chunk) < _TAIL_BYTES else chunk[-_TAIL_BYTES:]
        return chunk

    def flush(self) -> bytes:
        """Nothing is ever held back."""
        return b""

    @property
    def usage(self) -> Usage | None:
        """What was found, once the answer is complete."""
        return find_usage(self._tail)


def find_usage(data: bytes) -> Usage | None:
    """The last usage object in a piece of JSON, or None."""
    start = data.rfind(_USAGE)
    if start < 0:
        return None
    start += len(_USAGE) - 1
    end = start
    while end := data.find(b"}", end) + 1:
        if data.count(b"{", start, end) == data.count(b"}", start, end):
            return _parse(data[start:end])
    return None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """Of completions; `input` and `output` are the words of /v1/responses and /v1/messages, `total` of poolers."""

    prompt_tokens: int | None = None
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int = 0
    input_tokens_details: _Details | None = None
    total_tokens: int = 0


_DECODER = msgspec.json.Decoder(_Usage)


def _parse(data: bytes) -> Usage | None:
    try:
        usage = _DECODER.decode(data)
    except msgspec.DecodeError:
        return None
    if usage.prompt_tokens is None and usage.input_tokens is None and not usage.total_tokens:
        return None
    details = usage.prompt_tokens_details or usage.input_tokens_details
    prompt_tokens = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    output_tokens = usage.completion_tokens or usage.output_tokens
    if prompt_tokens is None:
        prompt_tokens = usage.total_tokens - output_tokens
    return Usage(prompt_tokens, details.cached_tokens if details else None, output_tokens)
