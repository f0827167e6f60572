"""What the core is told (past tense) and what it answers (imperative)."""

from dataclasses import dataclass
from enum import StrEnum

from kvstore.types import RequestId, WorkerId
from router.types import Request, RoutingDecision
from workers.types import WorkerState


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A client asks."""

    request: Request


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """The prefill worker has answered; its share of the work is over."""

    request_id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first byte of the answer has come: prefill is over on whichever worker did it."""

    request_id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True)
class RequestDone:
    """The answer is complete."""

    request_id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """An attempt ended early. `retriable`: the client has seen nothing of it yet."""

    request_id: RequestId
    attempt: int
    worker_id: WorkerId
    retriable: bool


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """The client went away, or its deadline passed."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """A worker joined, or something about it changed."""

    state: WorkerState


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A worker left or lost its lease."""

    worker_id: WorkerId
    reason: str


Event = (
    RequestArrived
    | PrefillDone
    | FirstToken
    | RequestDone
    | RequestFailed
    | RequestCancelled
    | WorkerChanged
    | WorkerGone
)


class RejectReason(StrEnum):
    """Why a request is turned away."""

    UNKNOWN_MODEL = "unknown_model"
    ROUTE_NOT_SERVED = "route_not_served"
    NO_WORKER = "no_worker"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Run this attempt now; its workers are reserved."""

    decision: RoutingDecision


@dataclass(frozen=True, slots=True)
class Reject:
    """Turn the request away. `retry_after_s`: when it is worth asking again, None if never."""

    request_id: RequestId
    reason: RejectReason
    detail: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop this attempt: `worker_id` is gone. Its end comes back as RequestFailed."""

    request_id: RequestId
    attempt: int
    worker_id: WorkerId


Command = Dispatch | Reject | Abort
