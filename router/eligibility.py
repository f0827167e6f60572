"""Which workers may serve a request at all. Pure."""

from collections.abc import Iterable

from kvstore.types import WorkerId
from router.types import Request
from workers.types import Phase, Role, WorkerState


def serves(worker: WorkerState, request: Request) -> bool:
    """The worker is ready, has the model, and has the route."""
    return worker.phase is Phase.READY and worker.spec.model == request.model and request.route in worker.spec.routes


def can_decode(worker: WorkerState) -> bool:
    """The worker would answer a client of its model now."""
    return worker.phase is Phase.READY and worker.spec.role is not Role.PREFILL


def prefill_workers(fleet: Iterable[WorkerState], request: Request, excluded: frozenset[WorkerId]) -> list[WorkerState]:
    """Workers that may compute the prompt for somebody else's decode."""
    if not request.can_hand_off:
        return []
    return [
        worker
        for worker in fleet
        if worker.spec.role is Role.PREFILL and worker.spec.id not in excluded and serves(worker, request)
    ]


def decode_workers(fleet: Iterable[WorkerState], request: Request, excluded: frozenset[WorkerId]) -> list[WorkerState]:
    """Workers that may answer the client: decode and mixed ones. Each of them can also prefill for itself."""
    return [
        worker for worker in fleet if can_decode(worker) and worker.spec.id not in excluded and serves(worker, request)
    ]
