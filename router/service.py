"""The async owner of one RouterCore: turns what happens into events and carries the commands out.

Invariants
 1. `core.handle` is called from this object's event loop only, never across an await.
 2. Every request that arrived ends in the core by exactly one event, whatever happens to its client, its workers or
    its task.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from kvstore.fleet_index import SlotsChanged as SourceSlotsChanged
from kvstore.types import RequestId, WorkerId
from router.carrier import Carrier, Relay
from router.core import RouterCore
from router.dispatch import Dispatcher, Outcome
from router.errors import ApiError, broken_stream, from_reject
from router.events import (
    Abort,
    Command,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    PrefillDone,
    Reject,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    Woken,
    WorkerChanged,
    WorkerGone,
)
from router.explain.decision_store import DecisionHistory
from router.explain.text import span_attributes
from router.identity.usage_ledger import Ticket, UsageLedger
from router.intake import FleetFacts, Intake
from router.interfaces import RequestTrace, ResponseSink
from router.metrics import RouterMetrics
from router.prompt_index import Located, PromptIndex
from router.refusals import Refused
from router.slo import judge
from router.types import Request, RoutingDecision
from workers.errors import WorkerError, WorkerFailedError, WorkerLostError, WorkerUnreachableError
from workers.membership import Joined, Left
from workers.ranks import by_rank
from workers.types import WorkerState

_log = logging.getLogger(__name__)
_REASONS: dict[type[WorkerError], str] = {WorkerUnreachableError: "unreachable", WorkerFailedError: "error"}
_CLIENT_GONE = 499  # nginx's word for it


# Told of every event with the commands that it caused, in order: explanations, recordings.
Observer = Callable[[float, Event, Sequence[Command]], None]


class _Live(Struct):
    """A request between its arrival and its end."""

    request: Request
    located: Located
    task: "asyncio.Task[object] | None"
    arrived_at_s: float
    verdict: RoutingDecision | Reject | None = None  # that the task has not taken yet
    waiter: "asyncio.Future[None] | None" = None  # of a task that waits for it
    first_token_at_s: float | None = None
    attempt: int = 0  # the one dispatched last, whether its task has resumed or not
    is_running: bool = False  # the task is inside the attempt, where a cancellation can reach it
    aborted_by: WorkerId | None = None
    cached_tokens: int | None = None  # that the prefill worker reported
    predicted_tokens: int = 0  # that it was expected to report
    failed_by: str = ""  # how the last attempt failed
    waits_for: str = ""  # admission's word on why it is held
    outcome: str = "cancelled"  # until something else is known: answered, refused (by an engine), rejected, failed
    slo_met: bool | None = None  # None: not known, as of an answer in one piece


@dataclass
class RouterService:
    """One decision path for HTTP and gRPC."""

    core: RouterCore
    dispatcher: Dispatcher
    prompts: PromptIndex
    redis_up: Callable[[], bool]
    history: DecisionHistory
    observers: Sequence[Observer] = ()  # besides the history
    ledger: UsageLedger = field(default_factory=lambda: UsageLedger("one"))
    is_warm: Callable[[], bool] = lambda: True  # it knows what the fleet has cached, or has waited long enough to
    _live: dict[RequestId, _Live] = field(default_factory=dict)
    _facts: dict[str, FleetFacts] = field(default_factory=dict)  # by route, until the fleet changes
    _ranks: dict[WorkerId, tuple[WorkerId, ...]] = field(default_factory=dict)  # workers of each engine
    _wakeup: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.metrics = RouterMetrics(self.core, self.prompts, self.redis_up, lambda: len(self._live))

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def fleet(self) -> tuple[WorkerState, ...]:
        """Every known worker."""
        return self.core.fleet()

    def routable_models(self) -> tuple[str, ...]:
        """Models for which a request would be served now."""
        return self.core.routable_models()

    def facts(self, route: str) -> FleetFacts:
        """What the fleet's engines know of requests on this route."""
        known = self._facts.get(route)
        if known is None:
            fields: dict[str, frozenset[str]] = {}
            for worker in self.core.fleet():
                own = frozenset(worker.spec.routes.get(route, ()))
                fields[worker.spec.model] = fields.get(worker.spec.model, frozenset()) | own
            # By id, so that of two models with an adapter of one name every replica takes the same.
            base_of = {name: worker.spec.model for worker in self.core.fleet() for name in worker.spec.adapters}
            known = self._facts[route] = FleetFacts(fields, {a: m for a, m in base_of.items() if a not in fields})
        return known

    def on_membership(self, change: Joined | Left) -> None:
        """The fleet changed: an engine, and so all of its ranks."""
        match change:
            case Joined(engine):
                ranks = by_rank(engine)
                for state in ranks:
                    self._on_worker(state)
                now = {state.spec.id for state in ranks}
                for worker_id in self._ranks.get(engine.spec.id, ()):
                    if worker_id not in now:
                        self.handle(WorkerGone(worker_id, "its engine starts"))
                self._ranks[engine.spec.id] = tuple(state.spec.id for state in ranks)
            case Left(engine_id, reason):
                self._facts.clear()
                _log.warning("worker %s is gone: %s", engine_id, reason)
                for changed in self.prompts.index.drop_worker(engine_id):
                    self.on_slots_changed(changed)
                for worker_id in self._ranks.pop(engine_id, (engine_id,)):
                    self.handle(WorkerGone(worker_id, reason))

    def _on_worker(self, state: WorkerState) -> None:
        known = self.core.worker(state.spec.id)
        if known is None or known.phase is not state.phase:
            _log.info("worker %s (%s) is %s", state.spec.id, state.spec.role, state.phase)
        if known is None or known.spec != state.spec:
            self._facts.clear()
        self.handle(WorkerChanged(state))

    def on_slots_changed(self, change: SourceSlotsChanged) -> None:
        """The prefix index has new slots for a worker."""
        self.handle(self.prompts.on_slots_changed(change))

    def serve(self, intake: Intake, sink: ResponseSink, trace: RequestTrace) -> Awaitable[None]:
        """Serve one request into `sink`. Raises ApiError where the client gets none of the answer, or only part."""
        return self.serve_by(Relay(self.dispatcher, intake.call, sink), intake, trace)

    async def serve_by(self, carrier: Carrier, intake: Intake, trace: RequestTrace) -> None:
        """Serve one request; `carrier` carries out what is decided. Raises ApiError as `serve` does.

        Has to run in a task of its own: a lost worker cancels it.
        """
        request = intake.request
        self._open(intake)
        live = _Live(request, intake.located, asyncio.current_task(), time.monotonic())
        self.history.announce(request.id, intake.public_id)
        self._live[request.id] = live
        status = _CLIENT_GONE
        try:
            status = await self._attempts(live, intake, carrier, trace)
        except ApiError as error:
            status = error.status
            live.outcome = live.outcome if live.outcome == "rejected" else "failed"
            self.handle(RequestCancelled(request.id))  # nothing to do, unless the error came from the sink
            raise
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                status = 500
            self.handle(RequestCancelled(request.id))
            self.metrics.cancelled.inc()
            raise
        finally:
            if intake.ticket is not None:
                self._close(intake.ticket, live, status)
            del self._live[request.id]
            self.metrics.requests.inc(request.route, str(status))
            self.metrics.tenants.inc(request.terms.tenant, _tenant_outcome(live))
            e2e_s = time.monotonic() - live.arrived_at_s
            self.metrics.e2e.observe(e2e_s)
            if trace.is_recorded:
                self.metrics.e2e.mark(e2e_s, trace.trace_id)
                trace.ended(status, request.terms.tenant, **_root_attributes(live, intake, e2e_s))

    def _open(self, intake: Intake) -> None:
        """Raises ApiError 429 for a tenant that has had what it may have."""
        if intake.ticket is None:
            return
        try:
            self.ledger.open(intake.ticket, time.time())
        except ApiError as error:
            route, terms = intake.request.route, intake.request.terms
            self.metrics.refuse(Refused(route, error.status, error.code, terms.class_name, terms.tenant))
            raise

    def _close(self, ticket: Ticket, live: _Live, status: int) -> None:
        """An answer is charged, and what a client took before it went away; no error is, theirs or ours."""
        is_used = status == 200 or (status == _CLIENT_GONE and live.attempt > 0)
        used = ticket.used() if is_used else None
        self.ledger.close(ticket, used, time.time())
        if used is not None:
            self.metrics.tenants.charge(ticket.tenant, used)

    async def _attempts(self, live: _Live, intake: Intake, carrier: Carrier, trace: RequestTrace) -> int:
        request = live.request
        event: Event = RequestArrived(request, intake.located.overlap)
        while True:
            with trace.step("decide") as span:
                self.handle(event)
                if live.verdict is None:
                    await self._wait(live, trace)
                verdict, live.verdict = live.verdict, None
                assert verdict is not None
                if isinstance(verdict, Reject):
                    live.outcome = "rejected"
                    span.set(rejected=verdict.reason.value)
                    self.metrics.rejected.inc(request.terms.class_name, verdict.reason.value)
                    raise from_reject(verdict)
                if span.is_recorded:
                    span.set(**span_attributes(verdict))
            self._count_attempt(verdict, live)
            try:
                with trace.step("attempt") as span:
                    if span.is_recorded:
                        span.set(number=verdict.attempt)
                    outcome = await self._run_attempt(verdict, live, intake, carrier, trace)
            except WorkerError as error:
                live.failed_by = _REASONS.get(type(error), "gone")
                event = self._failed(intake, verdict, error, retriable=not carrier.started)
                if carrier.started:
                    live.outcome = "failed"
                    self.handle(event)
                    raise broken_stream(error.detail) from error
            else:
                self._done(verdict, live, outcome)
                return outcome.status

    def _count_attempt(self, decision: RoutingDecision, live: _Live) -> None:
        self.metrics.attempts.inc("hand_off" if decision.prefill else "local")
        if decision.attempt == 1:
            self.metrics.queue.observe(decision.waited_s, live.request.terms.class_name)
        else:
            self.metrics.retries.inc(live.failed_by)

    async def _wait(self, live: _Live, trace: RequestTrace) -> None:
        """Until there is a verdict."""
        with trace.step("queue") as span:
            span.set(waits_for=live.waits_for)
            while live.verdict is None:
                live.waiter = asyncio.get_running_loop().create_future()
                await live.waiter

    async def _run_attempt(
        self, decision: RoutingDecision, live: _Live, intake: Intake, carrier: Carrier, trace: RequestTrace
    ) -> Outcome:
        """Run an attempt; an Abort of it comes out as WorkerError."""
        call = intake.call
        explained = self.history.headers(live.request.id) if intake.wants_explanation else {}

        def report(event: Event) -> None:
            if isinstance(event, FirstToken):
                call.let_go()
                if call.stream:
                    live.first_token_at_s = time.monotonic()
                    ttft_s, predicted_s = live.first_token_at_s - live.arrived_at_s, decision.forecast.ttft_s
                    self.metrics.observe_first_token(ttft_s, decision.waited_s + predicted_s)
                    if trace.is_recorded:
                        self.metrics.ttft.mark(ttft_s, trace.trace_id)
            elif isinstance(event, PrefillDone):
                live.cached_tokens = event.cached_tokens
            self.handle(event)

        lost, live.aborted_by = live.aborted_by, None
        if lost is not None:  # between the decision and this line
            raise WorkerLostError(lost, "gone before the request reached it")
        live.is_running = True
        try:
            return await carrier.run(decision, report, trace, explained)
        except asyncio.CancelledError:
            lost, live.aborted_by = live.aborted_by, None
            if lost is None or live.task is None:
                raise
            if live.task.uncancel() > 0:
                raise  # the client went away in the same instant
            raise WorkerLostError(lost, "gone while it worked on the request") from None
        finally:
            live.is_running = False

    def _done(self, decision: RoutingDecision, live: _Live, outcome: Outcome) -> None:
        request, usage, now_s = live.request, outcome.usage, time.monotonic()
        live.outcome = "answered" if outcome.status < 400 else "refused"
        self.handle(RequestDone(request.id, decision.attempt, usage))
        reported = live.cached_tokens if live.cached_tokens is not None else usage.cached_tokens if usage else None
        if outcome.status == 200 and reported is not None:
            self.prompts.compare(request.model, live.located, live.predicted_tokens, reported)
            if live.located.num_tokens is not None:
                self.metrics.cached.observe(request.model, live.located.num_tokens, live.predicted_tokens, reported)
        if outcome.status == 200 and live.first_token_at_s is not None and usage is not None:
            judged = judge(
                request.terms.slo,
                arrived_at_s=live.arrived_at_s,
                first_token_at_s=live.first_token_at_s,
                ended_at_s=now_s,
                output_tokens=usage.output_tokens,
            )
            live.slo_met = judged.is_met
            self.metrics.observe_slo(request.terms.class_name, decision.promised, judged.is_met, judged.tpot_s)

    def _failed(self, intake: Intake, decision: RoutingDecision, error: WorkerError, *, retriable: bool) -> Event:
        public_id, attempt = intake.public_id, decision.attempt
        _log.warning("request %s attempt %d: %s", public_id, attempt, error, extra={"request_id": public_id})
        self.metrics.failed_attempts.inc(error.worker_id)
        if decision.prefill is not None:
            step = "prefill" if error.worker_id == decision.prefill.spec.id else "decode"
            self.metrics.failed_hand_offs.inc(step)
        return RequestFailed(intake.request.id, attempt, error.worker_id, retriable)

    def handle(self, event: Event) -> None:
        """Tell the core; carry out what it says."""
        now_s = time.monotonic()
        commands = self.core.handle(event, now_s)
        self.history.observe(now_s, event, commands)
        for observe in self.observers:
            observe(now_s, event, commands)
        for command in commands:
            match command:
                case Dispatch(decision):
                    live = self._live[decision.request_id]
                    live.attempt = decision.attempt
                    spec = (decision.prefill or decision.decode).spec
                    live.predicted_tokens = self.prompts.expect(live.located, spec.id, spec.block_size_tokens)
                    self._decided(live, decision)
                case Reject(request_id):
                    self._decided(self._live[request_id], command)
                case Abort(request_id, attempt, worker_id):
                    self._abort(request_id, attempt, worker_id)
                case Hold(request_id, _, why):
                    self._live[request_id].waits_for = why  # its task waits for the verdict as it is
        self._set_wakeup(now_s)

    def _decided(self, live: _Live, verdict: RoutingDecision | Reject) -> None:
        live.verdict, waiter, live.waiter = verdict, live.waiter, None
        if waiter is not None and not waiter.done():  # done: its client has just gone
            waiter.set_result(None)

    def _abort(self, request_id: RequestId, attempt: int, worker_id: WorkerId) -> None:
        live = self._live.get(request_id)
        if live is None or live.attempt != attempt or live.aborted_by is not None or live.task is None:
            return
        live.aborted_by = worker_id
        if live.is_running:
            live.task.cancel()

    def _set_wakeup(self, now_s: float) -> None:
        """One timer, for the time that the core names."""
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        wakeup_s = self.core.next_wakeup_s(now_s)
        if wakeup_s is not None:
            loop = asyncio.get_running_loop()
            self._wakeup = loop.call_later(max(0.0, wakeup_s - now_s), self.handle, Woken())


def _tenant_outcome(live: _Live) -> str:
    """met, missed, not_judged, rejected, failed or cancelled."""
    if live.outcome not in ("answered", "refused"):
        return live.outcome
    if live.slo_met is None:
        return "not_judged"
    return "met" if live.slo_met else "missed"


def _root_attributes(live: _Live, intake: Intake, e2e_s: float) -> dict[str, str | int | float | bool]:
    """What a tail sampler asks for."""
    attributes: dict[str, str | int | float | bool] = {
        "request_id": intake.public_id,
        "model": live.request.model,
        "class": live.request.terms.class_name,
        "outcome": live.outcome,
        "attempts": live.attempt,
        "e2e_s": e2e_s,
    }
    if live.first_token_at_s is not None:
        attributes["ttft_s"] = live.first_token_at_s - live.arrived_at_s
    if live.slo_met is not None:
        attributes["slo_met"] = live.slo_met
    return attributes
