"""Which workers may serve a request at all. Pure."""

from workers.types import Phase, Role, WorkerState


def serves(worker: WorkerState, model: str, route: str) -> bool:
    """The worker is ready, has the model, and has the route."""
    return worker.phase is Phase.READY and worker.spec.model == model and route in worker.spec.routes


def can_decode(worker: WorkerState) -> bool:
    """The worker would answer a client of its model now: a decode or mixed one. Each can also prefill for itself."""
    return worker.phase is Phase.READY and worker.spec.role is not Role.PREFILL
