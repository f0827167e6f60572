"""Engines that cost next to nothing: uvloop, httptools, answers made beforehand. Every contender relays to these.

    python -m tests.bench.data_plane.engine PORT:ROLE ...     one process; prints "ready"

Their HTTP is vLLM's as far as routers look at it. Which prompt it is says the field `user` (prompts.py), or `stop`
where a router drops that: the tokens of the prompt, and how many of them each engine has cached. Nothing here reads a
prompt. `idle` streams send their head and one event and then nothing, until their client goes away.

Other streams have 64 events. `paced` ones get an event every STEP_S, all in the same step as in a real engine's batch;
the rest get theirs in successive turns of the event loop, so that they reach the router in separate segments. Every
eighth event carries the time it was written at, for the client to tell how long it took.
"""

import asyncio
import json
import sys
import time
from typing import cast

import httptools
import uvloop

from tests.bench.data_plane.cases import IDLE, MODELS, PACED, STREAM_EVENTS
from workers.fake.metrics import Counters, Gauges, render_metrics
from workers.fake.openapi import model_list, openapi
from workers.fake.settings import FakeSettings

STEP_S = 0.005
STAMP_EVERY = 8
BLOCK_TOKENS = 32
_SETTINGS = FakeSettings(
    model=MODELS[0], block_size_tokens=BLOCK_TOKENS, kv_blocks=4_000_000, max_model_len_tokens=32_768
)
_HEAD_BYTES, _TAIL_BYTES = 512, 2048  # of a long body, where its small fields are
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_TEXT = "The quick brown fox jumps over the lazy dog and is not seen again."
_UNARY = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1795000000,"model":"demo","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%s","refusal":null,"annotations":null,"audio":null,"function_call":null,'
    b'"tool_calls":[],"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}],'
    b'"service_tier":null,"system_fingerprint":null,"usage":%%s,"prompt_logprobs":null,"kv_transfer_params":%%s}'
) % _TEXT.encode()
_USAGE = b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
_HANDLE = (
    b'{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2,3,4,5,6,7,8]],'
    b'"remote_engine_id":"bench-%d","remote_request_id":"chatcmpl-bench","remote_host":"127.0.0.1","remote_port":%d,'
    b'"tp_size":1,"dcp_size":1,"pp_size":1,"remote_num_tokens":%d,"remote_blocks_expiry_time":null,'
    b'"transfer_mode":"pull","remote_prefill_cached_tokens":%d}'
)
_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1795000000,"model":"demo","choices":'
    b'[{"index":0,"delta":{%s},"logprobs":null,"finish_reason":%s}]}\n\n'
)
_USAGE_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1795000000,"model":"demo","choices":[],'
    b'"usage":%s}\n\n'
)
_DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


_FIRST = chunk(_EVENT % (b'"role":"assistant","content":""', b"null"))
_TOKEN = chunk(_EVENT % (b'"content":" word"', b"null"))
_LAST = _EVENT % (b'"content":""', b'"length"')


class Stream:
    """One streamed answer, an event at a time."""

    __slots__ = ("ending", "sent", "transport")

    def __init__(self, transport: asyncio.Transport, ending: bytes) -> None:
        self.transport = transport
        self.ending = ending
        self.sent = 0
        transport.write(_STREAM_HEAD + _FIRST)

    def step(self) -> bool:
        """Write the next event; whether there are more."""
        if self.transport.is_closing():
            return False
        self.sent += 1
        if self.sent % STAMP_EVERY == 0:
            stamped = chunk(_EVENT % (b'"content":"@%d"' % time.monotonic_ns(), b"null"))
        else:
            stamped = _TOKEN
        if self.sent < STREAM_EVENTS:
            self.transport.write(stamped)
            return True
        self.transport.write(stamped + self.ending)
        return False

    def run(self) -> None:
        """One event a turn of the loop."""
        if self.step():
            asyncio.get_running_loop().call_soon(self.run)


class Ticker:
    """The step of all paced streams."""

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._is_running = False

    def add(self, stream: Stream) -> None:
        """Give it an event every STEP_S."""
        self._streams.append(stream)
        if not self._is_running:
            self._is_running = True
            asyncio.get_running_loop().call_later(STEP_S, self._tick)

    def _tick(self) -> None:
        began_s = asyncio.get_running_loop().time()
        self._streams = [stream for stream in self._streams if stream.step()]
        if self._streams:
            late_s = asyncio.get_running_loop().time() - began_s
            asyncio.get_running_loop().call_later(max(0.0, STEP_S - late_s), self._tick)
        else:
            self._is_running = False


class EngineProtocol(asyncio.Protocol):
    """One connection to an engine."""

    __slots__ = ("_body", "_index", "_parser", "_port", "_ticker", "_transport", "_url")

    def __init__(self, index: int, port: int, ticker: Ticker) -> None:
        self._index = index
        self._port = port
        self._ticker = ticker
        self._body = b""
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A router connects."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # some routers try gRPC first
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """httptools: a request begins."""
        self._url = url
        self._body = b""

    def on_body(self, body: bytes) -> None:
        """httptools."""
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """httptools: answer it."""
        if self._parser.get_method() == b"POST":
            self._generate(self._body)
        else:
            self._transport.write(_page(self._url))

    def _generate(self, body: bytes) -> None:
        small = body if len(body) < _HEAD_BYTES + _TAIL_BYTES else body[:_HEAD_BYTES] + body[-_TAIL_BYTES:]
        user = _user(small)
        prompt, cached = _counts(user, self._index)
        if b'"do_remote_decode":true' in small:
            handle = _HANDLE % (self._index, self._port, max(1, prompt), cached)
            answer = _UNARY % (_USAGE % (prompt, prompt + 1, 1, cached), handle)
            self._transport.write(_OK % len(answer) + answer)
        elif b'"stream":true' in small:
            usage = _USAGE % (prompt, prompt + STREAM_EVENTS, STREAM_EVENTS, cached)
            if self._index == 0 and b'"bootstrap_room":' in small:  # SGLang's prefill, which both calls go to at once
                self._transport.write(_STREAM_HEAD + _FIRST + chunk(_DONE) + b"0\r\n\r\n")
                return
            events = _LAST + (_USAGE_EVENT % usage if b'"include_usage":true' in small else b"") + _DONE
            stream = Stream(self._transport, chunk(events) + b"0\r\n\r\n")
            if user.endswith(PACED):
                self._ticker.add(stream)
            elif not user.endswith(IDLE):
                stream.run()
        else:
            answer = _UNARY % (_USAGE % (prompt, prompt + 16, 16, cached), b"null")
            self._transport.write(_OK % len(answer) + answer)


def _user(body: bytes) -> bytes:
    for field in (b'"user":"T', b'"stop":["T'):
        start = body.find(field) + len(field)
        if start >= len(field):
            return body[start : body.index(b'"', start)]
    return b""


def _counts(user: bytes, index: int) -> tuple[int, int]:
    """Tokens of the prompt, and those of them that engine `index` has cached."""
    if not user:
        return 1, 0
    counts = user.split(b";")[0].split(b":")
    return int(counts[0]), int(counts[1 + index])


def _page(url: bytes) -> bytes:
    if url == b"/metrics":
        body = render_metrics(_SETTINGS, Counters(), Gauges(0, 0, 0)).encode()
        kind = b"text/plain; version=1.0.0; charset=utf-8"
    else:
        body = _JSON_PAGES.get(url, b"{}")
        kind = b"application/json"
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (kind, len(body), body)


_JSON_PAGES = {
    b"/v1/models": json.dumps(model_list(_SETTINGS, 1_795_000_000)).encode(),
    b"/openapi.json": json.dumps(openapi()).encode(),
    b"/version": b'{"version":"0.32.0"}',
}
_JSON_PAGES |= dict.fromkeys((b"/get_model_info", b"/model_info"), b'{"model_path":"demo","is_generation":true}')
_JSON_PAGES |= dict.fromkeys(
    (b"/get_server_info", b"/server_info"), b'{"model_path":"demo","served_model_name":"demo","dp_size":1,"tp_size":1}'
)


async def serve(engines: list[tuple[int, int]]) -> None:
    """Listen for (port, index) until the process ends."""
    ticker, loop = Ticker(), asyncio.get_running_loop()
    for port, index in engines:
        await loop.create_server(
            lambda index=index, port=port: EngineProtocol(index, port, ticker),  # type: ignore[misc]
            "127.0.0.1",
            port,
            backlog=8192,
        )
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """`PORT:INDEX ...`"""
    engines = [(int(port), int(index)) for port, index in (each.split(":") for each in sys.argv[1:])]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(engines))


if __name__ == "__main__":
    main()
