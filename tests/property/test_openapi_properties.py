"""The router's OpenAPI document: a body is taken by the router exactly where its schema says so."""

import functools
import json
from typing import Any, Literal

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from router.errors import ApiError
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE, RESERVED_FIELDS, check_fields, parse_body
from router.openapi.schemas import body_schema
from router.settings import RouterSettings
from workers.engine_metrics import FORWARDED_ROUTES

MODELS = ("m", "adapter")
KNOWN = {"m": frozenset({"model", "prompt", "messages", "top_k", "stream", "vllm_xargs", *RESERVED_FIELDS})}
# What a completion is not possible without; the engine checks it.
NEEDED: dict[str, dict[str, Any]] = {CHAT_ROUTE: {"messages": [{"role": "user"}]}, COMPLETION_ROUTE: {"prompt": "p"}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "m", "adapter", "other"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(RESERVED_FIELDS), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["model", "stream", "top_k", "seed", "temprature", "vllm_xargs", *RESERVED_FIELDS])


@functools.cache
def validator(route: str, unknown_fields: Literal["reject", "pass"]) -> Draft202012Validator:
    return Draft202012Validator(body_schema(route, RouterSettings(unknown_fields=unknown_fields), MODELS, KNOWN))


@given(
    route=st.sampled_from(sorted(FORWARDED_ROUTES)),
    unknown_fields=st.sampled_from(["reject", "pass"]),
    fields=st.dictionaries(names, json_values),
    has_model=st.booleans(),
)
def test_a_body_is_taken_exactly_where_its_schema_says_so(
    route: str, unknown_fields: Literal["reject", "pass"], fields: dict[str, Any], has_model: bool
) -> None:
    body = {**fields, **NEEDED.get(route, {}), **({"model": "m"} if has_model else {})}
    try:
        parsed = parse_body(route, json.dumps(body).encode())
        if unknown_fields == "reject":
            check_fields(parsed.fields, KNOWN["m"])
        is_taken = parsed.model in MODELS
    except ApiError as error:
        assert error.status == 400
        is_taken = False
    assert validator(route, unknown_fields).is_valid(body) is is_taken
