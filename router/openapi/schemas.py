"""Bodies and answers in the router's OpenAPI document, as JSON Schema 2020-12. Pure.

A request body is checked twice: by the router, which is described exactly, and by the engine, which is not described
but for the fields that a request makes no sense without.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from router.explain.explanation import Explanation
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE, OPENAI_FIELDS, RESERVED_FIELDS
from router.settings import RouterSettings

Json = dict[str, Any]

_TOKEN = {"type": "integer", "minimum": 0}
_NULLABLE = {"type": ["string", "null"]}
# What a completion is not possible without. Source: openai-python, types/chat and types/completion_create_params.py.
_ROUTE_FIELDS: Mapping[str, Json] = {
    CHAT_ROUTE: {
        "messages": {
            "type": "array",
            "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
        },
    },
    COMPLETION_ROUTE: {
        "prompt": {
            "description": "text, texts, token ids, or lists of token ids",
            "anyOf": [{"type": "string"}, {"type": "array"}],
        },
    },
}
# Fields that are open here, in words: types and limits are the engine's.
_WORDS = {
    "frequency_penalty": "number, -2 to 2",
    "logprobs": "chat: true or false; completions: how many candidates to report",
    "max_completion_tokens": "integer from 1; tokens of the answer",
    "max_tokens": "integer from 1; tokens of the answer",
    "n": "integer from 1; more than one is not handed off between workers",
    "presence_penalty": "number, -2 to 2",
    "response_format": "object with a `type`",
    "seed": "integer",
    "stop": "text, or a list of up to 4",
    "stream_options": "object; `include_usage`: a last event with the usage",
    "temperature": "number from 0; 0: greedy",
    "tool_choice": "none, auto, required, or an object that names a tool",
    "tools": "list of functions",
    "top_logprobs": "integer; with logprobs",
    "top_p": "number, above 0 and up to 1",
    "user": "text",
}


def body_schema(
    route: str, settings: RouterSettings, models: Sequence[str], fields: Mapping[str, frozenset[str]]
) -> Json:
    """A request body. `models`: names that are served now; `fields`: by model, those that its engines know."""
    own = _ROUTE_FIELDS.get(route, {})
    known = frozenset[str]().union(*fields.values())
    open_fields: Json = {name: {} for name in sorted(known | OPENAI_FIELDS)}
    described = {name: {"description": words} for name, words in _WORDS.items()}
    # A field is refused where all engines of the model say what they know; here all models share one schema.
    is_closed = settings.unknown_fields == "reject" and bool(fields) and all(fields.values())
    return {
        "type": "object",
        "required": ["model", *own],
        "properties": {**open_fields, **described, **_checked_fields(models), **own},
        "additionalProperties": not is_closed,
    }


def example(route: str, models: Sequence[str]) -> Json | None:
    """A request that an engine of any text model answers; None for routes that need another kind."""
    model = {"model": models[0]} if models else {"model": "m"}
    text = "What is the capital of France?"
    bodies: Mapping[str, Json] = {
        CHAT_ROUTE: {"messages": [{"role": "user", "content": text}], "max_tokens": 8},
        COMPLETION_ROUTE: {"prompt": text, "max_tokens": 8},
        "/tokenize": {"prompt": text},
        "/detokenize": {"tokens": [1, 2]},
    }
    return {**model, **bodies[route]} if route in bodies else None


def reply_schema(route: str) -> Json:
    """The answer with status 200, as far as it is the same from every engine."""
    names = {CHAT_ROUTE: "ChatCompletion", COMPLETION_ROUTE: "Completion"}
    return {"$ref": f"#/components/schemas/{names[route]}"} if route in names else {}


def named_schemas() -> dict[str, Json]:
    """`components.schemas`."""
    _, explained = msgspec.json.schema_components([Explanation], ref_template="#/components/schemas/{name}")
    choice = {"index": {"type": "integer"}, "finish_reason": _NULLABLE}
    card = {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}}
    return {
        **explained,
        "Error": _object(
            {"error": _object({"message": {"type": "string"}, "type": {"type": "string"}, **_ERROR_DETAILS}, 2)}
        ),
        "Usage": _object({name: {"type": "integer"} for name in ("prompt_tokens", "total_tokens")}),
        "Completion": _answer("text_completion", {**choice, "text": {"type": "string"}}),
        "ChatCompletion": _answer("chat.completion", {**choice, "message": {"type": "object"}}),
        "Model": _object(
            {**card, "owned_by": {"type": "string"}, "parent": _NULLABLE, "max_model_len": {"type": "integer"}}
        ),
        "Models": _object(
            {"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}}
        ),
        "Health": _object({"status": {"const": "ok"}}),
        "Ready": _object({"status": {"const": "ready"}, "models": {"type": "array", "items": {"type": "string"}}}),
        "NotReady": _object(
            {
                "status": {"const": "not ready"},
                "workers": {"type": "object", "additionalProperties": {"type": "string"}},
                "warm": {"type": "boolean"},
            }
        ),
    }


# An engine's own errors have an integer as code; those of /v1/messages have neither.
_ERROR_DETAILS: Json = {"param": _NULLABLE, "code": {"type": ["string", "integer", "null"]}}


def _checked_fields(models: Sequence[str]) -> Json:
    """What `parse_body` checks."""
    name = {"enum": list(models)} if models else {"minLength": 1}
    reserved = {field: {"type": "null", "description": "reserved for the hand-off"} for field in RESERVED_FIELDS}
    return {
        "model": {"type": "string", "description": "a model or adapter that is served now", **name},
        "stream": {"type": ["boolean", "null"], "description": "server-sent events instead of one JSON object"},
        **reserved,
        "vllm_xargs": {"description": "vLLM's extensions", "properties": dict.fromkeys(RESERVED_FIELDS, False)},
    }


def _answer(kind: str, choice: Json) -> Json:
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": _object(choice)},
            "usage": {"$ref": "#/components/schemas/Usage"},
        }
    )


def _object(properties: Json, num_required: int | None = None) -> Json:
    """An object whose properties are required, all or the first few; others may be in it."""
    return {"type": "object", "required": list(properties)[:num_required], "properties": properties}
