"""Which workers may serve a request at all. Pure."""

from workers.types import Phase, Role, WorkerState


def serves(worker: WorkerState, model: str, route: str, adapter: str = "") -> bool:
    """The worker is ready, has the model, with the adapter if there is one, and has the route."""
    spec = worker.spec
    has_model = spec.model == model and (not adapter or adapter in spec.adapters)
    return worker.phase is Phase.READY and has_model and route in spec.routes


def can_decode(worker: WorkerState) -> bool:
    """The worker would answer a client of its model now: a decode or mixed one. Each can also prefill for itself."""
    return worker.phase is Phase.READY and worker.spec.role is not Role.PREFILL
