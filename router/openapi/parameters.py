"""Request headers in the router's OpenAPI document: those that the settings make it read. Pure."""

from typing import Any

from router.identity.doorkeeper import TENANT_HEADER
from router.openai import EXPLAIN_HEADER, FORWARDED_HEADERS, GENERATION_ROUTES
from router.settings import RouterSettings
from router.slo import CLASS_HEADER, DEADLINE_HEADER, TPOT_HEADER, TTFT_HEADER
from router.slo_settings import MAX_DEADLINE_S, MAX_TPOT_S, MAX_TTFT_S, TENANT_PATTERN, SloSettings

_SECONDS = {
    TTFT_HEADER: (MAX_TTFT_S, "target for the first token, in place of the class's"),
    TPOT_HEADER: (MAX_TPOT_S, "target for the mean gap between tokens, in place of the class's"),
    DEADLINE_HEADER: (MAX_DEADLINE_S, "a request not started by then is given up; at least the target for the first"),
}


def request_headers(route: str, settings: RouterSettings, slo: SloSettings) -> list[dict[str, Any]]:
    """Parameters of a forwarded route."""
    text = {"type": "string"}
    parameters = [_header("x-request-id", "id of this request in logs and traces, if it can be used as one", text)]
    parameters += [_header(name, "passed on to the engine", text) for name in FORWARDED_HEADERS]
    if settings.explain.headers:
        parameters.append(_header(EXPLAIN_HEADER, "1: the answer's headers say where it ran and why", text))
    if not slo.enabled or route not in GENERATION_ROUTES:
        return parameters
    classes = {"type": "string", "enum": list(slo.classes), "default": slo.default_class}
    parameters.append(_header(CLASS_HEADER, "service class; none: the API key's, or the default", classes))
    for name, (most_s, words) in _SECONDS.items():
        seconds = {"type": "number", "exclusiveMinimum": 0, "maximum": most_s}
        parameters.append(_header(name, f"seconds in plain decimals: {words}", seconds))
    if slo.trust_tenant_header:
        tenant = {"type": "string", "pattern": TENANT_PATTERN}
        parameters.append(_header(TENANT_HEADER, "who is charged; set by the gateway in front", tenant))
    return parameters


def _header(name: str, words: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": words, "schema": schema}
