"""The decision core: `handle(event, now_s) -> commands`. Pure; the same code in production, tests and simulation.

Invariants
 1. A request that arrived is answered by exactly one Dispatch or Reject, and by one more for each retriable failure.
 2. A Dispatch's workers are reserved in the ledger when the command is returned (law 6), and released by the one
    event that ends the attempt.
 3. Events of an attempt that is not the live one change nothing.
 4. A worker that failed a request is not chosen for it again.
 5. When a worker goes, or comes back as a new epoch, every attempt that still needs it is aborted; no attempt twice.
"""

from dataclasses import dataclass, field

from kvstore.types import RequestId, WorkerId
from router import eligibility
from router.events import (
    Abort,
    Command,
    Dispatch,
    Event,
    FirstToken,
    PrefillDone,
    Reject,
    RejectReason,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    WorkerChanged,
    WorkerGone,
)
from router.interfaces import RoutingPolicy
from router.ledger import Ledger
from router.types import Candidate, Request, RoutingDecision
from workers.types import WorkerState


@dataclass(slots=True)
class _Active:
    request: Request
    attempt: int = 0
    aborted: bool = False  # the live attempt has been told to stop
    excluded: set[WorkerId] = field(default_factory=set)


class RouterCore:
    """Owner of the fleet's state as this router knows it, the ledger, and the live requests."""

    def __init__(self, policy: RoutingPolicy, *, max_attempts: int, retry_after_s: float) -> None:
        self._policy = policy
        self._max_attempts = max_attempts
        self._retry_after_s = retry_after_s
        self._fleet: dict[WorkerId, WorkerState] = {}
        self._active: dict[RequestId, _Active] = {}
        self._ledger = Ledger()

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take in one event; return what is to be done about it. Never raises for load."""
        match event:
            case RequestArrived(request):
                return self._handle_arrived(request)
            case PrefillDone(request_id, attempt) | FirstToken(request_id, attempt):
                self._ledger.prefill_over(request_id, attempt)
                return []
            case RequestDone(request_id, attempt):
                if self._ledger.release(request_id, attempt):
                    del self._active[request_id]
                return []
            case RequestFailed():
                return self._handle_failed(event)
            case RequestCancelled(request_id):
                self._ledger.release(request_id)
                self._active.pop(request_id, None)
                return []
            case WorkerChanged(state):
                return self._handle_worker_changed(state)
            case WorkerGone(worker_id):
                self._fleet.pop(worker_id, None)
                return self._abort_users_of(worker_id)

    def routable_models(self) -> tuple[str, ...]:
        """Models for which a chat or completion request would be served now."""
        return tuple(sorted({w.spec.model for w in self._fleet.values() if eligibility.can_decode(w)}))

    def fleet(self) -> tuple[WorkerState, ...]:
        """Every worker, in a stable order."""
        return tuple(self._fleet[worker_id] for worker_id in sorted(self._fleet))

    def candidate(self, worker: WorkerState) -> Candidate:
        """A worker with what has been promised to it."""
        reserved = self._ledger.reserved(worker.spec.id)
        return Candidate(worker, reserved.prefill_tokens, reserved.seqs)

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self._ledger.validate()
        live = {request_id: active.attempt for request_id, active in self._active.items()}
        assert live == self._ledger.attempts(), "invariant 2: a request without a reservation, or the reverse"

    def _handle_arrived(self, request: Request) -> list[Command]:
        assert request.id not in self._active, "invariant 1: arrived twice"
        self._active[request.id] = _Active(request)
        return self._try_next(request.id)

    def _handle_failed(self, event: RequestFailed) -> list[Command]:
        if not self._ledger.release(event.request_id, event.attempt):
            return []
        active = self._active[event.request_id]
        active.excluded.add(event.worker_id)
        if event.retriable:
            return self._try_next(event.request_id)
        del self._active[event.request_id]
        return []

    def _handle_worker_changed(self, state: WorkerState) -> list[Command]:
        known = self._fleet.get(state.spec.id)
        self._fleet[state.spec.id] = state
        if known is not None and known.spec.epoch != state.spec.epoch:
            return self._abort_users_of(state.spec.id)
        return []

    def _try_next(self, request_id: RequestId) -> list[Command]:
        active = self._active[request_id]
        excluded = frozenset(active.excluded)
        fleet = self.fleet()
        choice = None
        if active.attempt < self._max_attempts:
            choice = self._policy.choose(
                active.request,
                [self.candidate(w) for w in eligibility.prefill_workers(fleet, active.request, excluded)],
                [self.candidate(w) for w in eligibility.decode_workers(fleet, active.request, excluded)],
            )
        if choice is None:
            del self._active[request_id]
            return [self._reject(active)]
        active.attempt += 1
        active.aborted = False
        decision = RoutingDecision(request_id, active.attempt, choice.decode, choice.prefill, choice.forecast, excluded)
        self._ledger.reserve(decision, active.request.num_prompt_tokens)
        return [Dispatch(decision)]

    def _abort_users_of(self, worker_id: WorkerId) -> list[Command]:
        commands: list[Command] = []
        for request_id, attempt in self._ledger.using(worker_id):
            active = self._active[request_id]
            if not active.aborted:
                active.aborted = True
                commands.append(Abort(request_id, attempt, worker_id))
        return commands

    def _reject(self, active: _Active) -> Reject:
        request = active.request
        same_model = [w for w in self._fleet.values() if w.spec.model == request.model]
        if active.attempt > 0:
            failed = ", ".join(sorted(active.excluded))
            detail = f"{active.attempt} attempt(s) failed, on worker(s) {failed}, and "
            detail += (
                f"no more than {self._max_attempts} are made (router.max_attempts)"
                if active.attempt >= self._max_attempts
                else "no other worker is left to try"
            )
            return Reject(request.id, RejectReason.ATTEMPTS_EXHAUSTED, detail, self._retry_after_s)
        if not same_model:
            if not self._fleet:
                return Reject(request.id, RejectReason.NO_WORKER, "no worker has joined yet", self._retry_after_s)
            models = ", ".join(sorted({w.spec.model for w in self._fleet.values()}))
            detail = f"the model {request.model!r} does not exist here; available: {models}"
            return Reject(request.id, RejectReason.UNKNOWN_MODEL, detail, None)
        decoders = [w for w in same_model if eligibility.can_decode(w)]
        if decoders and not any(request.route in w.spec.routes for w in decoders):
            detail = f"no worker of model {request.model!r} has the route {request.route}"
            return Reject(request.id, RejectReason.ROUTE_NOT_SERVED, detail, None)
        phases = ", ".join(f"{w.spec.id} ({w.spec.role}) is {w.phase}" for w in same_model)
        return Reject(request.id, RejectReason.NO_WORKER, f"no worker can decode now: {phases}", self._retry_after_s)
