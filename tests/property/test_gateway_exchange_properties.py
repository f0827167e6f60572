"""Whatever a gateway says, in whatever order, and wherever it breaks off: one answer, and nothing stays reserved.

Numbers are invariants of router/gateway/exchange.py.
"""

import asyncio
import json
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.types import WorkerId
from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router.gateway.exchange import Exchange, Picking
from router.openai import COMPLETION_ROUTE
from router.tracing import NoTracing
from tests.grpc_door import MODEL, Door, make_worker_at, open_door
from workers.membership import Joined, Left

BODY = json.dumps({"model": MODEL, "prompt": "hello", "stream": True}).encode()
WORKER = make_worker_at("http://127.0.0.1:1")


def request_headers(*, end: bool = False, request: int, response: int) -> pb.ProcessingRequest:
    said = pb.HttpHeaders(end_of_stream=end)
    for key, value in {":path": COMPLETION_ROUTE, ":method": "POST"}.items():
        said.headers.headers.add(key=key, raw_value=value.encode())
    config = pb.ProtocolConfiguration(request_body_mode=request, response_body_mode=response)  # type: ignore[arg-type]
    return pb.ProcessingRequest(request_headers=said, protocol_config=config)


def request_body(body: bytes, *, end: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=end))


def response_headers(status: int, *, end: bool = False) -> pb.ProcessingRequest:
    said = pb.HttpHeaders(end_of_stream=end)
    said.headers.headers.add(key=":status", raw_value=str(status).encode())
    return pb.ProcessingRequest(response_headers=said)


def response_body(body: bytes, *, end: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=end))


REQUEST_TRAILERS = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
RESPONSE_TRAILERS = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())
MODES = st.sampled_from([pb.FULL_DUPLEX_STREAMED, pb.BUFFERED, pb.STREAMED, pb.NONE])
MESSAGES = st.one_of(
    st.builds(request_headers, end=st.booleans(), request=MODES, response=MODES),
    st.builds(request_body, st.sampled_from([BODY, BODY[:9], BODY[9:], b""]), end=st.booleans()),
    st.just(REQUEST_TRAILERS),
    st.builds(response_headers, st.sampled_from([200, 404, 503]), end=st.booleans()),
    st.builds(response_body, st.sampled_from([b"data: {}\n\n", b'data: {"error"', b""]), end=st.booleans()),
    st.just(RESPONSE_TRAILERS),
)
# In the order of a real conversation.
ORDERLY = st.tuples(
    st.builds(request_headers, request=st.sampled_from([pb.FULL_DUPLEX_STREAMED, pb.BUFFERED]), response=MODES),
    st.one_of(
        st.just((request_body(BODY, end=True),)),
        st.tuples(st.builds(request_body, st.just(BODY), end=st.booleans()), st.just(REQUEST_TRAILERS)),
    ),
    st.builds(response_headers, st.sampled_from([200, 404, 503]), end=st.booleans()),
    st.lists(st.builds(response_body, st.just(b"data: {}\n\n"), end=st.just(False)), max_size=3),
    st.sampled_from([(response_body(b"", end=True),), (RESPONSE_TRAILERS,), ()]),
).map(lambda parts: [parts[0], *parts[1], parts[2], *parts[3], *parts[4]])
# What else happens after each message: the router works on, or the next message is there already.
BETWEEN = st.lists(st.sampled_from(["work", "work", "leave", "join", "nothing"]), min_size=8, max_size=8)


async def talk(door: Door, messages: list[pb.ProcessingRequest], between: list[str]) -> int:
    """Answers that the gateway got."""
    outbox: deque[pb.ProcessingResponse] = deque()
    exchange = Exchange(Picking(door.service, door.desk, door.desk.settings, NoTracing()), outbox, lambda: None)
    for message, happens in zip(messages, between, strict=False):
        exchange.take(message)
        if happens == "leave":
            door.service.on_membership(Left(WorkerId("w1"), "gone"))
        elif happens == "join":
            door.service.on_membership(Joined(WORKER))
        for _ in range(0 if happens == "nothing" else 10):
            await asyncio.sleep(0)
    exchange.hang_up()
    if exchange.work is not None:
        _, left = await asyncio.wait((exchange.work,), timeout=2.0)
        exchange.work.cancel()
        assert not left, "the request never ends"
    assert door.service.num_in_flight == 0, "invariant 2"
    return sum(message.HasField("immediate_response") or message.HasField("dynamic_metadata") for message in outbox)


def check(messages: list[pb.ProcessingRequest], between: list[str]) -> None:
    async def test() -> None:
        async with open_door(WORKER) as door:
            assert await talk(door, messages, between) <= 1, "invariant 1"
            await door.settle()

    asyncio.run(test())


@settings(max_examples=60, deadline=None)
@given(ORDERLY, BETWEEN, st.integers(1, 8))
def test_a_conversation_may_break_off_anywhere(
    messages: list[pb.ProcessingRequest], between: list[str], cut: int
) -> None:
    check(messages[:cut], between)


@settings(max_examples=60, deadline=None)
@given(st.lists(MESSAGES, max_size=8), BETWEEN)
def test_nonsense_does_no_harm(messages: list[pb.ProcessingRequest], between: list[str]) -> None:
    check(messages, between)
