"""What the core is told (past tense) and what it answers (imperative).

Structs, not dataclasses: they are made several times a request, and a frozen dataclass costs ten times as much. None is
part of a cycle, so the garbage collector need not look at them.
"""

from enum import StrEnum

from msgspec import Struct

from kvstore.types import RequestId, WorkerId
from router.types import NO_OVERLAP, Overlap, ReplicaReport, Request, RoutingDecision, Usage
from workers.types import WorkerState


class RequestArrived(Struct, frozen=True, gc=False):
    """A client asks. `overlap`: who holds how much of the prompt, as far as the index knows."""

    request: Request
    overlap: Overlap = NO_OVERLAP


class PrefillDone(Struct, frozen=True, array_like=True, gc=False):
    """The prefill worker has answered; its share of the work is over. `cached_tokens`: that it did not compute."""

    request_id: RequestId
    attempt: int
    cached_tokens: int | None = None


class FirstToken(Struct, frozen=True, array_like=True, gc=False):
    """The first byte of the answer has come: prefill is over on whichever worker did it."""

    request_id: RequestId
    attempt: int


class RequestDone(Struct, frozen=True, array_like=True, gc=False):
    """The answer is complete. `usage`: what the engine said of it, if it did."""

    request_id: RequestId
    attempt: int
    usage: Usage | None = None


class RequestFailed(Struct, frozen=True, array_like=True, gc=False):
    """An attempt ended early. `retriable`: the client has seen nothing of it yet."""

    request_id: RequestId
    attempt: int
    worker_id: WorkerId
    retriable: bool


class RequestCancelled(Struct, frozen=True, array_like=True, gc=False):
    """The client went away, or its deadline passed."""

    request_id: RequestId


class WorkerChanged(Struct, frozen=True, gc=False):
    """A worker joined, or something about it changed."""

    state: WorkerState


class WorkerGone(Struct, frozen=True, gc=False):
    """A worker left or lost its lease."""

    worker_id: WorkerId
    reason: str


class SlotsChanged(Struct, frozen=True, gc=False):
    """From now on the prefix index calls this worker's tiers (device, host, disk) by these slots; -1: holds nothing."""

    worker_id: WorkerId
    slots: tuple[int, int, int]


class ReplicasReported(Struct, frozen=True, gc=False):
    """What the other router replicas promised, all of them; a replica that is missing has gone or is unreachable.

    Our own report went out in the same exchange, so that from here on the others know of our promises too.
    `num_replicas` counts this one; with Redis away it stays what it was, and each router keeps to its share.
    """

    reports: tuple[ReplicaReport, ...]
    num_replicas: int


class Woken(Struct, frozen=True, gc=False):
    """The time that `next_wakeup_s` named has come."""


Event = (
    RequestArrived
    | PrefillDone
    | FirstToken
    | RequestDone
    | RequestFailed
    | RequestCancelled
    | WorkerChanged
    | WorkerGone
    | SlotsChanged
    | ReplicasReported
    | Woken
)


class RejectReason(StrEnum):
    """Why a request is turned away."""

    UNKNOWN_MODEL = "unknown_model"
    ROUTE_NOT_SERVED = "route_not_served"
    NO_WORKER = "no_worker"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    # For lack of capacity; each comes with a time at which to ask again, unless it can never be.
    TTFT_INFEASIBLE = "ttft_infeasible"
    TPOT_INFEASIBLE = "tpot_infeasible"
    KV_FULL = "kv_full"
    OVER_SHARE = "over_share"
    QUEUE_FULL = "queue_full"
    DEADLINE_PASSED = "deadline_passed"  # before it arrived
    EXPIRED = "expired"  # was waiting, and its time passed


class Dispatch(Struct, frozen=True, gc=False):
    """Run this attempt now; its workers are reserved."""

    decision: RoutingDecision


class Reject(Struct, frozen=True, array_like=True, gc=False):
    """Turn the request away. `retry_after_s`: when it is worth asking again, None if never."""

    request_id: RequestId
    reason: RejectReason
    detail: str
    retry_after_s: float | None


class Abort(Struct, frozen=True, array_like=True, gc=False):
    """Stop this attempt: `worker_id` is gone. Its end comes back as RequestFailed."""

    request_id: RequestId
    attempt: int
    worker_id: WorkerId


class Hold(Struct, frozen=True, gc=False):
    """Let the request wait: it has been let in, and Dispatch or Reject follows. `why`: admission's word on it."""

    request_id: RequestId
    promised: bool
    why: str


Command = Dispatch | Reject | Abort | Hold
