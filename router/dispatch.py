"""Carries out one routing decision: prefill call, hand-off, decode call, bytes to the client.

Invariants
 1. The client's status line is sent only after the first byte of a usable answer: until then every failure of a
    worker is a WorkerError, and the core may decide again.
 2. The engine's body bytes reach the client unchanged (law 8).
 3. A client's mistake that an engine reports (4xx) is an answer, not a failure: it is passed on and ends the request.
"""

import asyncio
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from kvstore.types import RequestId
from router.events import Event, FirstToken, PrefillDone
from router.identity.usage_ledger import Ticket
from router.interfaces import RequestTrace, ResponseSink, Span
from router.openai import error_in_first_chunk
from router.types import RoutingDecision, Usage
from router.usage import StreamTap, UnaryTap, find_usage, with_usage
from workers.client import Body, EngineClient, EngineReply, EngineStream
from workers.errors import WorkerFailedError
from workers.kv_connector import HandleError, KvHandle, decode_body, parse_handle, prefill_body
from workers.types import WorkerState

# Response headers of the engine that mean something to the client. The rest is about the hop between us and it. Its
# length holds for the client too, as long as nothing is taken out of the body.
_PASSED_HEADERS = {b"content-type": "content-type", b"retry-after": "retry-after", b"x-request-id": "x-request-id"}
_END_OF_EVENT = b"\n\n"
_PASSED_WHOLE = {**_PASSED_HEADERS, b"content-length": "content-length"}


class EngineCall(Struct, gc=False):
    """What is sent to an engine on behalf of a client. Does not change, but for `let_go`."""

    request_id: RequestId
    route: str
    raw_body: bytes
    fields: Mapping[str, Any]  # raw_body, parsed
    stream: bool
    reads_usage: bool  # the answer's form is known: the router reads from it what the request used
    strips_usage: bool  # of a stream whose client did not ask for it
    headers: Mapping[str, str]  # those the engine may see
    tokens: "array[int] | None" = None  # of a prompt that may be sent as ids in place of its text
    ticket: Ticket | None = None  # told what the answer used, as it goes by

    def let_go(self) -> None:
        """Forget the prompt: the answer has begun, so that nothing is sent again. Streams may last for long."""
        self.raw_body, self.fields, self.tokens = b"", {}, None


class Outcome(Struct, frozen=True, gc=False):
    """How an attempt ended for the client."""

    status: int
    usage: Usage | None = None


# What an engine is sent may depend on which one it is.
Prepare = Callable[[EngineCall, RoutingDecision], EngineCall]


class Dispatcher:
    """Runs attempts. Holds nothing of a request after `run` has ended."""

    def __init__(self, client: EngineClient, prepare: Prepare = lambda call, _: call) -> None:
        self._client = client
        self._prepare = prepare

    async def run(
        self,
        decision: RoutingDecision,
        call: EngineCall,
        sink: ResponseSink,
        report: Callable[[Event], None],
        trace: RequestTrace,
        reply_headers: Mapping[str, str],
    ) -> Outcome:
        """Run one attempt to its end; `reply_headers` are added to the answer's. Raises WorkerError."""
        call = self._prepare(call, decision)
        handle = None
        if decision.prefill is not None:
            reply = await self._prefill(decision.prefill, call, trace)
            if reply.status != 200:
                sink.start(reply.status, {**reply.headers.picked(_PASSED_WHOLE), **reply_headers})
                sink.write(reply.body)
                return Outcome(reply.status)
            try:
                handle = parse_handle(reply.body)
            except HandleError as error:
                raise WorkerFailedError(decision.prefill.spec.id, str(error)) from error
            usage = find_usage(reply.body)
            report(PrefillDone(call.request_id, decision.attempt, usage.cached_tokens if usage else None))
        return await self._decode(decision, call, handle, sink, report, trace, reply_headers)

    async def _prefill(self, worker: WorkerState, call: EngineCall, trace: RequestTrace) -> EngineReply:
        with trace.step("prefill") as span:
            if span.is_recorded:
                span.set(worker=worker.spec.id)
            headers = _with_trace(call.headers, span)
            reply = await self._client.post(worker, call.route, prefill_body(call.raw_body), headers)
            if reply.status >= 500:
                raise WorkerFailedError(worker.spec.id, f"prefill got {reply.status}")
            return reply

    async def _decode(
        self,
        decision: RoutingDecision,
        call: EngineCall,
        handle: KvHandle | None,
        sink: ResponseSink,
        report: Callable[[Event], None],
        trace: RequestTrace,
        reply_headers: Mapping[str, str],
    ) -> Outcome:
        worker = decision.decode
        stream: EngineStream | None = None
        try:
            with trace.step("decode") as span:
                if span.is_recorded:
                    span.set(worker=worker.spec.id)
                # The engine pulls the blocks before its first step: until the first byte of a stream this is the
                # transfer and one step. An answer in one piece hides the moment; then it is an upper bound.
                with trace.step("transfer" if decision.prefill else "first_token") as wait:
                    if wait.is_recorded:
                        wait.set(upper_bound=not call.stream)
                    headers = _with_trace(call.headers, span)
                    stream = await self._client.open(worker, call.route, _body(call, handle), headers)
                    first = await _first_chunk(stream, worker)
                trace.event("first_token")
                report(FirstToken(call.request_id, decision.attempt))
                call.let_go()
                names = _PASSED_HEADERS if call.strips_usage else _PASSED_WHOLE
                sink.start(stream.status, {**stream.headers.picked(names), **reply_headers})
                return await _relay(stream, first, call, sink)
        finally:
            if stream is not None:
                stream.close()


def _body(call: EngineCall, handle: KvHandle | None) -> Body:
    """What the decode worker is sent."""
    raw_body = with_usage(call.raw_body, call.fields) if call.strips_usage else call.raw_body
    return raw_body if handle is None else decode_body(raw_body, handle)


async def _first_chunk(stream: EngineStream, worker: WorkerState) -> bytes:
    """The first bytes of an answer worth passing on; raises WorkerError for anything else."""
    if stream.status >= 500:
        raise WorkerFailedError(worker.spec.id, f"decode got {stream.status}")
    first = await stream.first_chunk()
    if error_in_first_chunk(first):
        raise WorkerFailedError(worker.spec.id, "the stream began with an error")
    return first


async def _relay(stream: EngineStream, first: bytes, call: EngineCall, sink: ResponseSink) -> Outcome:
    """All of the body, in the pieces in which it comes; what the router reads of it is read as it goes by."""
    reads = call.reads_usage and stream.status == 200
    tap = StreamTap(strip=call.strips_usage) if reads and call.stream else UnaryTap()
    feed, write = tap.feed, sink.write
    ticket = call.ticket if stream.status == 200 else None
    counted = ticket if call.stream else None

    def pass_on(chunk: bytes) -> None:
        if counted is not None:
            counted.events += chunk.count(_END_OF_EVENT)
        passed = feed(chunk)
        if passed:
            write(passed)

    pass_on(first)
    if not stream.has_ended:
        sink.attach_flow(stream)
        try:
            await stream.relay(pass_on)
        except asyncio.CancelledError:
            # Clients close as soon as they have read the last event, some before the engine has ended its framing.
            # They have their answer: what it used is to be counted and learned from.
            task = asyncio.current_task()
            if not tap.is_complete or task is None:
                raise
            task.uncancel()
        finally:
            sink.attach_flow(None)
    rest = tap.flush()
    if rest:
        write(rest)
    if ticket is not None:
        ticket.usage = tap.usage
    return Outcome(stream.status, tap.usage if reads else None)


def _with_trace(headers: Mapping[str, str], span: Span) -> Mapping[str, str]:
    added = span.headers()
    return {**headers, **added} if added else headers
