"""The async owner of one RouterCore: turns what happens into events and carries the commands out.

Invariants
 1. `core.handle` is called from this object's event loop only, never across an await.
 2. Every request that arrived ends in the core by exactly one event, whatever happens to its client, its workers or
    its task.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
from router.dispatch import Dispatcher, EngineCall
from router.errors import ApiError, broken_stream, from_reject
from router.events import (
    Abort,
    Dispatch,
    Event,
    FirstToken,
    Reject,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    WorkerChanged,
    WorkerGone,
)
from router.interfaces import RequestTrace, ResponseSink
from router.metrics import RouterMetrics
from router.types import Request, RoutingDecision
from workers.errors import WorkerError
from workers.membership import Joined, Left
from workers.types import WorkerState

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Live:
    """A request between its arrival and its end."""

    verdict: "asyncio.Future[RoutingDecision | Reject]"
    arrived_at_s: float
    attempt: int = 0
    task: "asyncio.Task[object] | None" = None
    aborted_by: WorkerId | None = None


class RouterService:
    """One decision path for HTTP and gRPC."""

    def __init__(self, core: RouterCore, dispatcher: Dispatcher, redis_up: Callable[[], bool]) -> None:
        self._core = core
        self._dispatcher = dispatcher
        self._live: dict[RequestId, _Live] = {}
        self.metrics = RouterMetrics(core.fleet, redis_up)

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def fleet(self) -> tuple[WorkerState, ...]:
        """Every known worker."""
        return self._core.fleet()

    def routable_models(self) -> tuple[str, ...]:
        """Models for which a request would be served now."""
        return self._core.routable_models()

    def known_fields(self, model: str, route: str) -> frozenset[str]:
        """Request fields that some engine of the model knows on this route; empty: not known."""
        return frozenset(
            name
            for worker in self._core.fleet()
            if worker.spec.model == model
            for name in worker.spec.routes.get(route, ())
        )

    def on_membership(self, change: Joined | Left) -> None:
        """The fleet changed."""
        match change:
            case Joined(state):
                known = {worker.spec.id: worker.phase for worker in self._core.fleet()}
                if known.get(state.spec.id) is not state.phase:
                    _log.info("worker %s (%s) is %s", state.spec.id, state.spec.role, state.phase)
                self._handle(WorkerChanged(state))
            case Left(worker_id, reason):
                _log.warning("worker %s is gone: %s", worker_id, reason)
                self._handle(WorkerGone(worker_id, reason))

    async def serve(self, request: Request, call: EngineCall, sink: ResponseSink, trace: RequestTrace) -> None:
        """Serve one request into `sink`. Raises ApiError where the client gets none of the answer, or only part."""
        loop = asyncio.get_running_loop()
        live = _Live(loop.create_future(), time.monotonic(), task=asyncio.current_task())
        self._live[request.id] = live
        self.metrics.in_flight.inc()
        status = 499  # nginx's word for a client that went away
        try:
            self._handle(RequestArrived(request))
            status = await self._attempts(request, live, call, sink, trace)
        except ApiError as error:
            status = error.status
            self._handle(RequestCancelled(request.id))  # nothing to do, unless the error came from the sink
            raise
        except BaseException:
            self._handle(RequestCancelled(request.id))
            self.metrics.cancelled.inc()
            raise
        finally:
            del self._live[request.id]
            self.metrics.in_flight.dec()
            self.metrics.requests.labels(request.route, str(status)).inc()
            self.metrics.e2e.observe(time.monotonic() - live.arrived_at_s)

    async def _attempts(
        self, request: Request, live: _Live, call: EngineCall, sink: ResponseSink, trace: RequestTrace
    ) -> int:
        while True:
            with trace.step("route") as span:
                verdict = await live.verdict
                if isinstance(verdict, Reject):
                    span.set(rejected=verdict.reason.value)
                    raise from_reject(verdict)
                span.set(**_decision_attributes(verdict))
            live.verdict = asyncio.get_running_loop().create_future()
            live.attempt = verdict.attempt
            self.metrics.attempts.labels("hand_off" if verdict.prefill else "local").inc()
            try:
                status = await self._run_attempt(verdict, live, call, sink, trace)
            except WorkerError as error:
                self._fail(request.id, verdict, error, retriable=not sink.started)
                if sink.started:
                    raise broken_stream(error.detail) from error
            else:
                self._handle(RequestDone(request.id, verdict.attempt))
                return status

    async def _run_attempt(
        self, decision: RoutingDecision, live: _Live, call: EngineCall, sink: ResponseSink, trace: RequestTrace
    ) -> int:
        """Run an attempt; an Abort of it comes out as WorkerError."""

        def report(event: Event) -> None:
            if isinstance(event, FirstToken) and call.stream:
                self.metrics.ttft.observe(time.monotonic() - live.arrived_at_s)
            self._handle(event)

        try:
            return await self._dispatcher.run(decision, call, sink, report, trace)
        except asyncio.CancelledError:
            lost, live.aborted_by = live.aborted_by, None
            if lost is None or live.task is None:
                raise
            if live.task.uncancel() > 0:
                raise  # the client went away in the same instant
            raise WorkerError(lost, "gone while it worked on the request") from None

    def _fail(self, request_id: RequestId, decision: RoutingDecision, error: WorkerError, *, retriable: bool) -> None:
        _log.warning("request %s attempt %d: %s", request_id, decision.attempt, error)
        self.metrics.failed_attempts.labels(error.worker_id).inc()
        self._handle(RequestFailed(request_id, decision.attempt, error.worker_id, retriable))

    def _handle(self, event: Event) -> None:
        for command in self._core.handle(event, now_s=time.monotonic()):
            match command:
                case Dispatch(decision):
                    self._live[decision.request_id].verdict.set_result(decision)
                case Reject(request_id):
                    self._live[request_id].verdict.set_result(command)
                case Abort(request_id, attempt, worker_id):
                    self._abort(request_id, attempt, worker_id)

    def _abort(self, request_id: RequestId, attempt: int, worker_id: WorkerId) -> None:
        live = self._live.get(request_id)
        if live is not None and live.attempt == attempt and live.task is not None and live.aborted_by is None:
            live.aborted_by = worker_id
            live.task.cancel()


def _decision_attributes(decision: RoutingDecision) -> dict[str, str | int | float | bool]:
    return {
        "attempt": decision.attempt,
        "decode": decision.decode.spec.id,
        "prefill": decision.prefill.spec.id if decision.prefill else decision.decode.spec.id,
        "hand_off": decision.prefill is not None,
        "predicted_ttft_s": decision.forecast.ttft_s,
    }
