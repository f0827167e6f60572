"""Carries out one routing decision: prefill call, hand-off, decode call, bytes to the client.

Invariants
 1. The client's status line is sent only after the first byte of a usable answer: until then every failure of a
    worker is a WorkerError, and the core may decide again.
 2. The engine's body bytes reach the client unchanged (law 8).
 3. A client's mistake that an engine reports (4xx) is an answer, not a failure: it is passed on and ends the request.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvstore.types import RequestId
from router.events import Event, FirstToken, PrefillDone
from router.interfaces import RequestTrace, ResponseSink
from router.openai import error_in_first_chunk
from router.types import RoutingDecision, Usage
from router.usage import StreamTap, UnaryTap, find_usage, with_usage
from workers.client import EngineClient, EngineReply, EngineStream
from workers.errors import WorkerFailedError
from workers.kv_connector import HandleError, decode_body, parse_handle, prefill_body
from workers.types import WorkerState

# Response headers of the engine that mean something to the client. The rest is about the hop between us and it.
_PASSED_HEADERS = ("content-type", "retry-after", "x-request-id")


@dataclass(frozen=True, slots=True)
class EngineCall:
    """What is sent to an engine on behalf of a client."""

    request_id: RequestId
    route: str
    raw_body: bytes
    fields: Mapping[str, Any]  # raw_body, parsed
    stream: bool
    reads_usage: bool  # the answer's form is known: the router reads from it what the request used
    strips_usage: bool  # of a stream whose client did not ask for it
    headers: Mapping[str, str]  # those the engine may see


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended for the client."""

    status: int
    usage: Usage | None = None


class Dispatcher:
    """Runs attempts. Holds nothing of a request after `run` has ended."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

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
        raw_body = with_usage(call.raw_body, call.fields) if call.strips_usage else call.raw_body
        if decision.prefill is not None:
            reply = await self._prefill(decision.prefill, call, trace)
            if reply.status != 200:
                await sink.start(reply.status, {**_passed(reply.headers), **reply_headers})
                await sink.write(reply.body)
                return Outcome(reply.status)
            try:
                handle = parse_handle(reply.body)
            except HandleError as error:
                raise WorkerFailedError(decision.prefill.spec.id, str(error)) from error
            usage = find_usage(reply.body)
            report(PrefillDone(call.request_id, decision.attempt, usage.cached_tokens if usage else None))
            raw_body = decode_body(raw_body, handle)
        return await self._decode(decision, call, raw_body, sink, report, trace, reply_headers)

    async def _prefill(self, worker: WorkerState, call: EngineCall, trace: RequestTrace) -> EngineReply:
        with trace.step("prefill") as span:
            span.set(worker=worker.spec.id)
            headers = {**call.headers, **span.headers()}
            reply = await self._client.post(worker, call.route, prefill_body(call.fields), headers)
            if reply.status >= 500:
                raise WorkerFailedError(worker.spec.id, f"prefill got {reply.status}")
            return reply

    async def _decode(
        self,
        decision: RoutingDecision,
        call: EngineCall,
        raw_body: bytes,
        sink: ResponseSink,
        report: Callable[[Event], None],
        trace: RequestTrace,
        reply_headers: Mapping[str, str],
    ) -> Outcome:
        worker = decision.decode
        with trace.step("decode") as span:
            span.set(worker=worker.spec.id)
            headers = {**call.headers, **span.headers()}
            async with contextlib.AsyncExitStack() as stack:
                # The engine pulls the blocks before its first step: until the first byte of a stream this is the
                # transfer and one step. An answer in one piece hides the moment; then it is an upper bound.
                with trace.step("transfer" if decision.prefill else "first_token") as wait:
                    wait.set(upper_bound=not call.stream)
                    response = await stack.enter_async_context(
                        self._client.stream(worker, call.route, raw_body, headers)
                    )
                    chunks = response.chunks()
                    first = await _first_chunk(response, chunks, worker)
                trace.event("first_token")
                report(FirstToken(call.request_id, decision.attempt))
                await sink.start(response.status, {**_passed(response.headers), **reply_headers})
                reads = call.reads_usage and response.status == 200
                tap = StreamTap(strip=call.strips_usage) if reads and call.stream else UnaryTap()
                await sink.write(tap.feed(first))
                async for chunk in chunks:
                    passed = tap.feed(chunk)
                    if passed:
                        await sink.write(passed)
                rest = tap.flush()
                if rest:
                    await sink.write(rest)
                return Outcome(response.status, tap.usage if reads else None)


async def _first_chunk(response: EngineStream, chunks: AsyncIterator[bytes], worker: WorkerState) -> bytes:
    """The first bytes of an answer worth passing on; raises WorkerError for anything else."""
    if response.status >= 500:
        raise WorkerFailedError(worker.spec.id, f"decode got {response.status}")
    first = await anext(chunks, b"")
    if error_in_first_chunk(first):
        raise WorkerFailedError(worker.spec.id, "the stream began with an error")
    return first


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in _PASSED_HEADERS if name in headers}
