"""Can this request be promised its targets without breaking a promise already given? Pure, and without state.

A promise is given when the model says that all of these hold (seconds from now; all numbers are in the answer):

  first token      wait + own time  <=  target / (1 + margin)
  waiting room     wait  <=  fill * (target / (1 + margin) - own time)
  the others       every promise behind it in the queue still starts in time: least slack >= 0

`wait` is for two things, and the later one counts: for the work before it, which is the forecast of the best worker
where one is open and no promise goes first, else the processor-demand test of the queue (`demand.py`); and for room in
a decode batch once those before it have theirs (`decode_room.py`). Both count what is set aside for clients that were
told to come back. `own time` is from being started to the first token on an idle worker. `fill` is below 1 for a class
of less than the highest value and for a tenant over its share: the room they leave is for those who would else find
none. A client that was told to come back, and is in time, has its place already: for it the margins of TTFT and TPOT
are 0, `fill` is 1, and nothing set aside stands in its way.

What cannot be promised waits as best effort if its class says so, else it is turned away. A request whose own time
alone is over its target can never be promised; one that asked for nothing is served without a promise then.

Order of calls, for one model pool with a `WaitingQueue`, a `TenantShares` and an `Appointments`:

on arrival
  1. `appointments.due_in_s(tenant, key, now_s)`: 0.0 makes `Standing.is_due`; None or later is a newcomer
  2. unless it has a place, `shares.asked(tenant, weight, cost_s, now_s)`
  3. `decide(...)`, with `PoolWork.aside` from `appointments.aside()`
  4. Admit, or Wait with a promise: `appointments.take(tenant, key)`, `shares.charge(tenant, cost_s, now_s)`.
     Reject with `ask_again_in_s` not None: if it came early, `retry_after_s` is what `due_in_s` said and its place
     stays. Else `take`, then `rejected.with_offer(appointments.offer(ask, ...))`, the ask with the basis'
     `allowed_ttft_s - own time` for its wait, `queue.blocked_s`, `shares.fraction`, and not before `ask_again_in_s`
     nor `shares.back_in_s`. Where `ask_again_in_s` is inf there is nothing to offer: say the configured pause
  5. Admit: dispatch, then `queue.served(entry)`. Wait: `queue.push(entry)`; promised: deadline_at_s = now_s + target;
     else None. Then pump
on pump (after anything that frees a worker, and at `queue.next_expiry_s`)
  6. `queue.expire(now_s)`: past `expires_at_s` is given up; a promise broken before that may be pushed again without
     its deadline. Either way `shares.refund` if it was charged
  7. for `queue.order(now_s, n)`: dispatch each that finds an open worker, `queue.served(entry)`; stop when none is
     open. A worker is open while little work (a tenth of a second, say) has been sent to it and not done: what is
     sent on can no longer be overtaken or taken back
on cancel
  8. `queue.remove(request_id)`; if it was promised and still there, `shares.refund`
on failure of an attempt
  9. dispatch again past the queue: it was admitted once
on end: nothing. On a report of another replica: `shares.set_remote`, or `shares.forget` when it is gone.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import isinf
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from router.admission.appointments import Offer
from router.admission.fairness import Share
from router.admission.queue import Newcomer, PoolWork, WaitingQueue


class Cause(StrEnum):
    """Why no promise is given."""

    TTFT_INFEASIBLE = "ttft_infeasible"
    TPOT_INFEASIBLE = "tpot_infeasible"
    KV_FULL = "kv_full"
    OVER_SHARE = "over_share"
    QUEUE_FULL = "queue_full"
    DEADLINE_PASSED = "deadline_passed"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator chose."""

    margin: float = 0.1  # forecasts are taken to be this much too short
    over_share_fill: float = 0.5
    lower_value_fill: float = 0.5
    top_value: float = 1.0  # the highest of any class
    max_queued: int = 10_000

    def fill_of(self, share: Share) -> float:
        """Less for a tenant that asks for more than its share, and again less once it has had it.

        With one step only, either those that ask for less would find the room full whenever the others are short, or
        these would not be told apart.
        """
        if share is Share.OVER:
            return self.over_share_fill**2
        return self.over_share_fill if share is Share.SHORT else 1.0


class Standing(NamedTuple):
    """Who asks, as far as it matters here."""

    ttft_s: float  # target; inf: none
    tpot_s: float
    value: float
    expires_at_s: float
    best_effort_ok: bool
    is_implicit: bool = False  # it asked for nothing: the targets are the default class's
    share: Share = Share.FREE
    is_due: bool = False  # it was told to come back, and is in time


class Outlook(NamedTuple):
    """The forecast of the best choice there is now."""

    ttft_s: float  # if dispatched now
    cost_s: float  # work for the pool, above 0
    own_s: float  # from being started to the first token, with nothing in the way
    idle_tpot_s: float = 0.0  # of a worker that does nothing else
    kv_is_short: bool = False  # where decode batches are full: of KV blocks rather than by a TPOT
    is_open: bool = True  # a worker takes work now


class Basis(Struct, frozen=True):
    """The numbers behind an answer, in seconds from now."""

    predicted_ttft_s: float
    allowed_ttft_s: float  # with the margin
    wait_s: float
    allowed_wait_s: float  # with the margin and the fill
    least_slack_s: float  # of the promises behind it; inf: none
    num_ahead: int  # promises that go first
    left_slack_s: float = 0.0  # that it has to leave of it, as it leaves a part of the waiting room
    room_in_s: float = 0.0  # of the wait, until there is room in a decode batch; inf: not foreseen


class Admit(Struct, frozen=True):
    """Dispatch it now. `is_promised`: its targets count from here on. `cause`: why they do not."""

    basis: Basis
    is_promised: bool = True
    cause: Cause | None = None
    detail: str = ""


class Wait(Struct, frozen=True):
    """Into the queue, promised or as best effort. `cause`: why there is no promise."""

    basis: Basis
    is_promised: bool
    cause: Cause | None = None
    detail: str = ""


class Reject(Struct, frozen=True):
    """Turn it away. `ask_again_in_s`: no place before that; inf: not foreseen; None: the same at any time."""

    cause: Cause
    detail: str
    basis: Basis | None = None
    ask_again_in_s: float | None = None
    retry_after_s: float | None = None
    has_place: bool = False

    def with_offer(self, offer: Offer) -> "Reject":
        """With what the client is told about coming back."""
        kept = "a place is kept" if offer.has_place else "no place is kept"
        detail = f"{self.detail}; come back in {offer.retry_after_s} s, {kept} ({offer.detail})"
        return replace(self, detail=detail, retry_after_s=float(offer.retry_after_s), has_place=offer.has_place)


Decision = Admit | Wait | Reject


def decide(
    standing: Standing, outlook: Outlook, queue: WaitingQueue, pool: PoolWork, rules: Rules, now_s: float
) -> Decision:
    """Admit, hold, or turn away. Changes nothing. `pool.aside` does not count for one that `is_due`."""
    if now_s >= standing.expires_at_s:
        return Reject(Cause.DEADLINE_PASSED, "the time in which an answer is wanted has passed")
    basis, is_first = _forecast(standing, outlook, queue, pool, rules, now_s)
    if isinf(standing.ttft_s) and isinf(standing.tpot_s):
        return _without_promise(basis, outlook, queue, rules, (None, "it asked for no target"))
    refusal = _never(standing, outlook, basis)
    if refusal is not None:
        if standing.best_effort_ok or standing.is_implicit:
            return _without_promise(basis, outlook, queue, rules, refusal)
        return Reject(*refusal, basis)
    refusal = _not_now(standing, outlook, rules, basis)
    if refusal is None and is_first:
        return Admit(basis)
    if refusal is None and len(queue) < rules.max_queued:
        return Wait(basis, is_promised=True)
    refusal = refusal or _queue_full(queue, rules)
    if standing.best_effort_ok:
        return _without_promise(basis, outlook, queue, rules, refusal)
    return Reject(*refusal, basis, ask_again_in_s=max(0.0, basis.room_in_s - basis.allowed_ttft_s))


def _forecast(
    standing: Standing, outlook: Outlook, queue: WaitingQueue, pool: PoolWork, rules: Rules, now_s: float
) -> tuple[Basis, bool]:
    """The numbers, and whether it would be dispatched at once."""
    allowed_s = standing.ttft_s if standing.is_due else standing.ttft_s / (1.0 + rules.margin)
    fill, longest_wait_s = _fill(standing, rules), allowed_s - outlook.own_s
    allowed_wait_s = fill * longest_wait_s
    if standing.is_due:
        pool = replace(pool, aside=None)
    newcomer = Newcomer(outlook.cost_s, now_s + standing.ttft_s, now_s + allowed_wait_s)
    probe = queue.probe(newcomer, pool, now_s)
    is_first = outlook.is_open and probe.num_ahead == 0
    wait_s = probe.start_in_s
    if is_first and pool.speed:
        wait_s = max(outlook.ttft_s - outlook.own_s + probe.aside_s / pool.speed, probe.room_in_s)
    basis = Basis(
        predicted_ttft_s=wait_s + outlook.own_s,
        allowed_ttft_s=allowed_s,
        wait_s=wait_s,
        allowed_wait_s=allowed_wait_s,
        least_slack_s=probe.least_slack_s,
        num_ahead=probe.num_ahead,
        left_slack_s=(1.0 - fill) * longest_wait_s if fill < 1.0 else 0.0,
        room_in_s=probe.room_in_s,
    )
    return basis, is_first


def _fill(standing: Standing, rules: Rules) -> float:
    """The part of the waiting room that it may use.

    All of it, whatever its class, for a client that was told to come back, which has its place in it, and for a tenant
    that asks for no more than its share: it is for these that the others leave room.
    """
    if standing.is_due or standing.share is Share.WITHIN:
        return 1.0
    of_class = 1.0 if standing.value >= rules.top_value else rules.lower_value_fill
    return of_class * rules.fill_of(standing.share)


_Refusal = tuple[Cause, str]


def _never(standing: Standing, outlook: Outlook, basis: Basis) -> _Refusal | None:
    """What no load explains: it could not be kept by an idle fleet."""
    if outlook.own_s > basis.allowed_ttft_s:
        return Cause.TTFT_INFEASIBLE, (
            f"its own work takes {outlook.own_s:.3f} s to the first token on an idle worker, the target is "
            f"{standing.ttft_s:g} s ({basis.allowed_ttft_s:.3f} s with the safety margin)"
        )
    if outlook.idle_tpot_s > standing.tpot_s:
        return Cause.TPOT_INFEASIBLE, (
            f"an idle worker takes {outlook.idle_tpot_s:.4f} s a token, the target is {standing.tpot_s:g} s"
        )
    return None


def _not_now(standing: Standing, outlook: Outlook, rules: Rules, basis: Basis) -> _Refusal | None:
    """What load explains."""
    if basis.room_in_s > basis.allowed_wait_s:
        when = f"is foreseen in {basis.room_in_s:.3f} s, allowed are {basis.allowed_wait_s:.3f} s"
        if outlook.kv_is_short:
            return Cause.KV_FULL, f"room for its KV blocks {when}"
        return Cause.TPOT_INFEASIBLE, f"room in a decode batch at {standing.tpot_s:g} s a token {when}"
    if basis.wait_s > basis.allowed_wait_s:
        waits = f"it would wait {basis.wait_s:.3f} s, allowed are {basis.allowed_wait_s:.3f} s"
        if rules.fill_of(standing.share) < 1.0 and basis.wait_s * rules.fill_of(standing.share) <= basis.allowed_wait_s:
            return Cause.OVER_SHARE, f"{waits} for a tenant that asks for more than its share"
        return Cause.TTFT_INFEASIBLE, f"{waits} of a target of {standing.ttft_s:g} s"
    if basis.least_slack_s < 0.0:
        return Cause.TTFT_INFEASIBLE, f"a promise behind it would be late by {-basis.least_slack_s:.3f} s"
    if basis.least_slack_s < basis.left_slack_s:
        cause = Cause.TTFT_INFEASIBLE if standing.share is Share.FREE else Cause.OVER_SHARE
        left = f"{basis.least_slack_s:.3f} s of slack, {basis.left_slack_s:.3f} s are to be left for others"
        return cause, f"a promise behind it would have {left}"
    return None


def _queue_full(queue: WaitingQueue, rules: Rules) -> _Refusal:
    return Cause.QUEUE_FULL, f"{len(queue)} requests wait, allowed are {rules.max_queued} (slo.max_queued)"


def _without_promise(
    basis: Basis, outlook: Outlook, queue: WaitingQueue, rules: Rules, why: tuple[Cause | None, str]
) -> Decision:
    """At once where that harms nobody, else behind the promises."""
    if outlook.is_open and not len(queue) and not basis.room_in_s:
        return Admit(basis, False, *why)
    if len(queue) < rules.max_queued:
        return Wait(basis, False, *why)
    return Reject(*_queue_full(queue, rules), basis, ask_again_in_s=0.0)
