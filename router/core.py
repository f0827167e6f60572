"""The decision core: `handle(event, now_s) -> commands`. Pure; the same code in production, tests and simulation.

Invariants
 1. A request that arrived is answered by exactly one Dispatch or Reject, at once or after a Hold, and by one more for
    each retriable failure. A request that is cancelled while it waits is answered by nothing else.
 2. A Dispatch's workers are reserved in the ledger when the command is returned (law 6), and released by the one
    event that ends the attempt.
 3. Events of an attempt that is not the live one change nothing.
 4. A worker that failed a request is not chosen for it again, nor another rank of its engine.
 5. When a worker goes, or comes back as a new epoch, every attempt that still needs it is aborted; no attempt twice.
 6. A request that was promised its targets is counted in every later admission until it ends.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kvstore.types import RequestId, WorkerId
from router.admission.desk import AdmissionDesk, PoolState, Refused
from router.admission.looks import LOOK_AGAIN_S, NO_NEWS, Look, Looks, News
from router.admission.pool_state import look_at_pool
from router.choice.chooser import Chooser, Chosen, HandOff
from router.choice.interfaces import RoutingPolicy
from router.events import (
    Abort,
    Command,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    PrefillDone,
    Reject,
    ReplicasReported,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    SlotsChanged,
    Woken,
    WorkerChanged,
    WorkerGone,
)
from router.fleet import eligibility
from router.fleet.learning import Learning, attempt_sample
from router.fleet.ledger import Ledger, Reservation
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.latency import LatencyPrior
from router.live_request import ForecastErrors, LiveRequest, OutputLengths
from router.nobody_serves import nobody_serves
from router.types import UNPROMISED, Candidate, Forecast, ReplicaReport, RoutingDecision
from workers.types import WorkerState

_MOST_LOOKED_AT = 16  # waiting requests, in one pump


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """What an operator chooses about decisions."""

    max_attempts: int = 3
    retry_after_s: float = 2.0
    hand_off: HandOff = "cost"
    dispatch_ahead_s: float = 0.1


class RouterCore:
    """Owner of the fleet's state as this router knows it, the ledger, the queues and the live requests."""

    def __init__(
        self, policy: RoutingPolicy, settings: CoreSettings, desk: AdmissionDesk, prior: LatencyPrior | None = None
    ) -> None:
        prior = prior or LatencyPrior()
        self._settings = settings
        self._desk = desk
        self._table = FleetTable(prior.params())
        self._chooser = Chooser(self._table, policy, settings.hand_off)
        self._learning = Learning(self._table, prior)
        self._looks = Looks(self._table, settings.dispatch_ahead_s)
        self._ledger = Ledger(self._table)
        self._active: dict[RequestId, LiveRequest] = {}
        self._outputs = OutputLengths()
        self._errors = ForecastErrors()
        self._handlers: dict[type[Any], Callable[[Any, float], list[Command]]] = {
            RequestArrived: self._handle_arrived,
            PrefillDone: partial(self._handle_prefill_over, local=False),
            FirstToken: partial(self._handle_prefill_over, local=True),
            RequestDone: self._handle_done,
            RequestFailed: self._handle_failed,
            RequestCancelled: self._handle_cancelled,
            WorkerChanged: self._handle_worker_changed,
            WorkerGone: self._handle_worker_gone,
            SlotsChanged: self._handle_slots_changed,
            ReplicasReported: self._handle_replicas_reported,
            Woken: lambda _, now_s: self._pump(now_s, NO_NEWS),
        }

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; return what is to be done about it. Never raises for load."""
        if now_s >= self._learning.write_at_s:
            self._learning.write()
        return self._handlers[type(event)](event, now_s)

    def next_wakeup_s(self, now_s: float) -> float | None:
        """When to send `Woken` if nothing else happens first; None: nobody waits."""
        if not self._desk.num_waiting:
            return None
        return max(now_s, min(self._desk.next_expiry_s(), now_s + LOOK_AGAIN_S))

    def routable_models(self) -> tuple[str, ...]:
        """Models for which a chat or completion request would be served now."""
        return tuple(sorted({w.spec.model for w in self._table.states() if eligibility.can_decode(w)}))

    def fleet(self) -> tuple[WorkerState, ...]:
        """Every worker, in a stable order."""
        return tuple(self._table.states())

    def worker(self, worker_id: WorkerId) -> WorkerState | None:
        """A worker of the fleet."""
        return self._table.state(worker_id)

    def candidate(self, worker: WorkerState) -> Candidate:
        """A worker with what this router has promised to it."""
        return Candidate(worker, *self._table.own_promises(worker.spec.id))

    def report(self, replica_id: str, now_s: float) -> ReplicaReport:
        """What the other replicas should know of this one."""
        return ReplicaReport(
            replica_id, self._table.promises(now_s), self._desk.waiting_work(), self._desk.tenant_work(now_s)
        )

    @property
    def num_waiting(self) -> int:
        """Requests in the queues."""
        return self._desk.num_waiting

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self._ledger.validate()
        live = {request_id: active.attempt for request_id, active in self._active.items() if not active.is_waiting}
        assert live == self._ledger.attempts(), "invariant 2: a request without a reservation, or the reverse"
        waiting = {request_id for request_id, active in self._active.items() if active.is_waiting}
        assert waiting == self._desk.waiting(), "invariant 1: a request lost by the queue, or kept by it"
        assert waiting.issuperset(self._looks), "a look at a request that does not wait"
        self._desk.validate()

    def _handle_arrived(self, event: RequestArrived, now_s: float) -> list[Command]:
        request = event.request
        assert request.id not in self._active, "invariant 1: arrived twice"
        active = self._active[request.id] = LiveRequest(request, event.overlap, now_s)
        if request.terms == UNPROMISED:
            return self._dispatch_or_give_up(active, now_s)
        active.is_due = self._desk.is_due(request, now_s)
        chosen = self._choose(active, now_s, keep_promises=True)
        if chosen.num_eligible == 0:
            return [self._give_up(active)]
        forecast = self._forecast(active, chosen, now_s)
        is_open = chosen.choice is not None and not self._is_ahead(chosen)
        verdict = self._desk.arrived(request, forecast, self._pool_state(active, chosen, is_open), now_s)
        if isinstance(verdict, Refused):
            return [self._refuse(verdict)]
        active.is_waiting, active.why = True, verdict.why
        if verdict.at_once and is_open and chosen.choice is not None:
            return [self._dispatch_waiting(active, chosen, now_s)]
        self._desk.wait(request.id)
        self._looks.stir(request.model)
        commands = self._pump_model(request.model, now_s, NO_NEWS)
        if active.is_waiting:
            commands.append(Hold(request.id, verdict.promised, verdict.why))
        return commands

    def _handle_prefill_over(self, event: PrefillDone | FirstToken, now_s: float, *, local: bool) -> list[Command]:
        """`local`: seen by the first token, which also ends the transfer of a prompt computed elsewhere."""
        request_id, attempt = event.request_id, event.attempt
        held = self._ledger.get(request_id)
        if held is None or held.attempt != attempt:
            return []
        active = self._active[request_id]
        if local and active.request.streamed:
            self._learn_from_first_token(active, now_s)
        if not self._ledger.prefill_over(request_id, attempt, now_s):
            if local and active.sample is not None and active.prefilled_at_s is not None:
                self._learning.on_transferred(held.decode_on, active.sample, active.prefilled_at_s, now_s)
                active.prefilled_at_s = None
            return []
        if active.sample is not None and (active.request.streamed or not local):
            self._learning.on_prefill_over(held.prefill_on, active.sample, now_s, local=local)
        active.prefilled_at_s = None if local else now_s
        return self._pump(now_s, News(self._row_of(held.prefill_on)))

    def _learn_from_first_token(self, active: LiveRequest, now_s: float) -> None:
        if active.first_token_due_at_s is None:
            return
        model = active.request.model
        self._errors.observe(model, now_s - active.first_token_due_at_s)
        active.first_token_due_at_s = None
        if active.is_promised:
            self._desk.began(model, in_time=now_s - active.arrived_at_s <= active.request.terms.slo.ttft_s)

    def _handle_done(self, event: RequestDone, now_s: float) -> list[Command]:
        released = self._ledger.release(event.request_id, now_s, event.attempt)
        if released is None:
            return []
        active = self._active.pop(event.request_id)
        if event.usage is not None:
            self._outputs.observe(active.request.model, event.usage.output_tokens)
        return self._pump(now_s, self._news_of(released))

    def _handle_failed(self, event: RequestFailed, now_s: float) -> list[Command]:
        released = self._ledger.release(event.request_id, now_s, event.attempt)
        if released is None:
            return []
        news = self._news_of(released)
        active = self._active[event.request_id]
        active.excluded.add(event.worker_id)
        if event.retriable:
            # Admitted once: it does not queue again behind those that came after it.
            return self._dispatch_or_give_up(active, now_s) + self._pump(now_s, news)
        del self._active[event.request_id]
        return self._pump(now_s, news)

    def _handle_cancelled(self, event: RequestCancelled, now_s: float) -> list[Command]:
        request_id = event.request_id
        active = self._active.pop(request_id, None)
        if active is None:
            return []
        if active.is_waiting:
            self._desk.cancelled(request_id, now_s)
            self._looks.forget(request_id)
            return self._pump(now_s, NO_NEWS)
        released = self._ledger.release(request_id, now_s)
        return self._pump(now_s, self._news_of(released))

    def _handle_worker_gone(self, event: WorkerGone, now_s: float) -> list[Command]:
        self._table.remove(event.worker_id)
        self._learning.on_worker_gone(event.worker_id)
        self._looks.clear()
        return self._abort_users_of(event.worker_id) + self._pump(now_s, NO_NEWS)

    def _handle_slots_changed(self, event: SlotsChanged, now_s: float) -> list[Command]:
        self._table.set_slots(event.worker_id, event.slots)
        return []

    def _handle_replicas_reported(self, event: ReplicasReported, now_s: float) -> list[Command]:
        self._table.set_remote(event.reports, event.num_replicas, now_s)
        self._desk.set_remote(event.reports, now_s)
        self._looks.clear()
        return self._pump(now_s, NO_NEWS)

    def _handle_worker_changed(self, event: WorkerChanged, now_s: float) -> list[Command]:
        state = event.state
        known = self._table.state(state.spec.id)
        self._table.upsert(state)
        self._learning.on_worker(known, state, now_s)
        commands: list[Command] = []
        if known is not None and known.spec.epoch != state.spec.epoch:
            commands += self._abort_users_of(state.spec.id)
        if known is None or known.phase is not state.phase or known.spec != state.spec:
            self._looks.clear()
        if known is None or known.phase is not state.phase:
            commands += self._pump(now_s, NO_NEWS)
        return commands

    def _abort_users_of(self, worker_id: WorkerId) -> list[Command]:
        commands: list[Command] = []
        for request_id, attempt in self._ledger.using(worker_id):
            active = self._active[request_id]
            if not active.aborted:
                active.aborted = True
                commands.append(Abort(request_id, attempt, worker_id))
        return commands

    def _row_of(self, worker_id: WorkerId) -> int:
        row = self._table.row_of(worker_id)
        return -1 if row is None else row

    def _news_of(self, released: Reservation | None) -> News:
        """Its sequence has ended, and its prompt if it was not computed yet."""
        if released is None:
            return NO_NEWS
        return News(self._row_of(released.prefill_on) if released.is_prefilling else -1, is_room_freed=True)

    def _pump(self, now_s: float, news: News) -> list[Command]:
        """Dispatch what waits and can go now; turn away what has waited too long."""
        if not self._desk.num_waiting:
            return []
        commands: list[Command] = [self._refuse(refused) for refused in self._desk.expired(now_s)]
        for model in self._desk.models():
            commands += self._pump_model(model, now_s, news)
        return commands

    def _pump_model(self, model: str, now_s: float, news: News) -> list[Command]:
        """In serving order, each to its cheapest worker; a request whose worker is busy holds that worker's place."""
        if self._looks.is_resting(model, now_s, news) or not self._has_open_worker(model, now_s):
            return []
        commands: list[Command] = []
        looks: list[Look] = []
        for request_id in self._desk.order(model, now_s, _MOST_LOOKED_AT):
            look = self._looks.last(request_id, now_s, news)
            if look is None:
                if not self._has_open_worker(model, now_s):
                    break
                active = self._active[request_id]
                chosen = self._choose(active, now_s, keep_promises=True)
                if chosen.num_eligible == 0:
                    self._desk.cancelled(request_id, now_s)
                    self._looks.forget(request_id)
                    commands.append(self._give_up(active))
                    continue
                if chosen.choice is not None and not self._is_ahead(chosen):
                    commands.append(self._dispatch_waiting(active, chosen, now_s))
                    continue
                look = self._look(request_id, chosen, now_s)
            looks.append(look)
            if look.row >= 0:
                self._table.hold(look.row, look.work_s, now_s)
        else:
            if not commands:
                self._looks.rest(model, looks)
        for look in looks:
            if look.row >= 0:
                self._table.hold(look.row, -look.work_s, now_s)
        return commands

    def _look(self, request_id: RequestId, chosen: Chosen, now_s: float) -> Look:
        """Remember why it cannot go now. Without room for it others may still find some: they may ask for less."""
        work_s = chosen.choice.forecast.work_s if chosen.choice is not None else 0.0
        return self._looks.saw(request_id, chosen.prefill_row, work_s, now_s)

    def _has_open_worker(self, model: str, now_s: float) -> bool:
        rows = self._table.rows_of_model(model)
        return len(rows) == 0 or bool(self._table.backlog_s(rows, now_s).min() <= self._settings.dispatch_ahead_s)

    def _dispatch_waiting(self, active: LiveRequest, chosen: Chosen, now_s: float) -> Dispatch:
        active.is_promised = self._desk.is_promised(active.request.id)
        self._desk.dispatched(active.request.id)
        self._looks.forget(active.request.id)
        active.is_waiting = False
        return self._dispatch(active, chosen, now_s)

    def _refuse(self, refused: Refused) -> Reject:
        del self._active[refused.request_id]
        self._looks.forget(refused.request_id)
        return Reject(refused.request_id, refused.reason, refused.detail, refused.retry_after_s)

    def _choose(self, active: LiveRequest, now_s: float, *, keep_promises: bool) -> Chosen:
        request = active.request
        return self._chooser.choose(
            request,
            active.overlap,
            active.excluded,
            now_s=now_s,
            expected_output_tokens=self._outputs.expected(request),
            keep_promises=keep_promises,
            with_margin=not active.is_due,
        )

    def _is_ahead(self, chosen: Chosen) -> bool:
        """The chosen worker has prompts enough for now: later is soon enough, and somebody more urgent may come."""
        return chosen.choice is not None and chosen.choice.forecast.queue_s > self._settings.dispatch_ahead_s

    def _forecast(self, active: LiveRequest, chosen: Chosen, now_s: float) -> Forecast:
        """Of the best choice; where promises forbid every choice, of the best one without them."""
        choice = chosen.choice or self._choose(active, now_s, keep_promises=False).choice
        assert choice is not None, "a policy has to pick among eligible workers"
        return choice.forecast

    def _pool_state(self, active: LiveRequest, chosen: Chosen, is_open: bool) -> PoolState:
        return look_at_pool(
            self._table,
            chosen,
            is_open=is_open,
            is_due=active.is_due,
            output_tokens=self._outputs.expected(active.request),
            late_s=self._errors.allowance_s(active.request.model),
        )

    def _dispatch_or_give_up(self, active: LiveRequest, now_s: float) -> list[Command]:
        """At once, whatever is promised to others."""
        if active.attempt < self._settings.max_attempts:
            chosen = self._choose(active, now_s, keep_promises=False)
            if chosen.choice is not None:
                return [self._dispatch(active, chosen, now_s)]
        return [self._give_up(active)]

    def _dispatch(self, active: LiveRequest, chosen: Chosen, now_s: float) -> Dispatch:
        request, choice = active.request, chosen.choice
        assert choice is not None
        active.attempt += 1
        active.aborted = False
        active.prefilled_at_s = None
        active.first_token_due_at_s = now_s + choice.forecast.ttft_s
        decision = RoutingDecision(
            request_id=request.id,
            attempt=active.attempt,
            decode=choice.decode,
            prefill=choice.prefill,
            forecast=choice.forecast,
            excluded=frozenset(active.excluded),
            promised=active.is_promised,
            waited_s=now_s - active.arrived_at_s,
            considered=chosen.rivals(),
            num_candidates=choice.num_candidates,
            num_near_equal=choice.num_near_equal,
            why=active.why,
        )
        new_tokens = max(1, request.num_prompt_tokens - int(choice.forecast.overlap_tokens))
        work = PrefillWork(new_tokens, new_tokens * request.num_prompt_tokens / 1e6, choice.forecast.work_s)
        active.sample = attempt_sample(
            self._table,
            (choice.prefill or choice.decode).spec.id,
            work,
            step_s=choice.forecast.step_s,
            transfer_tokens=request.num_prompt_tokens if choice.prefill else 0,
            now_s=now_s,
        )
        self._ledger.reserve(
            decision,
            work,
            # A prefix that is held there already is shared with whoever else uses it.
            kv_tokens=request.num_prompt_tokens + self._outputs.expected(request) - int(choice.shared_tokens),
            tpot_s=request.terms.slo.tpot_s if active.is_promised else math.inf,
            streamed=request.streamed,
            now_s=now_s,
        )
        return Dispatch(decision)

    def _give_up(self, active: LiveRequest) -> Reject:
        """Nobody can serve this request now, however long the queue."""
        del self._active[active.request.id]
        return nobody_serves(
            active.request,
            active.attempt,
            active.excluded,
            self._table.states(),
            max_attempts=self._settings.max_attempts,
            retry_after_s=self._settings.retry_after_s,
        )
