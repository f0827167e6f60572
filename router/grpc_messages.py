"""Between headrace.v1 messages and the engine's OpenAI JSON, both ways. Pure."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from router._generated.headrace.v1 import inference_pb2 as pb
from router.errors import ApiError, bad_request, broken_stream
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE

_EXACT_INTEGERS = 2**53  # a double beyond this is not one integer
_RESERVED_EXTRA = ("model", "messages", "prompt", "stream", "stream_options")
# A typed field that has several JSON names; the first one of its route is sent, none may come through `extra`.
_MAX_TOKENS = ("max_tokens", "max_completion_tokens")
_LOGPROBS = ("logprobs", "top_logprobs")
_SAME_NAME = ("temperature", "top_p", "seed", "n", "presence_penalty", "frequency_penalty")
_NOT_A_CHUNK = "the engine sent an event that is no completion chunk"


def to_openai(request: pb.GenerateRequest) -> tuple[str, bytes]:
    """Route and body of the same request over HTTP, always streamed; raises ApiError 400 naming the proto field."""
    if not request.model:
        raise bad_request("'model' is required", code="invalid_model", param="model")
    match request.WhichOneof("input"):
        case "chat":
            route, fields = CHAT_ROUTE, _chat(request.chat)
        case "token_ids":
            if not request.token_ids.ids:
                raise bad_request("'token_ids.ids' is empty", code="empty_input", param="token_ids.ids")
            route, fields = COMPLETION_ROUTE, {"prompt": list(request.token_ids.ids)}
        case "prompt":
            route, fields = COMPLETION_ROUTE, {"prompt": request.prompt}
        case _:
            message = "an input is required: set 'prompt', 'token_ids' or 'chat'"
            raise bad_request(message, code="empty_input", param="input")
    fields |= _sampling(request.sampling, is_chat=route == CHAT_ROUTE)
    fields |= _extra(request, typed=fields)
    body = {"model": request.model, **fields, "stream": True, "stream_options": {"include_usage": True}}
    return route, msgspec.json.encode(body)


def _chat(chat: pb.Chat) -> dict[str, Any]:
    if not chat.messages:
        raise bad_request("'chat.messages' is empty", code="empty_input", param="chat.messages")
    fields: dict[str, Any] = {"messages": [_message(message, at) for at, message in enumerate(chat.messages)]}
    if chat.tools:
        fields["tools"] = [_object(tool, "chat.tools") for tool in chat.tools]
    if chat.HasField("tool_choice"):
        fields["tool_choice"] = _value(chat.tool_choice, "chat.tool_choice")
    return fields


def _message(message: pb.Message, at: int) -> dict[str, Any]:
    if not message.role:
        param = f"chat.messages[{at}].role"
        raise bad_request(f"{param!r} is required", code="invalid_role", param=param)
    fields: dict[str, Any] = {"role": message.role}
    if message.HasField("content"):
        fields["content"] = _value(message.content, f"chat.messages[{at}].content")
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return fields | {name: getattr(message, name) for name in ("tool_call_id", "name") if getattr(message, name)}


def _sampling(sampling: pb.Sampling, *, is_chat: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in _SAME_NAME:
        if sampling.HasField(name):
            value = getattr(sampling, name)
            if not math.isfinite(value):
                param = f"sampling.{name}"
                raise bad_request(f"{param!r} must be a finite number", code="invalid_number", param=param)
            fields[name] = value
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.HasField("max_tokens"):
        fields["max_completion_tokens" if is_chat else "max_tokens"] = sampling.max_tokens
    if sampling.HasField("top_logprobs"):
        fields |= (
            {"logprobs": True, "top_logprobs": sampling.top_logprobs}
            if is_chat
            else {"logprobs": sampling.top_logprobs}
        )
    return fields


def _extra(request: pb.GenerateRequest, typed: Mapping[str, Any]) -> dict[str, Any]:
    taken = set(typed)
    for names in (_MAX_TOKENS, _LOGPROBS):
        if not taken.isdisjoint(names):
            taken.update(names)
    for name in request.extra.fields:
        param = f"extra.{name}"
        if name in _RESERVED_EXTRA:
            raise bad_request(f"{name!r} cannot be set through 'extra'", code="reserved_field", param=param)
        if name in taken:
            message = f"{name!r} is in 'extra' and also set by a field of its own; remove one of them"
            raise bad_request(message, code="duplicate_field", param=param)
    return _object(request.extra, "extra")


def _object(struct: Any, param: str) -> dict[str, Any]:
    return {name: _value(value, param) for name, value in struct.fields.items()}


def _value(value: Any, param: str) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _object(value.struct_value, param)
        case "list_value":
            return [_value(item, param) for item in value.list_value.values]
        case "number_value":
            return _number(value.number_value, param)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _number(number: float, param: str) -> int | float:
    """A protobuf Struct has doubles only, and an engine takes no 5.0 where it wants an integer."""
    if not math.isfinite(number):
        message = f"{param!r} holds NaN or an infinity, which JSON does not have"
        raise bad_request(message, code="invalid_number", param=param)
    return int(number) if number.is_integer() and abs(number) <= _EXACT_INTEGERS else number


class SseReader:
    """The JSON objects in an engine's event stream, from pieces cut anywhere."""

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self.done = False  # [DONE] has come; whatever follows is ignored

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        """The events that this piece completes. Raises ApiError at an event that is no JSON object."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            event = self._take(line.removesuffix(b"\r"))
            if event is not None:
                yield event

    def _take(self, line: bytes) -> dict[str, Any] | None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        if line or not self._data or self.done:  # not the end of an event, or of none that counts
            return None
        data, self._data = b"\n".join(self._data), []
        if data == b"[DONE]":
            self.done = True
            return None
        try:
            return msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise broken_stream(_NOT_A_CHUNK) from error


def to_response(event: Mapping[str, Any]) -> pb.GenerateResponse:
    """One chunk of a chat or plain completion; raises ApiError where the engine reports an error instead."""
    if event.get("error") is not None:
        raise _error_event(event["error"])
    try:
        choices = [_choice(choice) for choice in event.get("choices") or ()]
        return pb.GenerateResponse(id=event.get("id") or "", choices=choices, usage=_usage(event.get("usage")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise broken_stream(_NOT_A_CHUNK) from error


def _choice(choice: Mapping[str, Any]) -> pb.Choice:
    delta = choice.get("delta") or {}
    return pb.Choice(
        index=choice["index"],
        text=choice.get("text") or delta.get("content") or "",
        tool_calls=[_tool_call(call) for call in delta.get("tool_calls") or ()],
        logprobs=_logprobs(choice.get("logprobs") or {}),
        finish_reason=choice.get("finish_reason") or "",
        reasoning=delta.get("reasoning") or delta.get("reasoning_content") or "",
    )


def _tool_call(call: Mapping[str, Any]) -> pb.ToolCallDelta:
    function = call.get("function") or {}
    return pb.ToolCallDelta(
        index=call["index"],
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
    )


def _logprobs(logprobs: Mapping[str, Any]) -> list[pb.TokenLogprob]:
    if "tokens" not in logprobs:
        return [_token_logprob(one, one.get("top_logprobs") or ()) for one in logprobs.get("content") or ()]
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        _token_logprob(
            {"token": token, "logprob": logprob},
            [{"token": other, "logprob": its} for other, its in (top or {}).items()],
        )
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]


def _token_logprob(one: Mapping[str, Any], top: Any) -> pb.TokenLogprob:
    # The first token of an echoed prompt has none; 0.0 would say that it was certain.
    logprob = math.nan if one["logprob"] is None else one["logprob"]
    tops = [pb.TopLogprob(token=other["token"], logprob=other["logprob"]) for other in top]
    return pb.TokenLogprob(token=one["token"], logprob=logprob, top=tops)


def _usage(usage: Mapping[str, Any] | None) -> pb.Usage | None:
    if usage is None:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return pb.Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
    )


def _error_event(error: Any) -> ApiError:
    """The engine gave up after it had begun. Its own fault is a broken stream, whatever it says of itself."""
    described = error if isinstance(error, dict) else {}
    message = str(described.get("message") or "the engine reported an error")
    status = described.get("code")
    if isinstance(status, int) and 400 <= status < 500:
        return ApiError(status, "invalid_request_error", "engine_error", message)
    return broken_stream(message)


def engine_error(status: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """An engine's whole answer that is not 200: what it says of the client's mistake."""
    try:
        error = msgspec.json.decode(body)["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        message, code, param = f"the engine answered with status {status}", None, None
    return ApiError(
        status if 400 <= status < 600 else 502,
        "invalid_request_error",
        code if isinstance(code, str) and code.isascii() and code.isprintable() else "engine_error",
        message,
        param if isinstance(param, str) else None,
        float(retry_after) if retry_after and retry_after.isdecimal() else None,
    )
