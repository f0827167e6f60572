"""From a client's request to what the service takes: shared by the HTTP listener and the gRPC server."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.types import RequestId
from router.dispatch import EngineCall
from router.openai import check_fields, parse_body, usable_request_id
from router.service import RouterService
from router.settings import RouterSettings
from router.types import Request

# Client headers an engine may see. Credentials, cookies and whatever else a client sends stay here.
_FORWARDED_HEADERS = ("traceparent", "tracestate", "x-session-id")


@dataclass(frozen=True, slots=True)
class Intake:
    """A request that has been understood."""

    request: Request
    call: EngineCall
    public_id: str  # in x-request-id and the engine's logs: the client's own id, or ours


def take_in(
    route: str, raw_body: bytes, headers: Mapping[str, str], service: RouterService, settings: RouterSettings
) -> Intake:
    """Understand a request; raises ApiError 400. `headers` with lower-case names or case-insensitive."""
    body = parse_body(route, raw_body)
    if settings.unknown_fields == "reject":
        check_fields(body.fields, service.known_fields(body.model, route))
    request_id = RequestId(uuid.uuid4().hex)  # never the client's: two clients may send the same
    public_id = usable_request_id(headers.get("x-request-id")) or request_id
    forwarded = {name: headers[name] for name in _FORWARDED_HEADERS if name in headers}
    return Intake(
        request=Request(
            id=request_id,
            model=body.model,
            route=route,
            num_prompt_tokens=body.num_prompt_tokens,
            max_output_tokens=body.max_output_tokens,
            can_hand_off=body.can_hand_off,
        ),
        call=EngineCall(
            request_id=request_id,
            route=route,
            raw_body=raw_body,
            fields=body.fields,
            stream=body.stream,
            headers={**forwarded, "content-type": "application/json", "x-request-id": public_id},
        ),
        public_id=public_id,
    )
