"""The router's description of itself: `GET /openapi.json`, OpenAPI 3.1. Pure.

It is made of the tables that the code runs on: the forwarded routes, the error codes, the limits in the settings, and
the fields that the engines of this fleet know. What the router checks is a schema; a field that it passes on is open,
because what an engine makes of it is the engine's business and changes with its version (400, in the engine's words).
Source: OpenAPI Specification 3.1.0.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router import class_gate
from router.errors import reject_codes
from router.openai import GENERATION_ROUTES
from router.openapi.parameters import request_headers
from router.openapi.schemas import body_schema, example, named_schemas, reply_schema
from router.settings import RouterSettings
from router.slo_settings import SloSettings
from workers.engine_metrics import FORWARDED_ROUTES

Json = dict[str, Any]
Fields = Mapping[str, frozenset[str]]  # by model, as router/intake.py has them

_VERSION = "1.0.0"  # of this description's form
_DESCRIPTION = """\
One address in front of a fleet of vLLM engines. Fields and answers of the routes under "engine" are OpenAI's and vLLM's
own; they are passed on as they are. Errors have OpenAI's shape and a `code` that says which one it is. Another method
than those described gets 405 with `Allow`, an unknown path 404."""

# Codes that are not rejections of the core, by status.
_CODES: Mapping[int, tuple[str, ...]] = {
    400: (
        *("empty_body", "invalid_json", "invalid_model", "invalid_type", "reserved_field", "unknown_field"),
        *("unknown_class", "bad_tenant", "bad_slo"),
    ),
    401: ("invalid_api_key",),
    403: ("model_not_allowed", "class_not_allowed"),
    413: ("body_too_large",),
    429: ("rate_limit_exceeded", "insufficient_quota"),
    500: ("internal",),
    503: ("router_overloaded", class_gate.CODE, "cache_not_isolated"),
}
# What the HTTP server refuses of any request (router/http/).
_SERVER_CODES = (
    *("malformed_request", "request_timeout", "target_too_long", "head_too_large", "too_many_headers"),
    *("header_too_large", "expectation_failed"),
)
_CLOSED = {"decision": ("decisions_closed",), "metrics": ("metrics_closed",)}
_NOT_FOUND = {"model": ("model_not_found",), "decision": ("decision_not_found",)}
# Of answers that are part of no operation: other paths and methods, other protocols, streams that broke off (gRPC
# only), gateways.
_ELSEWHERE = frozenset(
    {
        *("unknown_route", "method_not_allowed", "method_not_served", "http_version", "transfer_encoding"),
        *("stream_broken", "gateway_misconfigured"),
    }
)
_WORDS = {
    400: "The request is not understood: by the router, or by the engine, in its own words.",
    401: "No valid API key or token, where one is needed.",
    403: "The key's tenant may not have this model or class.",
    404: "The model does not exist here, or no worker of it has the route.",
    408: "It could not be started before its deadline.",
    413: "The body is over the limit.",
    429: "Its targets cannot be promised now, or its tenant has had what it may have.",
    500: "A bug of the router.",
    502: "Every worker that was tried failed the request.",
    503: "No worker can serve it now, or its class is paused.",
}
_RETRY_AFTER = {"description": "Seconds after which to ask again.", "schema": {"type": "integer", "minimum": 1}}
_REQUEST_ID = {
    "description": "The client's id if it can be passed on, else the router's.",
    "schema": {"type": "string"},
}
_EXPLAINED = {
    "description": "With x-headrace-explain: 1, this and other x-headrace-* headers say where the request ran and why.",
    "schema": {"type": "string"},
}
_RETRIED = frozenset({429, 502, 503})  # where Retry-After may be


def describe(settings: RouterSettings, slo: SloSettings, models: Sequence[str], fields: Mapping[str, Fields]) -> Json:
    """The document. `models`: names that are served now; `fields`: by forwarded route, those that engines know."""
    paths: Json = {path: {"get": operation} for path, operation in _own_operations().items()}
    for route in sorted(FORWARDED_ROUTES):
        paths[route] = {"post": _forwarded(route, settings, slo, models, fields.get(route, {}))}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace", "version": _VERSION, "description": _DESCRIPTION},
        "tags": [
            {"name": "engine", "description": "Passed on to an engine, where a worker of the model has the route."},
            {"name": "router", "description": "Answered by the router."},
        ],
        "paths": paths,
        "components": {
            "schemas": named_schemas(),
            "responses": _refusals(settings),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key or a token."}},
        },
        "security": [{"key": []}, {}],
    }


def error_codes() -> frozenset[str]:
    """Every `code` that the document names."""
    tables = (*_CODES.values(), *reject_codes().values(), *_NOT_FOUND.values(), *_CLOSED.values())
    return frozenset(code for codes in tables for code in codes) | _ELSEWHERE | {*_SERVER_CODES}


def _own_operations() -> dict[str, Json]:
    """GET routes by path."""
    alive = _operation("The process runs.", _json({"$ref": "#/components/schemas/Health"}))
    ready = _operation("A request would be served now.", _json({"$ref": "#/components/schemas/Ready"}))
    ready["responses"]["503"] = {
        **_json({"$ref": "#/components/schemas/NotReady"}, "No worker could answer, or the index is not known yet."),
        "headers": {"Retry-After": _RETRY_AFTER},
    }
    model = _operation("One model or adapter.", _json({"$ref": "#/components/schemas/Model"}))
    model["parameters"] = [_in_path("model", "its name; slashes may be in it")]
    model["responses"]["404"] = _error("It is not served here.", _NOT_FOUND["model"])
    decision = _operation("Why a request ran where it did.", _json({"$ref": "#/components/schemas/Explanation"}))
    decision["parameters"] = [_in_path("id", "x-request-id, or the router's own id")]
    decision["responses"]["403"] = _error(
        "For operators, unless router.explain.public says otherwise.", _CLOSED["decision"]
    )
    decision["responses"]["404"] = _error("Unknown to this router, or too long ago.", _NOT_FOUND["decision"])
    metrics = _operation("Prometheus metrics.", _content("text/plain", {"type": "string"}))
    metrics["responses"]["403"] = _error("For operators, where router.public_metrics is false.", _CLOSED["metrics"])
    return {
        "/healthz": alive,
        "/health": {**alive, "summary": "The process runs; the name that vLLM's clients ask for."},
        "/readyz": ready,
        "/metrics": metrics,
        "/openapi.json": _operation("This document.", _json({"type": "object"})),
        "/v1/models": _operation(
            "Models and adapters that answer now.", _json({"$ref": "#/components/schemas/Models"})
        ),
        "/v1/models/{model}": model,
        "/headrace/decisions/{id}": decision,
    }


def _forwarded(route: str, settings: RouterSettings, slo: SloSettings, models: Sequence[str], fields: Fields) -> Json:
    content = {"application/json": {"schema": reply_schema(route)}}
    if route in GENERATION_ROUTES:
        content["text/event-stream"] = {"schema": {"type": "string", "description": "with stream: true"}}
    answer = {"description": "The engine's answer.", "content": content, "headers": _answer_headers(settings)}
    body: Json = {"schema": body_schema(route, settings, models, fields)}
    if (shown := example(route, models)) is not None:
        body["example"] = shown
    refusals = {status: {"$ref": f"#/components/responses/{status}"} for status in _refusals(settings)}
    return {
        "tags": ["engine"],
        "summary": f"{route}, as the engine has it.",
        "description": f"Bodies of up to {settings.max_body_bytes} bytes (router.max_body_bytes).",
        "parameters": request_headers(route, settings, slo),
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": answer, **refusals},
    }


def _refusals(settings: RouterSettings) -> dict[str, Json]:
    """What a forwarded request may get instead of an answer, by status."""
    responses = {"4XX": _error("What the engine refuses, or the HTTP server itself.", _SERVER_CODES)}
    for status, codes in sorted(_merged(_CODES, reject_codes()).items()):
        responses[str(status)] = _error(_WORDS[status], codes)
        if status in _RETRIED:
            responses[str(status)]["headers"] = {"Retry-After": _RETRY_AFTER}
    for response in responses.values():
        response["headers"] = {**response.get("headers", {}), **_answer_headers(settings)}
    return responses


def _answer_headers(settings: RouterSettings) -> Json:
    return {"x-request-id": _REQUEST_ID} | ({"x-headrace-policy": _EXPLAINED} if settings.explain.headers else {})


def _operation(summary: str, answer: Json) -> Json:
    refused = {
        "4XX": _error("What the HTTP server itself refuses.", _SERVER_CODES),
        "500": _error(_WORDS[500], _CODES[500]),
    }
    return {"tags": ["router"], "summary": summary, "responses": {"200": answer, **refused}}


def _in_path(name: str, words: str) -> Json:
    return {"name": name, "in": "path", "required": True, "description": words, "schema": {"type": "string"}}


def _json(schema: Json, words: str = "OK") -> Json:
    return _content("application/json", schema, words)


def _content(media_type: str, schema: Json, words: str = "OK") -> Json:
    return {"description": words, "content": {media_type: {"schema": schema}}}


def _error(words: str, codes: Iterable[str]) -> Json:
    named = ", ".join(f"`{code}`" for code in codes)
    return _json({"$ref": "#/components/schemas/Error"}, f"{words} Codes: {named}." if named else words)


def _merged(*tables: Mapping[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
    statuses = {status for table in tables for status in table}
    return {status: tuple(code for table in tables for code in table.get(status, ())) for status in statuses}
