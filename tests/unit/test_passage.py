"""What a gateway shows of an answer becomes events and an outcome. Numbers are invariants of `passage.py`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from kvstore.types import RequestId
from router.dispatch import EngineCall, Outcome
from router.events import Event, FirstToken
from router.gateway.ext_proc import Endpoints
from router.gateway.passage import Passage
from router.interfaces import Span
from router.openai import COMPLETION_ROUTE
from router.types import Forecast, RoutingDecision, Usage
from tests.grpc_door import make_worker_at
from workers.errors import WorkerFailedError, WorkerUnreachableError

ENDPOINT = "10.0.0.1:80"
DECISION = RoutingDecision(
    RequestId("r1"), 2, make_worker_at(f"http://{ENDPOINT}"), None, Forecast(0, 0, 0, 0, 0, 0, 0, 0)
)
USAGE = b'"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":8}}}'
FIRST_TOKEN = FirstToken(RequestId("r1"), 2)


class Traced:
    """A trace whose spans have headers."""

    is_recorded = True
    trace_id = "aa"

    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def headers(self) -> Mapping[str, str]:
        return {"traceparent": "00-aa-bb-01"}

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        yield self

    def event(self, name: str) -> None:
        return None

    def ended(self, status: int, tenant: str, **attributes: str | int | float | bool) -> None:
        return None


@dataclass
class Carried:
    """A passage in the middle of an attempt."""

    passage: Passage
    events: list[Event] = field(default_factory=list)
    told: list[tuple[str, Mapping[str, str], Mapping[str, str]]] = field(default_factory=list)


def carry(test: Callable[[Carried], None], *, stream: bool = True, shows_body: bool = True) -> tuple[Carried, Outcome]:
    """Run `test` when the gateway has been told; the attempt's outcome."""

    def tell(_: RoutingDecision, endpoint: str, headers: Mapping[str, str], reply: Mapping[str, str]) -> None:
        carried.told.append((endpoint, headers, reply))
        asyncio.get_running_loop().call_soon(test, carried)

    call = EngineCall(RequestId("r1"), COMPLETION_ROUTE, b"{}", {}, stream, True, False, {})
    carried = Carried(Passage(call, Endpoints(), tell, shows_body=shows_body))

    async def run(attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
        return await asyncio.wait_for(attempt(), 10.0)

    report = carried.events.append
    return carried, asyncio.run(run(lambda: carried.passage.run(DECISION, report, Traced(), {"x-explained": "1"})))


def test_the_gateway_is_told_once_and_with_the_trace() -> None:
    def answer(it: Carried) -> None:
        assert it.passage.started
        it.passage.on_headers(200, None, is_last=True)

    carried, outcome = carry(answer)
    assert carried.told == [(ENDPOINT, {"traceparent": "00-aa-bb-01"}, {"x-explained": "1"})]
    assert outcome == Outcome(200, None)


@pytest.mark.parametrize("stream", [True, False])
def test_the_first_bytes_and_the_usage_are_seen(stream: bool) -> None:
    def answer(it: Carried) -> None:
        it.passage.on_headers(200, ENDPOINT, is_last=False)
        assert it.events == []
        it.passage.on_body(b'data: {"choices":[{}]}\n\n', is_last=False)
        it.passage.on_body(b'data: {"choices":[],' + USAGE + b"\n\n", is_last=False)
        it.passage.on_body(b"data: [DONE]\n\n" if stream else b"", is_last=True)

    carried, outcome = carry(answer, stream=stream)
    assert carried.events == [FIRST_TOKEN]
    assert outcome == Outcome(200, Usage(9, 8, 4))


def test_what_another_endpoint_did_is_not_said_of_the_chosen_one() -> None:
    def answer(it: Carried) -> None:
        it.passage.on_headers(200, "10.0.0.2:80", is_last=False)
        it.passage.on_body(b'data: {"choices":[],' + USAGE + b"\n\n", is_last=True)

    carried, outcome = carry(answer)
    assert carried.events == []
    assert outcome == Outcome(200, Usage(9, None, 4))


@pytest.mark.parametrize(("stream", "events"), [(True, []), (False, [FIRST_TOKEN])])
def test_without_the_body_the_end_of_the_conversation_is_the_end(stream: bool, events: list[Event]) -> None:
    def answer(it: Carried) -> None:
        it.passage.on_headers(200, None, is_last=False)
        assert not it.passage.is_over
        it.passage.on_end()

    carried, outcome = carry(answer, stream=stream, shows_body=False)
    assert (carried.events, outcome) == (events, Outcome(200, None))


def test_a_body_that_breaks_off_is_no_end() -> None:
    def answer(it: Carried) -> None:
        it.passage.on_headers(200, None, is_last=False)
        it.passage.on_body(b"data: {}\n\n", is_last=False)
        it.passage.on_end()
        assert not it.passage.is_over
        it.passage.on_body(b"", is_last=True)

    assert carry(answer)[1] == Outcome(200, None)


def test_what_comes_after_the_end_changes_nothing_1() -> None:
    def answer(it: Carried) -> None:
        it.passage.on_headers(404, None, is_last=True)
        it.passage.on_headers(503, None, is_last=True)
        it.passage.on_body(b"late", is_last=True)
        it.passage.on_end()

    carried, outcome = carry(answer)
    assert (carried.events, outcome) == ([], Outcome(404, None))


def test_errors_of_the_engine_are_the_workers_failures() -> None:
    def refused(it: Carried) -> None:
        it.passage.on_headers(503, None, is_last=False)

    def broken(it: Carried) -> None:
        it.passage.on_headers(200, None, is_last=False)
        it.passage.on_body(b'data: {"error": {}}\n\n', is_last=False)

    for answer in (refused, broken):
        with pytest.raises(WorkerFailedError):
            carry(answer)


def test_a_worker_with_a_name_is_not_told_to_the_gateway() -> None:
    call = EngineCall(RequestId("r1"), COMPLETION_ROUTE, b"{}", {}, True, True, False, {})
    passage = Passage(call, Endpoints(), lambda *_: None, shows_body=True)
    decision = RoutingDecision(RequestId("r1"), 1, make_worker_at("http://engine.local:80"), None, DECISION.forecast)
    with pytest.raises(WorkerUnreachableError, match=r"engine\.local"):
        asyncio.run(passage.run(decision, lambda _: None, Traced(), {}))
    assert not passage.started, "so that another worker is tried"
