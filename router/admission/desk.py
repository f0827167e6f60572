"""Who is let in, who waits, who is told to come back: the queues, shares and places of all model pools. Pure.

The order of the calls is that of `router/admission/admission.py`; this module makes them on behalf of the core.

Invariants
 1. A request waits in at most one queue, from `arrived` (an `Admitted` that is not `at_once`) until `dispatched`,
    `cancelled` or `expired` names it.
 2. A tenant that was charged for a promise gets the charge back if the request leaves before it is dispatched.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from msgspec import Struct, structs

from kvstore.types import RequestId
from router.admission import admission
from router.admission.admission import Admit, Cause, Outlook, Rules, Standing, Wait
from router.admission.appointments import Appointments, Ask
from router.admission.fairness import TenantShares, TenantUsage
from router.admission.queue import PoolWork, QueueEntry, WaitingQueue
from router.choice.decode_room import DecodeRoom
from router.events import RejectReason
from router.fleet.table import Column
from router.slo_settings import SloSettings
from router.types import Forecast, ReplicaReport, Request, TenantWork

_BROKEN_SHARE = 0.02  # of promises; forecasts are never that good, margins can be
_MARGIN_STEP = 0.02
_MOST_EXTRA_MARGIN = 1.0
_LEAST_WORK_S = 1e-6  # of a prompt that is in the cache: nothing is free


class PoolState(Struct, frozen=True):
    """The workers that would compute a prompt, as one server, and how the request finds them."""

    free_in_s: Column  # for each of them, or of our share: until it has done what all replicas sent to it
    is_open: bool  # the chosen worker takes work now
    idle_tpot_s: float  # of the best worker if it did nothing else
    has_room: bool  # some decode batch takes it now
    kv_is_short: bool  # where it does not: for want of KV blocks rather than by a TPOT
    decode_room: Callable[[], DecodeRoom]  # for requests like it; costs as much as the rest of the forecast
    late_s: float  # by which forecasts are too short, nine times of ten


class Admitted(Struct, frozen=True):
    """Let in. `at_once`: nothing goes before it; else it waits here."""

    at_once: bool
    promised: bool
    why: str


class Refused(Struct, frozen=True):
    """Turned away, or given up after waiting."""

    request_id: RequestId
    reason: RejectReason
    detail: str
    retry_after_s: float | None


class _Waiting(Struct):
    request: Request
    entry: QueueEntry
    charged_at_s: float | None  # None: nothing was promised


class _Pool:
    """One model's queue and places."""

    def __init__(self, settings: SloSettings, rules: Rules) -> None:
        given = settings.appointments
        self.rules = rules  # with a margin of its own: see `AdmissionDesk.began`
        self.queue = WaitingQueue(settings.best_effort_every)
        self.places = Appointments(given.share, given.grace_s, given.horizon_s, given.max_places, given.tenant_share)
        self.others_waiting_s = 0.0


class AdmissionDesk:
    """All pools of one router. Only the core calls it."""

    def __init__(self, settings: SloSettings, *, pause_s: float = 2.0) -> None:
        """`pause_s`: what a client is told to wait where the model foresees nothing."""
        fair = settings.fairness
        self._settings = settings
        self._pause_s = pause_s
        self._rules = Rules(
            margin=settings.safety_margin,
            over_share_fill=fair.over_share_fill,
            lower_value_fill=settings.lower_value_fill,
            top_value=settings.top_value,
            max_queued=settings.max_queued,
        )
        self._shares = TenantShares(fair.half_life_s, fair.window_s, fair.max_tenants)
        self._pools: dict[str, _Pool] = {}
        self._waiting: dict[RequestId, _Waiting] = {}
        self._replicas: set[str] = set()

    # -- in

    def arrived(self, request: Request, forecast: Forecast, pool_state: PoolState, now_s: float) -> Admitted | Refused:
        """Decide on a request for which `forecast` is the best choice there is now."""
        pool = self._pools.get(request.model)
        if pool is None:
            pool = self._pools[request.model] = _Pool(self._settings, self._rules)
        terms, cost_s = request.terms, max(_LEAST_WORK_S, forecast.work_s)
        due_in_s = pool.places.due_in_s(terms.tenant, request.digest, now_s)
        if due_in_s is None:  # who comes back asks for the same as before
            self._shares.asked(terms.tenant, terms.weight, cost_s, now_s)
        ttft_s, late_s = forecast.ttft_s, pool_state.late_s
        own_s = ttft_s - forecast.queue_s + late_s
        outlook = Outlook(
            ttft_s + late_s, cost_s, own_s, pool_state.idle_tpot_s, pool_state.kv_is_short, pool_state.is_open
        )
        work = self._pool_work(pool, pool_state)
        standing = self._standing(request, is_due=due_in_s == 0.0, now_s=now_s)
        decision = admission.decide(standing, outlook, pool.queue, work, pool.rules, now_s)
        if isinstance(decision, admission.Reject):
            return self._refuse(
                request, decision, outlook, pool, work, work.decode or pool_state.decode_room(), due_in_s, now_s
            )
        entry = QueueEntry(
            request_id=request.id,
            tenant=terms.tenant,
            weight=terms.weight,
            cost_s=cost_s,
            own_s=outlook.own_s,
            deadline_at_s=now_s + terms.slo.ttft_s if decision.is_promised else None,
            expires_at_s=now_s + terms.deadline_s,
        )
        charged_at_s = None
        if decision.is_promised:
            pool.places.take(terms.tenant, request.digest)
            self._shares.charge(terms.tenant, cost_s, now_s)
            charged_at_s = now_s
        if isinstance(decision, Admit):
            self._waiting[request.id] = _Waiting(request, entry, charged_at_s)
        else:
            self._wait(pool, _Waiting(request, entry, charged_at_s))
        return Admitted(isinstance(decision, Admit), decision.is_promised, _why(decision))

    def is_due(self, request: Request, now_s: float) -> bool:
        """Its client was told to come back, and came in time."""
        pool = self._pools.get(request.model)
        return pool is not None and pool.places.due_in_s(request.terms.tenant, request.digest, now_s) == 0.0

    def wait(self, request_id: RequestId) -> None:
        """One that was admitted at once finds no open worker after all: it waits here."""
        waiting = self._waiting[request_id]
        if request_id not in self._pools[waiting.request.model].queue:
            self._wait(self._pools[waiting.request.model], waiting)

    # -- out

    def order(self, model: str, now_s: float, limit: int) -> list[RequestId]:
        """The next up to `limit` requests in serving order."""
        pool = self._pools.get(model)
        return [entry.request_id for entry in pool.queue.order(now_s, limit)] if pool else []

    def dispatched(self, request_id: RequestId) -> None:
        """It has been sent to a worker."""
        waiting = self._waiting.pop(request_id)
        self._pools[waiting.request.model].queue.served(waiting.entry)

    def cancelled(self, request_id: RequestId, now_s: float) -> None:
        """It leaves unserved."""
        waiting = self._waiting.pop(request_id)
        self._pools[waiting.request.model].queue.remove(request_id)
        self._refund(waiting, now_s)

    def expired(self, now_s: float) -> list[Refused]:
        """Take out those that have waited too long. A broken promise may still be worth keeping late."""
        refused = []
        for model, pool in self._pools.items():
            for entry in pool.queue.expire(now_s):
                if entry.deadline_at_s is not None:
                    self.began(model, in_time=False)
                waiting = self._waiting.pop(entry.request_id)
                self._refund(waiting, now_s)
                request = waiting.request
                if entry.expires_at_s > now_s and request.terms.best_effort_ok:
                    late = structs.replace(entry, deadline_at_s=None)
                    self._wait(pool, _Waiting(request, late, charged_at_s=None))
                    continue
                limit_s = request.terms.deadline_s if entry.expires_at_s <= now_s else request.terms.slo.ttft_s
                detail = f"it waited {limit_s:g} s, as long as it was worth (class {request.terms.class_name!r})"
                refused.append(Refused(request.id, RejectReason.EXPIRED, detail, self._pause_s))
        return refused

    def began(self, model: str, in_time: bool) -> None:
        """A promised request's first token has come: in time, or not (any more).

        The margin follows, so that one promise in fifty is broken whatever it is that forecasts do not know: adaptive
        conformal inference (Gibbs, Candes 2021), with the margin in place of the quantile.
        """
        pool = self._pools.get(model)
        if pool is not None:
            step = _MARGIN_STEP * (-_BROKEN_SHARE if in_time else 1.0 - _BROKEN_SHARE)
            most = self._rules.margin + _MOST_EXTRA_MARGIN
            margin = min(most, max(self._rules.margin, pool.rules.margin + step))
            if margin != pool.rules.margin:
                pool.rules = replace(pool.rules, margin=margin)

    # -- what is there

    @property
    def num_waiting(self) -> int:
        """Requests in the queues."""
        return len(self._waiting)

    def waiting(self) -> set[RequestId]:
        """Their ids."""
        return set(self._waiting)

    def is_promised(self, request_id: RequestId) -> bool:
        """Whether a waiting request has a promise (still)."""
        return self._waiting[request_id].entry.deadline_at_s is not None

    def models(self) -> list[str]:
        """Models with requests that wait."""
        return [model for model, pool in self._pools.items() if len(pool.queue)]

    def next_expiry_s(self) -> float:
        """The next instant at which a waiting request expires; inf: none waits."""
        times = [pool.queue.next_expiry_s() for pool in self._pools.values()]
        return min((at_s for at_s in times if at_s is not None), default=math.inf)

    # -- replicas

    def set_remote(self, reports: Iterable[ReplicaReport], now_s: float) -> None:
        """What the other replicas have waiting, and what their tenants had."""
        for pool in self._pools.values():
            pool.others_waiting_s = 0.0
        seen = set()
        for report in reports:
            seen.add(report.replica_id)
            usage = {item.tenant: TenantUsage(item.used_s, item.asked_s, item.weight) for item in report.tenants}
            self._shares.set_remote(report.replica_id, usage, now_s)
            for model, waiting_s in report.waiting:
                if model in self._pools:
                    self._pools[model].others_waiting_s += waiting_s
        for replica_id in self._replicas - seen:
            self._shares.forget(replica_id)
        self._replicas = seen

    def waiting_work(self) -> tuple[tuple[str, float], ...]:
        """By model, seconds of promised work that waits here."""
        return tuple((model, pool.queue.demand_before(math.inf)) for model, pool in self._pools.items())

    def tenant_work(self, now_s: float) -> tuple[TenantWork, ...]:
        """What our tenants had."""
        usage = self._shares.report(now_s)
        return tuple(TenantWork(name, item.used_s, item.asked_s, item.weight) for name, item in usage.items())

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        queued = 0
        for pool in self._pools.values():
            pool.queue.validate()
            pool.places.validate()
            queued += len(pool.queue)
        assert queued == len(self._waiting), "invariant 1: a request lost by its queue, or kept by it"
        self._shares.validate()

    # -- steps

    def _standing(self, request: Request, *, is_due: bool, now_s: float) -> Standing:
        terms, slo = request.terms, request.terms.slo
        share, expires_at_s = self._shares.share(terms.tenant, now_s), now_s + terms.deadline_s
        best_effort_ok, is_implicit = terms.best_effort_ok, request.terms_implicit
        return Standing(slo.ttft_s, slo.tpot_s, terms.value, expires_at_s, best_effort_ok, is_implicit, share, is_due)

    def _pool_work(self, pool: _Pool, state: PoolState) -> PoolWork:
        is_alone = state.has_room and not pool.queue.num_promised and not len(pool.places)
        free_in_s = state.free_in_s
        if pool.others_waiting_s:
            free_in_s = free_in_s + pool.others_waiting_s / len(free_in_s)
        return PoolWork(free_in_s, pool.places.aside(), None if is_alone else state.decode_room())

    def _refuse(
        self,
        request: Request,
        decision: admission.Reject,
        outlook: Outlook,
        pool: _Pool,
        work: PoolWork,
        room: DecodeRoom,
        due_in_s: float | None,
        now_s: float,
    ) -> Refused:
        tenant = request.terms.tenant
        if decision.ask_again_in_s is None:
            return _refused(request, decision)
        if due_in_s is not None and due_in_s > 0.0:  # too early: its place stays
            detail = f"{decision.detail}; a place is kept for it from {due_in_s:.1f} s on"
            return _refused(request, structs.replace(decision, detail=detail, retry_after_s=due_in_s))
        pool.places.take(tenant, request.digest)
        not_before_s = decision.ask_again_in_s
        if math.isinf(not_before_s):
            return _refused(request, structs.replace(decision, retry_after_s=self._pause_s))
        if decision.cause is Cause.OVER_SHARE:
            not_before_s = max(not_before_s, self._shares.back_in_s(tenant, now_s))
        allowed_s = decision.basis.allowed_ttft_s if decision.basis else request.terms.slo.ttft_s
        ask = Ask(
            tenant=tenant,
            key=request.digest,
            cost_s=outlook.cost_s,
            ttft_s=request.terms.slo.ttft_s,
            wait_s=max(0.0, allowed_s - outlook.own_s),
            blocked_s=max(pool.queue.blocked_s(work.speed), room.blocked_s),
            ends_per_s=room.speed,
            fraction=self._shares.fraction(tenant, now_s),
            not_before_s=not_before_s,
        )
        # Without the place that was just given back.
        work = structs.replace(work, aside=pool.places.aside(), decode=room)
        offer = pool.places.offer(ask, lambda new: pool.queue.probe(new, work, now_s), work.speed, now_s)
        return _refused(request, decision.with_offer(offer))

    def _wait(self, pool: _Pool, waiting: _Waiting) -> None:
        self._waiting[waiting.request.id] = waiting
        pool.queue.push(waiting.entry)

    def _refund(self, waiting: _Waiting, now_s: float) -> None:
        if waiting.charged_at_s is not None:
            self._shares.refund(waiting.entry.tenant, waiting.entry.cost_s, waiting.charged_at_s, now_s)


def _refused(request: Request, decision: admission.Reject) -> Refused:
    return Refused(request.id, RejectReason(decision.cause.value), decision.detail, decision.retry_after_s)


def _why(decision: Admit | Wait) -> str:
    """Admission's word on a request, for its explanation."""
    basis = decision.basis
    text = (
        f"predicted TTFT {basis.predicted_ttft_s:.3f} s of {basis.allowed_ttft_s:.3f} s allowed, "
        f"wait {basis.wait_s:.3f} s of {basis.allowed_wait_s:.3f} s, {basis.num_ahead} promise(s) ahead"
    )
    return f"{decision.detail}; {text}" if decision.detail else text
