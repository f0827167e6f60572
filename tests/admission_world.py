"""A pool of workers in a world where every forecast is true, in front of it the admission modules in the order of calls
that `router/admission/admission.py` asks for. Virtual time; nothing random but what a test puts in."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from kvstore.types import RequestId
from router.admission.admission import Admit, Decision, Outlook, Reject, Rules, Standing, Wait, decide
from router.admission.appointments import Appointments, Ask
from router.admission.fairness import Share, TenantShares
from router.admission.queue import PoolWork, QueueEntry, WaitingQueue


@dataclass(frozen=True)
class Job:
    """One client's request. Its own time is its cost: a worker does one at a time."""

    key: bytes
    tenant: str
    cost_s: float
    ttft_s: float = 10.0
    value: float = 1.0
    weight: float = 1.0
    deadline_s: float = 60.0
    best_effort_ok: bool = False
    returns: bool = False  # comes back exactly when it is told to


@dataclass
class Visit:
    """One arrival and what became of it."""

    job: Job
    at_s: float
    had_place: bool  # it came back to a place that was kept for it
    decision: Decision
    started_at_s: float | None = None
    gone_at_s: float | None = None  # expired in the queue

    @property
    def is_promised(self) -> bool:
        return isinstance(self.decision, Admit | Wait) and self.decision.is_promised

    @property
    def is_late(self) -> bool:
        """A promise that was broken."""
        if not self.is_promised:
            return False
        return self.started_at_s is None or self.started_at_s + self.job.cost_s > self.at_s + self.job.ttft_s + 1e-6


@dataclass
class World:
    """`speed` workers, one queue."""

    speed: int = 1
    rules: Rules = field(default_factory=Rules)
    queue: WaitingQueue = field(default_factory=WaitingQueue)
    shares: TenantShares = field(default_factory=TenantShares)
    places: Appointments = field(default_factory=Appointments)
    is_fair: bool = True
    visits: list[Visit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free_at_s = [0.0] * self.speed
        self._events: list[tuple[float, int, Job | None]] = []
        self._order = count()
        self._waiting: dict[RequestId, Visit] = {}

    def run(self, arrivals: Iterable[tuple[float, Job]], until_s: float) -> None:
        """Let jobs arrive at their times, and the workers work, until a time."""
        for at_s, job in arrivals:
            heapq.heappush(self._events, (at_s, next(self._order), job))
        for number in count(1):
            if not self._events or self._events[0][0] > until_s:
                break
            now_s, _, arriving = heapq.heappop(self._events)
            if arriving is not None:
                self._arrive(arriving, now_s)
            self._pump(now_s)
            if number % 200 == 0:
                self.validate()
        self.validate()

    def validate(self) -> None:
        """Every module's invariants."""
        self.queue.validate()
        self.shares.validate()
        self.places.validate()

    def work_s(self, since_s: float = 0.0) -> dict[str, float]:
        """Work started, by tenant, of what arrived since a time."""
        done: dict[str, float] = {}
        for visit in self.visits:
            if visit.started_at_s is not None and visit.at_s >= since_s:
                done[visit.job.tenant] = done.get(visit.job.tenant, 0.0) + visit.job.cost_s
        return done

    def _arrive(self, job: Job, now_s: float) -> None:
        due_in_s = self.places.due_in_s(job.tenant, job.key, now_s)
        if due_in_s is None:
            self.shares.asked(job.tenant, job.weight, job.cost_s, now_s)
        standing = Standing(
            job.ttft_s,
            float("inf"),
            job.value,
            now_s + job.deadline_s,
            job.best_effort_ok,
            share=self.shares.share(job.tenant, now_s) if self.is_fair else Share.FREE,
            is_due=due_in_s == 0.0,
        )
        pool = self._pool(now_s)
        wait_s = max(0.0, min(self._free_at_s) - now_s)
        outlook = Outlook(wait_s + job.cost_s, job.cost_s, job.cost_s, is_open=wait_s == 0.0)
        decision = decide(standing, outlook, self.queue, pool, self.rules, now_s)
        if isinstance(decision, Reject):
            decision = self._turn_away(job, decision, pool, due_in_s, now_s)
        elif decision.is_promised:
            self.places.take(job.tenant, job.key)
            self.shares.charge(job.tenant, job.cost_s, now_s)
        visit = Visit(job, now_s, due_in_s == 0.0, decision)
        self.visits.append(visit)
        if isinstance(decision, Reject):
            return
        deadline_at_s = now_s + job.ttft_s if decision.is_promised else None
        entry = QueueEntry(
            RequestId(str(len(self.visits))),
            job.tenant,
            job.weight,
            job.cost_s,
            job.cost_s,
            deadline_at_s,
            standing.expires_at_s,
        )
        if isinstance(decision, Admit):
            self._start(entry, visit, now_s)
        else:
            self._waiting[entry.request_id] = visit
            self.queue.push(entry)

    def _turn_away(self, job: Job, reject: Reject, pool: PoolWork, due_in_s: float | None, now_s: float) -> Reject:
        basis, ask_again_in_s = reject.basis, reject.ask_again_in_s
        if basis is None or ask_again_in_s is None:
            return reject
        if due_in_s:
            reject = replace(reject, retry_after_s=due_in_s, has_place=True)
        else:
            self.places.take(job.tenant, job.key)
            back_in_s = self.shares.back_in_s(job.tenant, now_s) if self.is_fair else 0.0
            ask = Ask(
                job.tenant,
                job.key,
                job.cost_s,
                job.ttft_s,
                wait_s=basis.allowed_ttft_s - job.cost_s,
                blocked_s=self.queue.blocked_s(self.speed),
                fraction=self.shares.fraction(job.tenant, now_s),
                not_before_s=max(ask_again_in_s, back_in_s),
            )
            offer = self.places.offer(ask, lambda item: self.queue.probe(item, pool, now_s), self.speed, now_s)
            reject = reject.with_offer(offer)
        if job.returns:
            assert reject.retry_after_s is not None
            heapq.heappush(self._events, (now_s + reject.retry_after_s, next(self._order), job))
        return reject

    def _pool(self, now_s: float) -> PoolWork:
        return PoolWork(np.maximum(np.array(self._free_at_s) - now_s, 0.0), self.places.aside())

    def _pump(self, now_s: float) -> None:
        for entry in self.queue.expire(now_s):
            visit = self._waiting.pop(entry.request_id)
            visit.gone_at_s = now_s
            if entry.deadline_at_s is not None:
                self.shares.refund(entry.tenant, entry.cost_s, visit.at_s, now_s)
        for entry in self.queue.order(now_s, self.speed):
            if min(self._free_at_s) > now_s:
                return
            self._start(entry, self._waiting.pop(entry.request_id), now_s)

    def _start(self, entry: QueueEntry, visit: Visit, now_s: float) -> None:
        worker = self._free_at_s.index(min(self._free_at_s))
        assert self._free_at_s[worker] <= now_s
        self._free_at_s[worker] = now_s + entry.cost_s
        heapq.heappush(self._events, (now_s + entry.cost_s, next(self._order), None))
        visit.started_at_s = now_s
        self.queue.served(entry)
