"""RouterCore and Ledger against a naive twin, over random histories. Numbers are invariants of the two modules."""

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
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
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.types import Request
from tests.builders import ROUTES, make_core, make_request, make_worker
from workers.types import Phase, Role, WorkerState

MAX_ATTEMPTS = 2
WORKER_IDS = [WorkerId(f"w{i}") for i in range(5)]
UNKNOWN = RequestId("never seen")

worker_ids = st.sampled_from(WORKER_IDS)
workers = st.builds(
    make_worker,
    worker_ids,
    st.sampled_from([Role.MIXED, Role.MIXED, Role.DECODE, Role.DECODE, Role.PREFILL]),
    phase=st.sampled_from([Phase.READY] * 4 + [Phase.STARTING, Phase.DRAINING, Phase.LOST]),
    model=st.sampled_from(["m", "m", "m", "other"]),
    epoch=st.integers(1, 3),
    routes=st.sampled_from([ROUTES, ROUTES, ROUTES, {CHAT_ROUTE: ()}, {}]),
    running_seqs=st.integers(0, 5),
    waiting_seqs=st.integers(0, 2),
)


@dataclass
class Live:
    """What the twin knows of a request in flight."""

    request: Request
    attempt: int
    decode: WorkerId
    prefill: WorkerId  # the decode worker, where it does its own prefill
    prefill_over: bool = False
    aborted_by: WorkerId | None = None
    failed: set[WorkerId] = field(default_factory=set)

    def needs(self, worker_id: WorkerId) -> bool:
        return worker_id == self.decode or (worker_id == self.prefill and not self.prefill_over)


class CoreMachine(RuleBasedStateMachine):
    """Every event goes to the core and to the twin; whatever the core says has to fit the twin."""

    @initialize(seed=st.integers(0, 9), fleet=st.lists(workers, min_size=2, max_size=6))
    def start(self, seed: int, fleet: list[WorkerState]) -> None:
        self.seed = seed
        self.core = make_core(seed, max_attempts=MAX_ATTEMPTS)
        self.fleet: dict[WorkerId, WorkerState] = {}
        self.live: dict[RequestId, Live] = {}
        self.ended: list[RequestId] = []
        self.history: list[tuple[Event, list[Command]]] = []
        for state in fleet:
            self.worker_changes(state)

    def tell(self, event: Event) -> list[Command]:
        commands = self.core.handle(event, float(len(self.history)))
        self.history.append((event, commands))
        return commands

    # -- requests

    @rule(
        model=st.sampled_from(["m", "m", "m", "other", "unknown"]),
        route=st.sampled_from([CHAT_ROUTE, CHAT_ROUTE, COMPLETION_ROUTE, "/v1/embeddings"]),
        num_prompt_tokens=st.integers(1, 10_000),
        can_hand_off=st.booleans(),
        only=st.one_of(st.none(), st.none(), st.frozensets(worker_ids)),
    )
    def arrives(
        self, model: str, route: str, num_prompt_tokens: int, can_hand_off: bool, only: frozenset[WorkerId] | None
    ) -> None:
        name = f"r{len(self.history)}"
        request = make_request(
            name, model=model, route=route, num_prompt_tokens=num_prompt_tokens, can_hand_off=can_hand_off
        )
        request = structs.replace(request, only=only)
        self.check_answer(request, self.tell(RequestArrived(request)), attempt=1, failed=set())

    @precondition(lambda self: self.live)
    @rule(data=st.data(), retriable=st.sampled_from([True, True, True, False]), by_prefill=st.booleans())
    def fails(self, data: st.DataObject, retriable: bool, by_prefill: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        self.fail(request_id, self.live[request_id].prefill if by_prefill else self.live[request_id].decode, retriable)

    @precondition(lambda self: any(live.aborted_by for live in self.live.values()))
    @rule()
    def aborted_attempts_fail(self) -> None:
        """What an Abort is answered with."""
        for request_id, live in list(self.live.items()):
            if live.aborted_by is not None:
                self.fail(request_id, live.aborted_by, retriable=True)

    def fail(self, request_id: RequestId, worker_id: WorkerId, retriable: bool) -> None:
        live = self.live.pop(request_id)
        commands = self.tell(RequestFailed(request_id, live.attempt, worker_id, retriable))
        if retriable:
            self.check_answer(live.request, commands, live.attempt + 1, live.failed | {worker_id})
        else:
            self.end(request_id, commands)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), cancelled=st.booleans())
    def ends(self, data: st.DataObject, cancelled: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        attempt = self.live.pop(request_id).attempt
        self.end(request_id, self.tell(RequestCancelled(request_id) if cancelled else RequestDone(request_id, attempt)))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), event=st.sampled_from([PrefillDone, FirstToken]))
    def prefill_ends(self, data: st.DataObject, event: type[PrefillDone] | type[FirstToken]) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        assert self.tell(event(request_id, self.live[request_id].attempt)) == []
        self.live[request_id].prefill_over = True

    @rule(data=st.data(), offset=st.sampled_from([-2, -1, 1]), worker_id=worker_ids, retriable=st.booleans())
    def an_event_of_no_live_attempt(
        self, data: st.DataObject, offset: int, worker_id: WorkerId, retriable: bool
    ) -> None:
        """Core invariant 3, ledger invariant 1: late, early or misdirected, it changes nothing."""
        request_id = data.draw(st.sampled_from([UNKNOWN, *self.ended, *self.live]))
        live = self.live.get(request_id)
        attempt = live.attempt + offset if live else data.draw(st.integers(0, MAX_ATTEMPTS))
        events: list[Event] = [
            PrefillDone(request_id, attempt),
            FirstToken(request_id, attempt),
            RequestDone(request_id, attempt),
            RequestFailed(request_id, attempt, worker_id, retriable),
        ]
        if live is None:
            events.append(RequestCancelled(request_id))
        assert self.tell(data.draw(st.sampled_from(events))) == []

    # -- workers

    @rule(state=workers)
    def worker_changes(self, state: WorkerState) -> None:
        known = self.fleet.get(state.spec.id)
        restarted = known is not None and known.spec.epoch != state.spec.epoch
        self.fleet[state.spec.id] = state
        self.check_aborts(self.tell(WorkerChanged(state)), state.spec.id, expected=restarted)

    @precondition(lambda self: self.fleet)
    @rule(data=st.data())
    def worker_restarts(self, data: st.DataObject) -> None:
        state = self.fleet[data.draw(st.sampled_from(sorted(self.fleet)))]
        spec = replace(state.spec, epoch=state.spec.epoch + 1)
        self.worker_changes(replace(state, spec=spec, phase=Phase.READY))

    @rule(worker_id=worker_ids)
    def worker_goes(self, worker_id: WorkerId) -> None:
        self.fleet.pop(worker_id, None)
        self.check_aborts(self.tell(WorkerGone(worker_id, "left")), worker_id, expected=True)

    # -- what has to hold

    def end(self, request_id: RequestId, commands: list[Command]) -> None:
        assert commands == []
        self.ended.append(request_id)

    def check_aborts(self, commands: list[Command], worker_id: WorkerId, *, expected: bool) -> None:
        """Core invariant 5: all who need the worker, nobody else, nobody twice."""
        doomed = [
            Abort(request_id, live.attempt, worker_id)
            for request_id, live in self.live.items()
            if expected and live.needs(worker_id) and live.aborted_by is None
        ]
        assert Counter(commands) == Counter(doomed)
        for abort in doomed:
            self.live[abort.request_id].aborted_by = worker_id

    def check_answer(self, request: Request, commands: list[Command], attempt: int, failed: set[WorkerId]) -> None:
        """Core invariants 1, 2 and 4: one answer, on workers that can serve and have not failed the request."""
        (answer,) = commands
        decoders = {w.spec.id for w in self.serving(request, failed) if w.spec.role is not Role.PREFILL}
        if attempt > MAX_ATTEMPTS or not decoders:
            assert isinstance(answer, Reject)
            assert answer.request_id == request.id
            assert answer.reason in self.possible_reasons(request, attempt)
            assert (answer.retry_after_s is None) == (
                answer.reason in (RejectReason.UNKNOWN_MODEL, RejectReason.ROUTE_NOT_SERVED)
            )
            self.ended.append(request.id)
            return
        assert isinstance(answer, Dispatch)
        decision = answer.decision
        assert (decision.request_id, decision.attempt, set(decision.excluded)) == (request.id, attempt, failed)
        assert decision.decode.spec.id in decoders
        assert decision.decode == self.fleet[decision.decode.spec.id]
        prefillers = {
            w.spec.id for w in self.serving(request, failed) if w.spec.role is Role.PREFILL and request.can_hand_off
        }
        if decision.prefill is not None:
            assert decision.prefill.spec.id in prefillers
        else:
            assert not prefillers
        prefill = (decision.prefill or decision.decode).spec.id
        self.live[request.id] = Live(request, attempt, decision.decode.spec.id, prefill, failed=failed)

    def serving(self, request: Request, failed: set[WorkerId]) -> list[WorkerState]:
        return [
            worker
            for worker in self.fleet.values()
            if worker.phase is Phase.READY
            and worker.spec.model == request.model
            and request.route in worker.spec.routes
            and worker.spec.id not in failed
            and (request.only is None or worker.spec.id in request.only)
        ]

    def possible_reasons(self, request: Request, attempt: int) -> set[RejectReason]:
        if attempt > 1:
            return {RejectReason.ATTEMPTS_EXHAUSTED}
        of_model = [worker for worker in self.fleet.values() if worker.spec.model == request.model]
        if not of_model:
            return {RejectReason.UNKNOWN_MODEL if self.fleet else RejectReason.NO_WORKER}
        ready = [w for w in of_model if w.phase is Phase.READY and w.spec.role is not Role.PREFILL]
        has_route = any(request.route in worker.spec.routes for worker in ready)
        return {RejectReason.ROUTE_NOT_SERVED if ready and not has_route else RejectReason.NO_WORKER}

    @invariant()
    def promises_are_those_of_the_live_attempts(self) -> None:
        """Core invariant 2; ledger invariants 2 and 3: the sums over the twin's live requests, for every worker."""
        self.core.validate()
        tokens: Counter[WorkerId] = Counter()
        seqs: Counter[WorkerId] = Counter()
        for live in self.live.values():
            tokens[live.prefill] += 0 if live.prefill_over else live.request.num_prompt_tokens
            seqs[live.decode] += 1
        for worker_id in WORKER_IDS:
            candidate = self.core.candidate(make_worker(worker_id))
            assert candidate.reserved_prefill_tokens == tokens[worker_id]
            assert candidate.reserved_seqs == seqs[worker_id]

    @invariant()
    def the_fleet_is_the_twins(self) -> None:
        assert self.core.fleet() == tuple(self.fleet[worker_id] for worker_id in sorted(self.fleet))

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for request_id in list(self.live):
            assert self.tell(RequestCancelled(request_id)) == []
        self.live.clear()
        self.promises_are_those_of_the_live_attempts()
        assert holds_nothing(self.core)
        self.replay()

    def replay(self) -> None:
        """Determinism (architecture law 2): the same events and the same seed, the same commands."""
        again = make_core(self.seed, max_attempts=MAX_ATTEMPTS)
        for at, (event, commands) in enumerate(self.history):
            assert again.handle(event, float(at)) == commands


def holds_nothing(core: RouterCore) -> bool:
    table = core._table
    columns = (table.own_seqs, table.own_prefill_tokens, table.own_kv_tokens)
    return not core._active and not core._ledger.attempts() and not any(column.any() for column in columns)


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=150, stateful_step_count=40)
