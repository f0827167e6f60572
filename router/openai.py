"""What the router reads of an OpenAI request. Everything else in it passes untouched. Pure."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from router.errors import bad_request
from workers.kv_connector import HANDLE_FIELD

CHAT_ROUTE = "/v1/chat/completions"
COMPLETION_ROUTE = "/v1/completions"
# Routes whose answer is made token by token: the ones that targets are about.
GENERATION_ROUTES = (CHAT_ROUTE, COMPLETION_ROUTE, "/v1/responses", "/v1/messages")

# Fields of the official API that engines may ignore; an official client must never be refused for sending them.
# Source: openai-python, types/chat/completion_create_params.py and types/completion_create_params.py.
OPENAI_FIELDS = frozenset(
    """
    messages model prompt audio best_of echo frequency_penalty function_call functions logit_bias logprobs
    max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction presence_penalty
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier
    seed service_tier stop store stream stream_options suffix temperature tool_choice tools top_logprobs top_p user
    verbosity web_search_options
    """.split()  # noqa: SIM905  forty lines as a list
)
# Fields with which a client could reach another request's KV blocks, or crash an engine (a handle that is no object
# ends vLLM's scheduler). vLLM also takes them from inside its field for extensions.
RESERVED_FIELDS = (HANDLE_FIELD, "ec_transfer_params")
_EXTENSION_FIELD = "vllm_xargs"

# What decides whether a request can be handed off: by being above one, true, or there at all.
_SEQUENCES = ("n", "best_of")
_FLAGS = ("use_beam_search", "echo", "prompt_embeds")
_VALUES = ("prompt_logprobs", "truncate_prompt_tokens")
_HAND_OFF_FIELDS = frozenset((*_SEQUENCES, *_FLAGS, *_VALUES))
# Client headers an engine may see. Credentials, cookies and whatever else a client sends stay here.
FORWARDED_HEADERS = ("traceparent", "tracestate", "x-session-id")
EXPLAIN_HEADER = "x-headrace-explain"

_BYTES_PER_TOKEN = 4  # English text; an estimate until the router tokenises
_DEFAULT_OUTPUT_TOKENS = 256
_MAX_QUOTED_CHARS = 64  # of a field name, in an error message
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ParsedBody(msgspec.Struct, frozen=True, gc=False):
    """What routing reads of a body."""

    fields: Mapping[str, Any]
    model: str
    stream: bool
    num_prompt_tokens: int
    max_output_tokens: int
    can_hand_off: bool
    num_sequences: int = 1  # answers asked for, each of so many tokens


def parse_body(route: str, raw: bytes) -> ParsedBody:
    """Read a request body; raises ApiError 400 that names the field and what it should be."""
    fields = _decode_object(raw)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("'model' is required and must be a non-empty string", code="invalid_model", param="model")
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("'stream' must be true or false", code="invalid_type", param="stream")
    _check_reserved(fields)
    max_output_tokens = _max_output_tokens(fields)
    return ParsedBody(
        fields=fields,
        model=model,
        stream=bool(stream),
        num_prompt_tokens=_estimate_prompt_tokens(fields, len(raw)),
        max_output_tokens=max_output_tokens,
        can_hand_off=max_output_tokens > 1 and _can_hand_off(route, fields),
        num_sequences=_num_sequences(fields),
    )


def check_fields(fields: Collection[str], known: Collection[str]) -> None:
    """Raise ApiError 400 for a field that neither OpenAI nor the engine knows. No check where `known` is empty."""
    if not known:
        return
    for name in fields:
        if name not in known and name not in OPENAI_FIELDS:
            quoted = name[:_MAX_QUOTED_CHARS]
            close = difflib.get_close_matches(quoted, sorted({*known, *OPENAI_FIELDS}), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; remove it"
            raise bad_request(f"unknown field {quoted!r}{hint}", code="unknown_field", param=quoted)


def usable_request_id(text: str | None) -> str | None:
    """The client's request id if it can be passed on and logged as it is, else None."""
    return text if text is not None and _REQUEST_ID.fullmatch(text) else None


def _decode_object(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        raise bad_request("the request body is empty; send a JSON object", code="empty_body")
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(f"the request body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise bad_request("the request body must be a JSON object", code="invalid_json")
    return fields


def _check_reserved(fields: Mapping[str, Any]) -> None:
    extensions = fields.get(_EXTENSION_FIELD)
    for name in RESERVED_FIELDS:
        if fields.get(name) is not None:
            param = name
        elif isinstance(extensions, dict) and name in extensions:
            param = f"{_EXTENSION_FIELD}.{name}"
        else:
            continue
        raise bad_request(
            f"{param!r} is reserved for the hand-off between workers; remove it", code="reserved_field", param=param
        )


def _estimate_prompt_tokens(fields: Mapping[str, Any], num_bytes: int) -> int:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    return max(1, num_bytes // _BYTES_PER_TOKEN)


def _max_output_tokens(fields: Mapping[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return _DEFAULT_OUTPUT_TOKENS


def _num_sequences(fields: Mapping[str, Any]) -> int:
    """For what a tenant is held to; what is no number the engine refuses."""
    prompt, asked = fields.get("prompt"), 1
    for name in _SEQUENCES:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            asked = max(asked, value)
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        asked *= len(prompt)
    return asked


def _can_hand_off(route: str, fields: Mapping[str, Any]) -> bool:
    """Of several output tokens: one sequence from one text prompt whose own log probabilities nobody asked for.

    A handle is spent once, so several sequences cannot share it; and positions whose blocks are transferred are not
    computed on the decode worker, so nothing can be reported about them. A prompt that the engine truncates depends
    on max_tokens too, which differs between the two calls: they would read different tokens.
    """
    if route not in (CHAT_ROUTE, COMPLETION_ROUTE):
        return False
    if not _HAND_OFF_FIELDS.isdisjoint(fields):  # most requests have none of them
        if any(fields.get(name) not in (None, 1) for name in _SEQUENCES):
            return False
        if any(fields.get(name) for name in _FLAGS):
            return False
        if any(fields.get(name) is not None for name in _VALUES):
            return False
    if route == CHAT_ROUTE:
        return isinstance(fields.get("messages"), list)
    prompt = fields.get("prompt")
    return isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(token, int) for token in prompt))


def error_in_first_chunk(chunk: bytes) -> bool:
    """A stream that begins with an error event: the engine failed after it had sent its headers."""
    return chunk.startswith(b'data: {"error"')
