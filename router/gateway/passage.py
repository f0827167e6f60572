"""A request whose bytes a gateway carries: it is told where to go, and what it shows of the answer is followed.

Invariants
 1. An attempt that was told to the gateway ends here exactly once: by the answer's end, by an error that it shows, or
    by cancellation. Whatever is seen afterwards changes nothing.
 2. What the gateway was told is not taken back: from then on a failure is not tried again by us.
"""

import asyncio
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from router.dispatch import EngineCall, Outcome
from router.events import Event, FirstToken
from router.gateway.ext_proc import Endpoints
from router.interfaces import RequestTrace
from router.openai import error_in_first_chunk
from router.types import RoutingDecision
from router.usage import StreamTap, UnaryTap
from workers.errors import WorkerError, WorkerFailedError, WorkerUnreachableError

# Tells the gateway: the decision, its endpoint, headers for the engine, headers for the client.
Tell = Callable[[RoutingDecision, str, Mapping[str, str], Mapping[str, str]], None]


class Passage:
    """Carries out attempts by telling a gateway (router/carrier.py)."""

    def __init__(self, call: EngineCall, endpoints: Endpoints, tell: Tell, *, shows_body: bool) -> None:
        self._call = call
        self._endpoints = endpoints
        self._tell = tell
        self._shows_body = shows_body
        self._outcome: asyncio.Future[Outcome | WorkerError] | None = None
        self._tap = StreamTap(strip=False) if call.stream else UnaryTap()
        self._status = 0
        self._has_begun = False
        self._is_elsewhere = False

    @property
    def started(self) -> bool:
        """The gateway has been told."""
        return self._outcome is not None

    @property
    def is_over(self) -> bool:
        """The attempt has ended, well or not."""
        return self._outcome is not None and self._outcome.done()

    async def run(
        self,
        decision: RoutingDecision,
        report: Callable[[Event], None],
        trace: RequestTrace,
        reply_headers: Mapping[str, str],
    ) -> Outcome:
        """Tell the gateway, then wait for the end of the answer. Raises WorkerError."""
        spec = decision.decode.spec
        self._endpoint = self._endpoints.of(spec.address)
        if self._endpoint is None:
            raise WorkerUnreachableError(spec.id, f"{spec.address} has a name where gateways need an IP address")
        with trace.step("decode") as span:
            span.set(worker=spec.id)
            self._decision, self._report, self._trace = decision, report, trace
            self._outcome = asyncio.get_running_loop().create_future()
            self._tell(decision, self._endpoint, span.headers(), reply_headers)
            outcome = await self._outcome
        if isinstance(outcome, WorkerError):
            raise outcome
        return outcome

    def on_headers(self, status: int, served_by: str | None, *, is_last: bool) -> None:
        """The answer's head."""
        self._status = status
        # A gateway with fallbacks of its own: what is learned would be said of the wrong worker.
        self._is_elsewhere = served_by is not None and served_by != self._endpoint
        if status >= 500:
            self._end(WorkerFailedError(self._decision.decode.spec.id, f"the gateway answers {status}"))
        elif is_last:
            self._end_well()
        elif not self._shows_body and not self._call.stream:
            self._begin()  # engines write the head of a stream before there is a token

    def on_body(self, chunk: bytes, *, is_last: bool) -> None:
        """A piece of the answer."""
        if self.is_over:
            return
        if chunk and not self._has_begun:
            if error_in_first_chunk(chunk):
                self._end(WorkerFailedError(self._decision.decode.spec.id, "the stream began with an error"))
                return
            self._begin()
        self._tap.feed(chunk)
        if self._call.ticket is not None and self._call.stream and self._status == 200:
            self._call.ticket.events += chunk.count(b"\n\n")
        if is_last:
            self._end_well()

    def on_end(self) -> None:
        """The gateway says no more: the answer is complete, unless its body was shown and the end of it was not."""
        if self._status and not self._shows_body:
            self._end_well()

    def _begin(self) -> None:
        self._has_begun = True
        self._trace.event("first_token")
        if not self._is_elsewhere and not self.is_over:
            self._report(FirstToken(self._decision.request_id, self._decision.attempt))

    def _end_well(self) -> None:
        usage = self._tap.usage if self._call.reads_usage and self._status == 200 else None
        if self._call.ticket is not None and self._status == 200:
            self._call.ticket.usage = self._tap.usage
        if usage is not None and self._is_elsewhere:
            usage = replace(usage, cached_tokens=None)
        self._end(Outcome(self._status, usage))

    def _end(self, outcome: Outcome | WorkerError) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(outcome)
