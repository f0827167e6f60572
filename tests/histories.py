"""A day in the life of a core: random but repeatable arrivals, answers, failures, joins and losses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

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
from router.types import UNPROMISED, ReplicaReport, RoutingDecision, Terms, Usage, WorkerPromises
from tests.builders import make_overlap, make_request, make_terms, make_worker
from workers.types import Role, WorkerLoad, WorkerState

Seen = Callable[[float, Event, Sequence[Command]], None]

FLEET = {
    **{f"prefill-{i}": Role.PREFILL for i in range(2)},
    **{f"decode-{i}": Role.DECODE for i in range(2)},
    **{f"mixed-{i}": Role.MIXED for i in range(2)},
}
CLASSES = (
    UNPROMISED,
    make_terms(tenant="acme", class_name="interactive", ttft_s=0.3, tpot_s=0.05, deadline_s=1.0, value=4.0),
    make_terms(tenant="acme", class_name="chat", ttft_s=2.0, deadline_s=5.0),
    make_terms(tenant="umbrella", class_name="batch", ttft_s=60.0, tpot_s=1.0, best_effort_ok=True),
)


class History:
    """Tells one core about a fleet and its clients; everything random comes from `rng`."""

    def __init__(self, core: RouterCore, rng: Random, seen: Seen) -> None:
        self.core = core
        self.live: dict[RequestId, RoutingDecision | None] = {}  # None: waits
        self.began: set[RequestId] = set()
        self.num_arrived = 0
        self.now_s = 1000.0
        self._rng = rng
        self._seen = seen
        self._fleet: dict[str, WorkerState] = {}

    def run(self, num_steps: int) -> None:
        """Let so many things happen, after all workers have joined."""
        for place, (worker_id, role) in enumerate(FLEET.items()):
            self._change(make_worker(worker_id, role))
            self.tell(SlotsChanged(WorkerId(worker_id), (3 * place, 3 * place + 1, -1)))
        steps = (self._arrive, self._progress, self._progress, self._progress, self._fleet_changes, self._others)
        for _ in range(num_steps):
            self.now_s += self._rng.expovariate(20.0)
            self._look()
            self._rng.choices(steps, weights=(8, 4, 4, 4, 1, 1))[0]()

    def end(self) -> None:
        """Every client goes away."""
        for request_id in list(self.live):
            self.tell(RequestCancelled(request_id))

    def tell(self, event: Event) -> None:
        """One event, and what follows from its commands."""
        commands = self.core.handle(event, self.now_s)
        self._seen(self.now_s, event, commands)
        if isinstance(event, RequestDone | RequestCancelled):
            self.live.pop(event.request_id, None)
        for command in commands:
            match command:
                case Dispatch(decision):
                    self.live[decision.request_id] = decision
                case Reject(request_id):
                    self.live.pop(request_id, None)
                case Abort(request_id, attempt, worker_id):
                    self._fail(request_id, attempt, worker_id)

    def _look(self) -> None:
        """What the shell asks between events; no decision may depend on it."""
        self.core.next_wakeup_s(self.now_s)
        if self._rng.random() < 0.3:
            self.core.report("router-0", self.now_s)
            self.core.fleet()
            self.core.routable_models()

    def _arrive(self) -> None:
        self.num_arrived += 1
        terms: Terms = self._rng.choice(CLASSES)
        request = structs.replace(
            make_request(f"r{self.num_arrived}", num_prompt_tokens=self._rng.randint(1, 1800), terms=terms),
            streamed=self._rng.random() < 0.8,
            session=self._rng.choice(("", "s1", "s2")),
            digest=self._rng.randbytes(4),
        )
        overlap = make_overlap({3 * place: self._rng.randint(0, 40) for place in range(len(FLEET))})
        self.live[request.id] = None
        self.tell(RequestArrived(request, overlap))

    def _progress(self) -> None:
        if not self.live:
            self.tell(Woken())
            return
        request_id = self._rng.choice(list(self.live))
        decision = self.live[request_id]
        if decision is None:
            self.tell(RequestCancelled(request_id) if self._rng.random() < 0.1 else Woken())
            return
        attempt = decision.attempt
        if self._rng.random() < 0.08:
            self._fail(request_id, attempt, (decision.prefill or decision.decode).spec.id)
        elif request_id not in self.began:
            if decision.prefill is not None and self._rng.random() < 0.5:
                self.tell(PrefillDone(request_id, attempt, self._rng.choice((None, 64))))
            else:
                self.began.add(request_id)
                self.tell(FirstToken(request_id, attempt))
        else:
            usage = Usage(100, self._rng.choice((None, 64)), self._rng.randint(1, 16))
            self.tell(RequestDone(request_id, attempt, self._rng.choice((None, usage))))

    def _fail(self, request_id: RequestId, attempt: int, worker_id: WorkerId) -> None:
        retriable = request_id not in self.began
        self.live[request_id] = None
        if not retriable:
            del self.live[request_id]
        self.tell(RequestFailed(request_id, attempt, worker_id, retriable))

    def _fleet_changes(self) -> None:
        worker_id = self._rng.choice(list(FLEET))
        known = self._fleet.get(worker_id)
        what = self._rng.random()
        if known is None:
            self._change(make_worker(worker_id, FLEET[worker_id], epoch=self._rng.randint(2, 9)))
        elif what < 0.1:
            del self._fleet[worker_id]
            self.tell(WorkerGone(known.spec.id, "lease expired"))
        elif what < 0.2:
            self._change(replace(known, spec=replace(known.spec, epoch=known.spec.epoch + 1)))
        else:
            load = WorkerLoad(self._rng.randint(0, 4), self._rng.randint(0, 2), self._rng.randint(0, 90))
            self._change(replace(known, load=load))

    def _change(self, state: WorkerState) -> None:
        self._fleet[state.spec.id] = state
        self.tell(WorkerChanged(state))

    def _others(self) -> None:
        promised = WorkerPromises(
            WorkerId("mixed-0"), self._rng.random(), 2, 500, self._rng.choice((0.05, float("inf")))
        )
        reports = (ReplicaReport("router-1", (promised,)),) if self._rng.random() < 0.8 else ()
        self.tell(ReplicasReported(reports, 2))
