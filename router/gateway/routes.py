"""Which requests a gateway may ask about, and those that are answered without an engine. Pure."""

from collections.abc import Collection, Iterable

import msgspec

from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router.errors import ApiError, bad_request
from router.gateway.ext_proc import immediate
from router.identity.caller import Caller
from router.model_cards import MODELS_ROUTE, model_cards
from workers.engine_metrics import FORWARDED_ROUTES
from workers.types import WorkerState

REQUEST_BODY_MODES = (pb.FULL_DUPLEX_STREAMED, pb.BUFFERED)


def is_about_models(route: str) -> bool:
    """Answered by us: a gateway asks its picker for every request."""
    return route == MODELS_ROUTE or route.startswith(f"{MODELS_ROUTE}/")


def check_route(method: str, route: str) -> None:
    """Raise ApiError for a request that is not routed here. Other routes of engines are an operator's business."""
    if not is_about_models(route) and route not in FORWARDED_ROUTES:
        raise bad_request(f"there is no {route} here", code="unknown_route", status=404)
    allowed = "GET" if is_about_models(route) else "POST"
    if method != allowed:
        message = f"{method} is not allowed on {route}; use {allowed}"
        raise bad_request(message, code="method_not_allowed", status=405)


def check_mode(request_body_mode: int) -> None:
    """Raise ApiError where the gateway does not wait for the answer to a whole body."""
    if request_body_mode not in REQUEST_BODY_MODES:
        message = "the gateway's request_body_mode has to be FULL_DUPLEX_STREAMED or BUFFERED"
        raise ApiError(500, "internal_error", "gateway_misconfigured", message)


def models_answer(
    route: str, fleet: Iterable[WorkerState], routable: Collection[str], caller: Caller
) -> pb.ProcessingResponse:
    """All models that the caller may see, or one of them; raises ApiError 404."""
    cards = model_cards(fleet, routable, caller)
    name = route.removeprefix(MODELS_ROUTE).removeprefix("/")
    if name and name not in cards:
        raise bad_request(f"the model {name!r} does not exist here", code="model_not_found", status=404)
    found: object = cards[name] if name else {"object": "list", "data": list(cards.values())}
    return immediate(200, msgspec.json.encode(found), {}, "models")
