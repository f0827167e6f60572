"""The admin API's description of itself, OpenAPI 3.1, made of the table that it runs on. Pure.

Source: OpenAPI Specification 3.1.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from controlplane.admin_routes.access import COOKIE, CSRF_HEADER
from controlplane.admin_routes.route import Route
from router.admin_tokens import AdminRole

Json = dict[str, Any]

_VERSION = "1.0.0"  # of this description's form
_DESCRIPTION = f"""\
Headrace's control plane, for operators. A token of `admin.tokens_file` is sent as `Authorization: Bearer`; a browser
trades it for a cookie at POST /session, and sends `{CSRF_HEADER}` with every change. Viewers read, operators change,
and every change is audited. Without a file of tokens nothing can be changed. Errors are
`{{"error": {{"message", "code"}}}}`."""
_REF = "#/components/schemas/{name}"
_ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "code"],
            "properties": {"message": {"type": "string"}, "code": {"type": "string"}},
        }
    },
}
# Of a route that is not for everybody; 500 is ours, 503 is Redis's.
_ACCESS = {
    401: ("token_missing", "invalid_token", "session_ended"),
    403: ("admin_closed", "not_an_operator", "csrf_missing"),
}
_ANY = {500: ("internal",), 503: ("redis_unavailable",)}


def describe(routes: Sequence[Route]) -> Json:
    """The document."""
    types = [kind for route in routes for kind in (route.takes, route.gives) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(repr, types), schemas, strict=True))
    paths: Json = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace admin API", "version": _VERSION, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _ERROR},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }


def _operation(route: Route, schemas: Mapping[str, Json]) -> Json:
    gives: Json = schemas[repr(route.gives)] if route.gives is not None else {}
    if route.media_type != "application/json":
        gives = {"type": "string"}
    operation: Json = {
        "summary": route.summary,
        "parameters": [*_in_path(route), *_in_query(route), *_csrf(route)],
        "responses": {"200": {"description": "OK", "content": {route.media_type: {"schema": gives}}}, **_errors(route)},
        "security": [] if route.role is None else [{"token": []}, {"session": []}],
    }
    if route.role is AdminRole.OPERATOR:
        operation["description"] = "For operators."
    if route.takes is not None:
        body = {"application/json": {"schema": schemas[repr(route.takes)]}}
        operation["requestBody"] = {"required": False, "content": body}
    return operation


def _in_path(route: Route) -> list[Json]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.parameters]


def _in_query(route: Route) -> list[Json]:
    return [
        {"name": query.name, "in": "query", "description": query.description, "schema": {"type": query.kind}}
        for query in route.query
    ]


def _csrf(route: Route) -> list[Json]:
    if route.role is None or not route.is_change:
        return []
    words = "anything; needed where a cookie stands for the token"
    return [{"name": CSRF_HEADER, "in": "header", "description": words, "schema": {"type": "string"}}]


def _errors(route: Route) -> Json:
    codes: dict[int, tuple[str, ...]] = dict(_ANY)
    if route.role is not None:
        codes |= _ACCESS
    if route.takes is not None:
        codes[400] = ("bad_body",)
    if route.query:
        codes[400] = (*codes.get(400, ()), "bad_query")
    for status, code in route.errors.items():
        codes[status] = (*codes.get(status, ()), code)
    schema = {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}}
    return {
        str(status): {
            "description": "Codes: " + ", ".join(f"`{code}`" for code in dict.fromkeys(names)),
            "content": schema,
        }
        for status, names in sorted(codes.items())
    }
