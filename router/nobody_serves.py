"""The words for a request that no worker can serve, and whether asking again is worth anything. Pure."""

from collections.abc import Collection, Sequence

from kvstore.types import WorkerId
from router.events import Reject, RejectReason
from router.fleet import eligibility
from router.types import Request
from workers.types import WorkerState

_MAX_QUOTED_CHARS = 256  # of a name that a client chose


def nobody_serves(
    request: Request,
    attempts: int,
    failed: Collection[WorkerId],
    fleet: Sequence[WorkerState],
    *,
    max_attempts: int,
    retry_after_s: float,
) -> Reject:
    """The rejection of a request after so many attempts, on the workers that `failed` it."""
    if attempts > 0:
        names = ", ".join(sorted(failed))
        detail = f"{attempts} attempt(s) failed, on worker(s) {names}, and "
        detail += (
            f"no more than {max_attempts} are made (router.max_attempts)"
            if attempts >= max_attempts
            else "no other worker is left to try"
        )
        return Reject(request.id, RejectReason.ATTEMPTS_EXHAUSTED, detail, retry_after_s)
    same_model = [worker for worker in fleet if worker.spec.model == request.model]
    if not same_model:
        if not fleet:
            return Reject(request.id, RejectReason.NO_WORKER, "no worker has joined yet", retry_after_s)
        models = ", ".join(sorted({name for worker in fleet for name in (worker.spec.model, *worker.spec.adapters)}))
        detail = f"the model {request.model[:_MAX_QUOTED_CHARS]!r} does not exist here; available: {models}"
        return Reject(request.id, RejectReason.UNKNOWN_MODEL, detail, None)
    decoders = [worker for worker in same_model if eligibility.can_decode(worker)]
    if decoders and not any(request.route in worker.spec.routes for worker in decoders):
        detail = f"no worker of model {request.model!r} has the route {request.route}"
        return Reject(request.id, RejectReason.ROUTE_NOT_SERVED, detail, None)
    if request.adapter and decoders and not any(request.adapter in worker.spec.adapters for worker in decoders):
        detail = f"no worker of model {request.model!r} has the adapter {request.adapter!r} now"
        return Reject(request.id, RejectReason.NO_WORKER, detail, retry_after_s)
    if request.only is not None and decoders:
        detail = f"none of the {len(request.only)} worker(s) that the gateway allows can serve this now"
        return Reject(request.id, RejectReason.NO_WORKER, detail, retry_after_s)
    phases = ", ".join(f"{worker.spec.id} ({worker.spec.role}) is {worker.phase}" for worker in same_model)
    return Reject(request.id, RejectReason.NO_WORKER, f"no worker can decode now: {phases}", retry_after_s)
