"""The router's OpenAPI document says what the code does: routes, error codes, and which bodies are taken."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router import http_listener
from router.errors import ApiError, bad_request, method_not_allowed, reject_codes
from router.openai import CHAT_ROUTE, OPENAI_FIELDS, RESERVED_FIELDS
from router.openapi.describe import describe, error_codes
from router.openapi.schemas import body_schema
from router.settings import RouterSettings
from router.slo_settings import SloSettings
from workers.engine_metrics import FORWARDED_ROUTES

MODELS = ("m", "adapter")
KNOWN = {"m": frozenset({"model", "prompt", "messages", "top_k", "stream", "vllm_xargs", *RESERVED_FIELDS})}


def document(**slo: Any) -> dict[str, Any]:
    """The document of a fleet with one model."""
    fields = dict.fromkeys(FORWARDED_ROUTES, KNOWN)
    return describe(RouterSettings(), SloSettings(**slo), MODELS, fields)


def header_names(operation: dict[str, Any]) -> set[str]:
    return {item["name"] for item in operation["parameters"] if item["in"] == "header"}


def test_every_route_of_the_listener_is_described_and_no_other() -> None:
    """A route with a parameter counts up to that."""
    described = {path.partition("{")[0]: operations for path, operations in document()["paths"].items()}
    tree = ast.parse(inspect.getsource(http_listener))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    routes = {text.partition("{")[0] for text in texts if re.fullmatch(r"/[\w./{}:+-]+", text)}
    assert routes | FORWARDED_ROUTES == set(described)
    assert {path for path in described if "post" in described[path]} == FORWARDED_ROUTES
    assert {path for path in described if "get" in described[path]} == routes - FORWARDED_ROUTES


def error_codes_in_source() -> Iterator[object]:
    """Every literal code of an error that the router makes for HTTP."""
    for path in Path(http_listener.__file__).parent.rglob("*.py"):
        if path.name.startswith("grpc_"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", "")
            if name == bad_request.__name__:
                yield from (ast.literal_eval(word.value) for word in node.keywords if word.arg == "code")
            elif name == ApiError.__name__ and isinstance(node.args[2], ast.Constant):
                yield node.args[2].value


def test_every_error_code_is_described() -> None:
    codes = {code for codes in reject_codes().values() for code in codes} | set(error_codes_in_source())
    assert len(codes) > 20
    assert codes == error_codes()


def test_retry_after_is_described_where_it_is_sent() -> None:
    responses = document()["components"]["responses"]
    assert {status for status, response in responses.items() if "Retry-After" in response["headers"]} == {
        *("429", "502", "503")
    }


def test_every_reference_leads_somewhere() -> None:
    made = document()
    for reference in re.findall(r'"#/([^"]+)"', json.dumps(made)):
        found: Any = made
        for part in reference.split("/"):
            found = found[part]
        assert found


def test_headers_are_those_that_the_settings_make_it_read() -> None:
    paths = document()["paths"]
    slo_headers = {"x-headrace-class", "x-headrace-ttft-s", "x-headrace-tpot-s", "x-headrace-deadline-s"}
    assert slo_headers < header_names(paths[CHAT_ROUTE]["post"])
    assert slo_headers.isdisjoint(header_names(paths["/v1/embeddings"]["post"])), "targets are about tokens"
    assert slo_headers.isdisjoint(header_names(document(enabled=False)["paths"][CHAT_ROUTE]["post"]))
    assert "x-headrace-tenant" not in header_names(paths[CHAT_ROUTE]["post"])
    trusting = document(trust_tenant_header=True)["paths"][CHAT_ROUTE]["post"]
    assert "x-headrace-tenant" in header_names(trusting)


def test_without_models_any_name_may_be_asked_for() -> None:
    model = body_schema(CHAT_ROUTE, RouterSettings(), (), {})["properties"]["model"]
    assert "enum" not in model
    assert model["minLength"] == 1


def test_the_methods_that_are_allowed_come_with_405() -> None:
    error = method_not_allowed("PUT", "/v1/models", ["HEAD", "GET"])
    assert (error.status, error.headers()) == (405, {"Allow": "GET, HEAD"})


def test_official_fields_are_never_refused() -> None:
    for name in OPENAI_FIELDS:
        assert name in body_schema(CHAT_ROUTE, RouterSettings(), MODELS, KNOWN)["properties"]
