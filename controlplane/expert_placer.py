"""Keeps the experts of expert-parallel engines where their load is: collect, decide, place. Part of the control plane.

Invariants
 1. What an engine holds is what it reported last, never what was sent to it.
 2. A window of load is the difference of two reports of one epoch of an engine: of logical experts, wherever they were.
    An engine that was restarted, because it lost a rank or for another reason, begins anew; the placement that it had
    is put back.
 3. One placement is under way at a time. One that fails, or that an engine refuses, changes nothing here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from controlplane.class_loads import ClassLoads, ClassStatus
from controlplane.placement.load_history import LoadHistory, drift
from controlplane.placement.loads import ExpertLoadWindow
from controlplane.placement.objective import balancedness, rank_loads
from controlplane.placement.parts import parts_of, shares_of
from controlplane.placement.rebalance import Decision, Rebalancer
from controlplane.placement.settings import ExpertSettings
from controlplane.placement.split import fast_shares
from controlplane.placement.types import Placement, PlacementError, Tokens, Topology
from kvstore.errors import RedisUnavailableError
from kvstore.types import WorkerId
from router.interval import wait_at_most
from workers.errors import WorkerError
from workers.expert_client import ExpertClient, NoExpertsError
from workers.expert_placement import ExpertReport, PlacementReply
from workers.types import Phase, WorkerState

_log = logging.getLogger(__name__)
_ALL = "all"  # engines do not tell whose tokens they route: controlplane/class_loads.py
_WINDOWS = 64  # of an engine, to be planned for and replayed by `headrace experts`


class Evenness(msgspec.Struct, frozen=True):
    """Balancedness of one window of load: even load over the slowest rank's, by layer."""

    mean: float
    worst: float
    worst_layer: int


class EngineStatus(msgspec.Struct, frozen=True):
    """One expert-parallel engine, as operators see it."""

    worker: str
    model: str
    ranks: int
    slots_per_rank: int
    placements: int  # applied since its start
    tokens: int  # routed to experts since then, of all layers
    window_s: float  # of the load that was looked at last; 0: none yet
    drift: float | None  # of it against the window before: part of the tokens that went elsewhere, beyond chance
    balancedness: Evenness | None
    classes: Sequence[ClassStatus]  # of that window's traffic; empty where routers tell of none
    decision: str  # the last one, with its numbers
    slots: Sequence[Sequence[int]]


@dataclass(slots=True)
class _Engine:
    """What is known of one."""

    worker: WorkerState
    report: ExpertReport  # the latest
    since: ExpertReport  # that the window under way began with
    since_at_s: float
    rebalancer: Rebalancer
    history: LoadHistory
    window_s: float = 0.0
    drift: float | None = None
    evenness: Evenness | None = None
    classes: Sequence[ClassStatus] = ()
    decision: str = "too little load so far"


async def _no_routers() -> Mapping[str, bytes]:
    return {}


@dataclass
class ExpertPlacer:
    """Run `run()` as a task, end it with `stop()`."""

    client: ExpertClient
    settings: ExpertSettings
    workers: Callable[[], Iterable[WorkerState]]  # the fleet's engines now
    class_tokens: Callable[[], Awaitable[Mapping[str, bytes]]] = (
        _no_routers  # what routers say (router/class_tokens.py)
    )
    _engines: dict[WorkerId, _Engine] = field(default_factory=dict)
    _dense: dict[WorkerId, int] = field(default_factory=dict)  # have no experts to place, in this epoch
    _placing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._classes = ClassLoads(self.settings.class_half_life_s, num_windows=_WINDOWS)

    async def run(self) -> None:
        """Look at all engines every `interval_s`."""
        while not self._stopping.is_set():
            await self.look(time.monotonic())
            await wait_at_most(self._stopping, self.settings.interval_s)

    def stop(self) -> None:
        """Let `run` end."""
        self._stopping.set()

    async def look(self, now_s: float) -> None:
        """One report of each engine, and what follows from it. Failures are logged: the next look is soon."""
        fleet = {worker.spec.id: worker for worker in self.workers()}
        ready = {worker_id: worker for worker_id, worker in fleet.items() if worker.phase is Phase.READY}
        for worker_id in [known for known in self._engines if known not in fleet]:
            del self._engines[worker_id]
            self._classes.forget(worker_id)
        try:
            self._classes.counts.take_in(await self.class_tokens())
        except RedisUnavailableError as error:
            _log.info("classes of traffic: %s", error)
        for worker_id, worker in ready.items():
            if self._dense.get(worker_id) == worker.spec.epoch:
                continue
            try:
                report = await self.client.report(worker)
            except NoExpertsError:
                self._dense[worker_id] = worker.spec.epoch
                continue
            except WorkerError as error:
                _log.info("experts of %s: %s", worker_id, error)
                continue
            try:
                await self._take_in(worker, report, now_s)
            except (PlacementError, WorkerError) as error:
                _log.warning("experts of %s: %s", worker_id, error)
                if worker_id in self._engines:  # else no plan can be made for an engine of this shape
                    self._engines[worker_id].decision = f"failed: {error}"

    async def place(self, worker_id: WorkerId, placement: Placement) -> PlacementReply:
        """Put experts where an operator wants them. Raises KeyError, PlacementError and WorkerError."""
        engine = self._engines[worker_id]
        topology = engine.rebalancer.topology
        if placement.slots.shape[1] != topology.num_slots or placement.slots_per_rank != topology.slots_per_rank:
            raise PlacementError(
                f"the plan has {placement.slots.shape[1]} slots, {placement.slots_per_rank} on a rank; {worker_id} has"
                f" {topology.num_slots}, {topology.slots_per_rank} on a rank"
            )
        reply = await self._send(engine, placement)
        engine.decision = "an operator's plan was applied"
        return reply

    def loads(self, worker_id: WorkerId) -> list[ExpertLoadWindow]:
        """The latest windows of an engine's load. Raises KeyError."""
        history = self._engines[worker_id].history
        return history.windows(_ALL) if _ALL in history.traffic_classes else []

    def class_loads(self, worker_id: WorkerId) -> list[ExpertLoadWindow]:
        """The same in sum, as it is likely to divide by class of traffic. Raises KeyError."""
        return self._classes.loads(self._engines[worker_id].worker.spec.id)

    def status(self) -> list[EngineStatus]:
        """All engines, by id."""
        return [
            EngineStatus(
                worker=worker_id,
                model=engine.worker.spec.model,
                ranks=engine.report.ranks,
                slots_per_rank=engine.report.slots_per_rank,
                placements=engine.report.placements,
                tokens=sum(map(sum, engine.report.expert_tokens)),
                window_s=engine.window_s,
                drift=engine.drift,
                balancedness=engine.evenness,
                classes=engine.classes,
                decision=engine.decision,
                slots=engine.report.slots,
            )
            for worker_id, engine in sorted(self._engines.items())  # also of those that are being restarted
        ]

    async def _take_in(self, worker: WorkerState, report: ExpertReport, now_s: float) -> None:
        engine = self._engines.get(worker.spec.id)
        if engine is None or engine.report.epoch != report.epoch:
            known = self._engines[worker.spec.id] = self._begin(worker, report, now_s)
            self._classes.begin(worker.spec.id)
            if engine is not None:
                await self._put_back(known, engine)
            return
        engine.worker, engine.report = worker, report
        tokens = _window(engine.since, report)
        if tokens.sum(axis=1).min() < self.settings.min_tokens_per_expert * report.experts:
            return
        engine.window_s = now_s - engine.since_at_s
        engine.since, engine.since_at_s = report, now_s
        self._remember(engine, tokens, time.time())
        await self._decide(engine, tokens, now_s)

    def _remember(self, engine: _Engine, tokens: Tokens, at_s: float) -> None:
        known = self.loads(engine.worker.spec.id)
        engine.drift = drift(known[-1].tokens, tokens) if known else None
        spec = engine.worker.spec
        window = ExpertLoadWindow(spec.model, spec.id, engine.report.epoch, _ALL, engine.window_s, at_s, tokens)
        engine.history.add(window, at_s)
        self._classes.end(window)

    def _begin(self, worker: WorkerState, report: ExpertReport, now_s: float) -> _Engine:
        per_node = self.settings.ranks_per_node or report.ranks
        topology = Topology.even(max(1, report.ranks // per_node), report.ranks, report.slots_per_rank)
        rebalancer = Rebalancer(
            topology,
            self.settings.prices(1.0),
            _held(report),
            aim=self.settings.aim(),
            max_moves=self.settings.max_moves,
        )
        history = LoadHistory(self.settings.horizon_s, num_windows=_WINDOWS)
        return _Engine(worker, report, report, now_s, rebalancer, history)

    async def _put_back(self, engine: _Engine, before: _Engine) -> None:
        """The loads of a moment ago are better known than any to come soon."""
        old, new = before.report, engine.report
        if (old.ranks, old.slots_per_rank, old.experts) != (new.ranks, new.slots_per_rank, new.experts):
            return
        engine.rebalancer.forecast, engine.history = before.rebalancer.forecast, before.history
        if old.slots == new.slots or self.settings.mode != "apply":
            return
        await self._send(engine, _held(old))
        engine.decision = "it was restarted: the placement that it had is put back"
        _log.info("experts of %s: %s", engine.worker.spec.id, engine.decision)

    async def _decide(self, engine: _Engine, tokens: Tokens, now_s: float) -> None:
        held, rebalancer = _held(engine.report), engine.rebalancer
        values = balancedness(held, rebalancer.topology, tokens)
        engine.evenness = Evenness(float(values.mean()), float(values.min()), int(values.argmin()))
        rebalancer.placement = held
        rebalancer.prices = self.settings.prices(float(tokens.sum(axis=1).mean()) / engine.window_s)
        # A large model takes a second: other engines and the admin API go on.
        decision = await asyncio.to_thread(self._decided, engine, tokens, now_s)
        engine.classes = self._classes.status(engine.worker.spec.id, held, rebalancer.topology)
        engine.decision = decision.reason
        chosen = decision.plan.placement if decision.is_move else self._divided_anew(engine, held, tokens)
        if chosen is None:
            return
        if self.settings.mode != "apply":
            engine.decision += f" (experts.mode is {self.settings.mode}: not done)"
            return
        _log.info("experts of %s: %s", engine.worker.spec.id, engine.decision)
        await self._send(engine, chosen)

    def _decided(self, engine: _Engine, tokens: Tokens, now_s: float) -> Decision:
        others = self._classes.scenarios(engine.worker.spec.id)
        return engine.rebalancer.observe(tokens, now_s, engine.window_s, others)

    def _divided_anew(self, engine: _Engine, held: Placement, tokens: Tokens) -> Placement | None:
        """What is held, with the tokens of experts that have several slots divided as is best; None: not worth it."""
        ahead = engine.rebalancer.forecast.next()
        if self.settings.split != "best" or ahead is None:
            return None
        topology = engine.rebalancer.topology
        ahead = ahead * (tokens.sum(axis=1, keepdims=True) / engine.window_s)  # a second
        better = replace(held, shares=fast_shares(held, topology, ahead))
        better = replace(held, shares=shares_of(held.slots, parts_of(better), held.num_experts))
        slowest = [rank_loads(placement, topology, ahead).max(axis=1).sum() for placement in (held, better)]
        saved_s = (slowest[0] - slowest[1]) * self.settings.expert_s_per_token * self.settings.horizon_s
        if saved_s <= self.settings.pause_s:
            return None
        engine.decision += f"; dividing tokens anew saves {saved_s:.3g} s over {self.settings.horizon_s:g} s"
        return better

    async def _send(self, engine: _Engine, placement: Placement) -> PlacementReply:
        parts = None if placement.shares is None else parts_of(placement).tolist()
        async with self._placing:
            return await self.client.place(engine.worker, placement.slots.tolist(), parts)


def _window(before: ExpertReport, after: ExpertReport) -> Tokens:
    return np.array(after.expert_tokens, dtype=np.float64) - np.array(before.expert_tokens, dtype=np.float64)


def _held(report: ExpertReport) -> Placement:
    """What the engine holds, and how it divides tokens."""
    slots, parts = np.array(report.slots, dtype=np.int64), np.array(report.parts, dtype=np.int64)
    return Placement(slots, report.experts, report.slots_per_rank, shares_of(slots, parts, report.experts))
