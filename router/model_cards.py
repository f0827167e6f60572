"""The models that clients may ask for, as OpenAI's /v1/models lists them. Pure."""

from collections.abc import Collection, Iterable

from router.identity.caller import Caller
from workers.types import WorkerState

MODELS_ROUTE = "/v1/models"


def model_cards(
    fleet: Iterable[WorkerState], routable: Collection[str], caller: Caller
) -> dict[str, dict[str, object]]:
    """Cards by name: of the `routable` models, and of their adapters, as far as the caller may see them."""
    return {
        name: {
            "id": name,
            "object": "model",
            "created": worker.spec.epoch // 1000,
            "owned_by": "headrace",
            "parent": worker.spec.model if name != worker.spec.model else None,
            "max_model_len": worker.spec.max_model_len_tokens,
        }
        for worker in fleet
        if worker.spec.model in routable
        for name in (worker.spec.model, *worker.spec.adapters)
        if caller.may_see(name)
    }
