"""One attempt against an engine that sends exactly what it is told."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from kvstore.types import RequestId
from router.dispatch import Dispatcher, EngineCall, Outcome
from router.events import Event, FirstToken
from router.interfaces import Flow
from router.tracing import NoTracing
from router.types import Forecast, RoutingDecision, Usage
from tests.raw_upstream import HEADERS, ROUTE, Line, chunked, eventually, line, run, says

PROMPT = b'{"prompt":"p"}'
TEXT = b'data: {"choices":[{"text":"a"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Client:
    """Takes everything."""

    got: bytes = b""
    started: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        self.headers = headers

    def write(self, chunk: bytes) -> None:
        self.got += chunk

    def attach_flow(self, flow: Flow | None) -> None:
        return None

    def ask(self, at: Line, *, strips_usage: bool = True) -> "asyncio.Task[Outcome]":
        """One streamed request."""
        decision = RoutingDecision(RequestId("r1"), 1, at.worker, None, Forecast(0, 0, 0, 0, 0, 0, 0, 0))
        self.call = call = EngineCall(
            RequestId("r1"), ROUTE, PROMPT, {"prompt": "p"}, True, True, strips_usage, HEADERS
        )
        trace = NoTracing().request("test", {})
        attempt = Dispatcher(at.client).run(decision, call, self, self.events.append, trace, {})
        return asyncio.create_task(attempt)


def test_a_client_that_closes_once_it_has_the_last_event_has_its_answer() -> None:
    async def test() -> None:
        async with line(says(chunked(TEXT, USAGE, DONE, last=b""), then="wait")) as at:
            client = Client()
            attempt = client.ask(at)
            await eventually(lambda: client.got == TEXT + DONE)
            attempt.cancel()
            assert await attempt == Outcome(200, Usage(9, None, 4))
            assert client.events == [FirstToken(RequestId("r1"), 1)]
            await at.closed()

    run(test())


def test_a_client_that_closes_before_has_not() -> None:
    async def test() -> None:
        async with line(says(chunked(TEXT, USAGE, DONE[:-1], last=b""), then="wait")) as at:
            client = Client()
            attempt = client.ask(at)
            await eventually(lambda: client.got == TEXT)
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            await at.closed()

    run(test())


@pytest.mark.parametrize("strips_usage", [True, False])
def test_the_answers_length_is_passed_on_where_nothing_is_taken_out(strips_usage: bool) -> None:
    async def test() -> None:
        body = TEXT + USAGE + DONE
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
        async with line(says(head + body)) as at:
            client = Client()
            assert await client.ask(at, strips_usage=strips_usage) == Outcome(200, Usage(9, None, 4))
            assert client.got == (TEXT + DONE if strips_usage else body)
            assert client.headers.get("content-length") == (None if strips_usage else str(len(body)))

    run(test())


def test_a_stream_that_lasts_does_not_hold_its_prompt() -> None:
    async def test() -> None:
        async with line(says(chunked(TEXT, last=b""), then="wait")) as at:
            client = Client()
            attempt = client.ask(at)
            assert client.call.raw_body == PROMPT
            await eventually(lambda: client.got == TEXT)
            assert (client.call.raw_body, client.call.fields) == (b"", {})
            attempt.cancel()
            await asyncio.wait([attempt])

    run(test())
