"""What is asked of a fake engine: bodies checked as vLLM 0.32 checks them, refused in vLLM's words. Pure.

Only what a proxy can provoke or must preserve is checked; fields not read here are accepted silently, as vLLM does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from workers.fake.model import VOCAB_SIZE, render_chat, tokenize


class RefusedError(Exception):
    """An answer in vLLM's error shape instead of a completion."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A checked request for tokens."""

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    n: int
    max_tokens: int | None  # None: as many as the context has room for
    min_tokens: int
    seed: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    include_stop: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    num_logprobs: int | None  # candidates to report beside each token; None: no log probabilities
    return_token_ids: bool
    cache_salt: str | None
    lora_name: str | None
    session_id: str | None
    kv_transfer_params: Mapping[str, Any]

    @property
    def num_sequences(self) -> int:
        """How many sequences it asks for."""
        return len(self.prompts) * self.n


def decode_object(raw: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in a body; raises RefusedError."""
    if content_type.lower().partition(";")[0] != "application/json":
        raise _invalid(None, "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid("body", f"JSON decode error: {error}") from error
    if not isinstance(body, dict):
        raise _invalid("body", "Input should be a valid dictionary")
    return body


def check_model(body: Mapping[str, Any], models: Sequence[str]) -> None:
    """Raise RefusedError 404 for another model than those served; none means the first."""
    asked = body.get("model")
    if asked is not None and not isinstance(asked, str):
        raise _invalid("body.model", "Input should be a valid string")
    if asked and asked not in models:
        message = f"The model `{asked}` does not exist. Valid aliases: {', '.join(models)}."
        raise RefusedError(404, "NotFoundError", message, "model")


def parse_generation(
    body: Mapping[str, Any], *, chat: bool, models: Sequence[str], max_model_len: int, session_id: str | None
) -> GenerationRequest:
    """The request in `body`; raises RefusedError. `models`: the model's name, then its adapters'."""
    prompts = _chat_prompts(body) if chat else _completion_prompts(body)
    stream = bool(_read(body, "stream", bool, False))
    options = _read(body, "stream_options", dict, {})
    if options and not stream:
        raise _invalid("stream_options", "Stream options can only be defined when `stream=True`.")
    max_tokens = _read(body, "max_completion_tokens", int, None) if chat else None
    max_tokens = _read(body, "max_tokens", int, None) if max_tokens is None else max_tokens
    request = GenerationRequest(
        chat=chat,
        prompts=prompts,
        n=_read(body, "n", int, 1),
        max_tokens=max_tokens,
        min_tokens=_read(body, "min_tokens", int, 0),
        seed=_read(body, "seed", int, 0),
        stop=_stops(body),
        stop_token_ids=frozenset(_read(body, "stop_token_ids", list, [])),
        include_stop=_read(body, "include_stop_str_in_output", bool, False),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        num_logprobs=_num_logprobs(body, chat),
        return_token_ids=bool(_read(body, "return_token_ids", bool, False)),
        cache_salt=_read(body, "cache_salt", str, None),
        lora_name=body["model"] if body.get("model") in models[1:] else None,
        session_id=_read(body, "session_id", str, session_id),
        kv_transfer_params=_read(body, "kv_transfer_params", dict, {}),
    )
    check_model(body, models)
    if request.n > 1 and body.get("temperature") == 0:
        raise _bad(f"n must be 1 when using greedy sampling, got {request.n}.", "n")
    for prompt in prompts:
        _check_lengths(request, len(prompt), max_model_len, from_text=not isinstance(body.get("prompt"), list))
    return request


def parse_tokenize(body: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens of a /tokenize request; raises RefusedError."""
    if "messages" in body:
        return _chat_prompts(body)[0]
    return tokenize(_required(body, "prompt", str))


def parse_detokenize(body: Mapping[str, Any]) -> list[int]:
    """The tokens in a /detokenize request; raises RefusedError."""
    return list(_token_ids(_required(body, "tokens", list), "body.tokens"))


def _chat_prompts(body: Mapping[str, Any]) -> tuple[tuple[int, ...]]:
    for index, message in enumerate(_required(body, "messages", list)):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _invalid(f"body.messages.{index}.role", "Field required")
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise _invalid("body", "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    return (tokenize(render_chat(body)),)


def _completion_prompts(body: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    prompt = body.get("prompt")
    if prompt is None or prompt == "":
        raise _invalid("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
    if isinstance(prompt, str):
        return (tokenize(prompt),)
    if not isinstance(prompt, list) or not prompt:
        raise _invalid("body.prompt", "Input should be a valid string or a non-empty list")
    if all(isinstance(item, str) for item in prompt):
        return tuple(tokenize(item) for item in prompt)
    if all(isinstance(item, list) for item in prompt):
        return tuple(_token_ids(item, f"body.prompt.{index}") for index, item in enumerate(prompt))
    return (_token_ids(prompt, "body.prompt"),)


def _token_ids(items: list[Any], where: str) -> tuple[int, ...]:
    for index, item in enumerate(items):
        if not isinstance(item, int) or not 0 <= item < VOCAB_SIZE:
            raise _invalid(f"{where}.{index}", "Input should be a valid token id")
    return tuple(items)


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else ([] if stop is None else stop)
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise _invalid("body.stop", "Input should be a valid string or list of strings")
    return tuple(stops)


def _num_logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        asked = body.get("logprobs")
        if asked is not None and (not isinstance(asked, int) or asked < 0):
            raise _invalid("logprobs", "`logprobs` must be an integer." if asked != -1 else "`logprobs` is too large")
        return asked
    return _read(body, "top_logprobs", int, 0) if _read(body, "logprobs", bool, False) else None


def _check_lengths(request: GenerationRequest, num_tokens: int, max_model_len: int, *, from_text: bool) -> None:
    if request.max_tokens is not None and request.max_tokens > max_model_len:
        message = f"max_tokens={request.max_tokens} cannot be greater than max_model_len={max_model_len}."
        raise _bad(f"{message} Please request fewer output tokens.", "max_tokens")
    if num_tokens < 1:
        raise _bad("The decoder prompt cannot be empty", "prompt")
    if num_tokens > max_model_len:
        # vLLM cuts a text's tokens one past the limit, so it does not know by how much a text is too long.
        count = f"at least {max_model_len + 1}" if from_text else str(num_tokens)
        raise _bad(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {count} "
            "input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
        )
    room = max_model_len - num_tokens
    max_tokens = room if request.max_tokens is None else min(room, request.max_tokens)
    if max_tokens < 1:
        raise _bad(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens")
    if not 0 <= request.min_tokens <= max_tokens:
        limits = f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {request.min_tokens}."
        raise _bad(limits, "min_tokens")
    if request.n < 1:
        raise _bad(f"n must be at least 1, got {request.n}.", "n")


def _required(body: Mapping[str, Any], name: str, kind: type) -> Any:
    if body.get(name) is None:
        raise _invalid(f"body.{name}", "Field required")
    return _read(body, name, kind, None)


def _read(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {int: "integer", bool: "boolean", str: "string", list: "list", dict: "dictionary"}
        raise _invalid(f"body.{name}", f"Input should be a valid {names[kind]}")
    return value


def _invalid(param: str | None, message: str) -> RefusedError:
    detail = f"1 validation error:\n  {{'loc': {param!r}, 'msg': {message!r}}}" if param else message
    return RefusedError(400, "Bad Request", detail, param)


def _bad(message: str, param: str) -> RefusedError:
    return RefusedError(400, "BadRequestError", message, param)
