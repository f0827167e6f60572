"""Runs RouterCore unchanged in virtual time: clients, router replicas, the prefix index and engines on one clock."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random

from kvstore.prefix_index import PrefixIndex
from kvstore.types import RequestId
from router.admission.desk import AdmissionDesk
from router.choice.interfaces import RoutingPolicy
from router.core import CoreSettings, RouterCore
from router.events import (
    Abort,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    PrefillDone,
    Reject,
    ReplicasReported,
    RequestArrived,
    RequestDone,
    SlotsChanged,
    Woken,
    WorkerChanged,
)
from router.latency import LatencyPrior
from router.openai import CHAT_ROUTE
from router.slo_settings import SloSettings
from router.types import UNPROMISED, Overlap, Request, RoutingDecision, Usage
from tests.builders import MODEL
from tests.sim.clients import Clients, Outcome
from tests.sim.engine import Job
from tests.sim.fleet import Fleet, SimWorker, build_workers
from tests.sim.workload import Arrival, Turn

PLAIN = Clients()
DEFAULTS = CoreSettings()
BUILT_IN = SloSettings()

PolicyFactory = Callable[[Random], RoutingPolicy]

_INDEX_BYTES = 1 << 28


@dataclass(slots=True, eq=False)
class _Router:
    name: str
    core: RouterCore
    wakes_at_s: float = math.inf


class Simulation:
    """One run. Everything random comes from the seed."""

    def __init__(
        self,
        policy: PolicyFactory,
        fleet: Fleet,
        *,
        clients: Clients = PLAIN,
        settings: CoreSettings = DEFAULTS,
        slo: SloSettings = BUILT_IN,
        prior: LatencyPrior | None = None,
        seed: int = 0,
    ) -> None:
        self.now_s = 0.0
        self.outcomes: list[Outcome] = []
        self._fleet = fleet
        self._clients = clients
        self._rng = Random(seed)
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self._index = PrefixIndex(_INDEX_BYTES)
        self._open: dict[RequestId, Outcome] = {}
        self._unfinished = 0
        self._routers = [
            _Router(f"router-{i}", RouterCore(policy(Random(seed + 1000 + i)), settings, AdmissionDesk(slo), prior))
            for i in range(fleet.num_routers)
        ]
        workers = build_workers(fleet, self.at, self._index.open_slot, self._rng)
        self.workers = {worker.spec.id: worker for worker in workers}
        self._start()

    # -- clock

    def at(self, time_s: float, call: Callable[[float], None]) -> None:
        """Call at a time; calls of one time in the order in which they were made."""
        heapq.heappush(self._heap, (time_s, next(self._numbers), call))

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Until every request has its outcome."""
        for arrival in arrivals:
            self._unfinished += 1
            self.at(arrival.at_s, partial(self._ask_first, arrival.turn))
        while self._unfinished:
            self.now_s, _, call = heapq.heappop(self._heap)
            call(self.now_s)
        for router in self._routers:
            router.core.validate()
        return self.outcomes

    # -- clients

    def _ask_first(self, turn: Turn, now_s: float) -> None:
        outcome = Outcome(len(self.outcomes), turn, now_s)
        self.outcomes.append(outcome)
        self._ask(outcome, now_s)

    def _ask(self, outcome: Outcome, now_s: float) -> None:
        turn = outcome.turn
        outcome.tries += 1
        outcome.places += outcome.has_place
        outcome.arrived_at_s, outcome.has_promise = now_s, False
        number = next(self._numbers)
        request = Request(
            id=RequestId(f"r{number}"),
            model=MODEL,
            route=CHAT_ROUTE,
            num_prompt_tokens=turn.num_prompt_tokens,
            max_output_tokens=turn.max_output_tokens,
            can_hand_off=True,
            terms=turn.terms if self._clients.admission else UNPROMISED,
            tokens_counted=True,
            digest=outcome.number.to_bytes(8, "little"),
            session=turn.session,
        )
        size = self._fleet.hardware.block_size_tokens
        levels = self._index.match(turn.chain[: turn.num_prompt_tokens // size])
        router = self._routers[self._rng.randrange(len(self._routers))]
        self._open[request.id] = outcome
        self._tell(router, RequestArrived(request, Overlap(size, levels)), now_s)

    def _over(self, request_id: RequestId, now_s: float, *, answered: bool) -> None:
        """A turn has its outcome; an answered client may go on."""
        outcome = self._open.pop(request_id)
        turn = outcome.turn
        if answered and turn.next is not None:
            self.at(now_s + turn.think_s, partial(self._ask_first, turn.next))
        else:
            self._unfinished -= 1

    # -- routers

    def _tell(self, router: _Router, event: Event, now_s: float) -> None:
        for command in router.core.handle(event, now_s):
            match command:
                case Dispatch(decision):
                    self._dispatch(decision, router, now_s)
                case Hold(request_id, promised):
                    self._open[request_id].has_promise = promised
                case Reject():
                    self._reject(command, now_s)
                case Abort():
                    raise AssertionError("no worker leaves a simulation")
        wakes_at_s = router.core.next_wakeup_s(now_s)
        if wakes_at_s is not None and wakes_at_s < router.wakes_at_s:
            router.wakes_at_s = wakes_at_s
            self.at(wakes_at_s, partial(self._wake, router))

    def _wake(self, router: _Router, now_s: float) -> None:
        if now_s >= router.wakes_at_s:
            router.wakes_at_s = math.inf
            self._tell(router, Woken(), now_s)

    def _reject(self, reject: Reject, now_s: float) -> None:
        outcome = self._open[reject.request_id]
        outcome.reject = reject.reason
        outcome.promises_dropped += outcome.has_promise
        outcome.has_place = "a place is kept" in reject.detail
        if reject.retry_after_s is not None and outcome.tries <= self._clients.come_back:
            del self._open[reject.request_id]
            self.at(now_s + math.ceil(reject.retry_after_s), partial(self._ask, outcome))
        else:
            self._over(reject.request_id, now_s, answered=False)

    def _exchange(self, now_s: float) -> None:
        reports = {router.name: router.core.report(router.name, now_s) for router in self._routers}
        for router in self._routers:
            others = tuple(report for name, report in reports.items() if name != router.name)
            self._tell(router, ReplicasReported(others, len(self._routers)), now_s)
        self.at(now_s + self._fleet.exchange_s, self._exchange)

    # -- workers

    def _dispatch(self, decision: RoutingDecision, router: _Router, now_s: float) -> None:
        outcome = self._open[decision.request_id]
        outcome.decision, outcome.reject = decision, None
        outcome.promises_dropped += outcome.has_promise and not decision.promised
        outcome.places_kept += outcome.has_place and decision.promised
        outcome.has_place = False
        prefill_on = self.workers[(decision.prefill or decision.decode).spec.id]
        prefill_on.dispatches.append(now_s)
        if decision.prefill is None:
            self._decode(decision, router, now_s, kv_comes=False)
            return
        turn = outcome.turn

        def prefilled(job: Job, at_s: float) -> None:
            outcome.cached_tokens = job.cached_tokens
            self._tell(router, PrefillDone(decision.request_id, decision.attempt, job.cached_tokens), at_s)
            self._decode(decision, router, at_s, kv_comes=True)

        chain = turn.chain[: turn.num_prompt_tokens // self._fleet.hardware.block_size_tokens]
        job = Job(decision.request_id, decision.attempt, turn.num_prompt_tokens, 1, chain, lambda *_: None, prefilled)
        job.kind = turn.terms.class_name
        prefill_on.engine.submit(job, now_s)

    def _decode(self, decision: RoutingDecision, router: _Router, now_s: float, *, kv_comes: bool) -> None:
        outcome = self._open[decision.request_id]
        turn, request_id, attempt = outcome.turn, decision.request_id, decision.attempt

        def first_token(job: Job, at_s: float) -> None:
            outcome.first_token_at_s = at_s
            if not kv_comes:
                outcome.cached_tokens = job.cached_tokens
            self._tell(router, FirstToken(request_id, attempt), at_s)

        def done(job: Job, at_s: float) -> None:
            outcome.done_at_s = at_s
            usage = Usage(turn.num_prompt_tokens, outcome.cached_tokens, turn.num_output_tokens)
            self._tell(router, RequestDone(request_id, attempt, usage), at_s)
            self._over(request_id, at_s, answered=True)

        job = Job(request_id, attempt, turn.num_prompt_tokens, turn.num_output_tokens, turn.chain, first_token, done)
        job.kv_comes, job.kind = kv_comes, turn.terms.class_name
        self.workers[decision.decode.spec.id].engine.submit(job, now_s)

    def _publish(self, worker: SimWorker, now_s: float) -> None:
        """What an engine's cache gained and lost reaches the index a little later."""
        removed, stored = worker.engine.cache.changes()
        if not removed and not stored:
            return

        def apply(at_s: float) -> None:
            self._index.remove(worker.slot, removed)
            self._index.store(worker.slot, stored)

        self.at(now_s + self._fleet.index_delay_s, apply)

    def _beat(self, worker: SimWorker, now_s: float) -> None:
        for router in self._routers:
            self._tell(router, WorkerChanged(worker.state()), now_s)
        self.at(now_s + self._fleet.heartbeat_s, partial(self._beat, worker))

    def _start(self) -> None:
        for router in self._routers:
            for worker in self.workers.values():
                self._tell(router, WorkerChanged(worker.state()), 0.0)
                self._tell(router, SlotsChanged(worker.spec.id, (worker.slot, -1, -1)), 0.0)
        for worker in self.workers.values():
            worker.engine.on_blocks = partial(self._publish, worker)
            self.at(self._rng.random() * self._fleet.heartbeat_s, partial(self._beat, worker))
        if self._fleet.num_routers > 1 and self._fleet.exchange_s < math.inf:
            self._exchange(0.0)
