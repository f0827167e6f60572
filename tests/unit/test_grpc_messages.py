"""The translation between headrace.v1 messages and OpenAI JSON."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from router._generated.headrace.v1 import inference_pb2 as pb
from router.errors import ApiError
from router.grpc_messages import SseReader, engine_error, to_openai, to_response
from router.openai import parse_body

_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "maxItems": 3}}}


def make_chat(**fields: Any) -> pb.GenerateRequest:
    """A chat request from its JSON form, with one message unless it has others."""
    chat = {"messages": [{"role": "user", "content": "hello"}]} | fields.pop("chat", {})
    return json_format.ParseDict({"model": "m", "chat": chat, **fields}, pb.GenerateRequest())


def make_prompt(**fields: Any) -> pb.GenerateRequest:
    """A plain completion request from its JSON form."""
    return json_format.ParseDict({"model": "m", "prompt": "hello", **fields}, pb.GenerateRequest())


def body_of(request: pb.GenerateRequest) -> dict[str, Any]:
    """The JSON body it becomes; the route's parser must take it too."""
    route, raw = to_openai(request)
    parse_body(route, raw)
    body: dict[str, Any] = json.loads(raw)
    return body


def refusal_of(request: pb.GenerateRequest) -> ApiError:
    """The error it is refused with."""
    with pytest.raises(ApiError) as caught:
        to_openai(request)
    assert caught.value.status == 400
    return caught.value


def test_chat_request_is_streamed_with_usage() -> None:
    assert to_openai(make_chat())[0] == "/v1/chat/completions"
    assert body_of(make_chat()) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_prompt_and_token_ids_are_completions() -> None:
    route, raw = to_openai(make_prompt())
    assert (route, json.loads(raw)["prompt"]) == ("/v1/completions", "hello")
    route, raw = to_openai(pb.GenerateRequest(model="m", token_ids=pb.TokenIds(ids=[1, 2, 3])))
    assert (route, json.loads(raw)["prompt"]) == ("/v1/completions", [1, 2, 3])


def test_every_message_field_and_content_parts_pass() -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    call = {"id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        {"role": "user", "name": "ann", "content": parts},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    assert body_of(make_chat(chat={"messages": messages}))["messages"] == [
        {"role": "user", "name": "ann", "content": parts},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]


@pytest.mark.parametrize("choice", ["auto", {"type": "function", "function": {"name": "weather"}}])
def test_tools_and_tool_choice_pass(choice: Any) -> None:
    body = body_of(make_chat(chat={"tools": [_TOOL], "tool_choice": choice}))
    assert body["tools"] == [_TOOL]
    assert body["tool_choice"] == choice


def test_sampling_is_sent_only_where_set_and_zero_is_set() -> None:
    sampling = {"maxTokens": 7, "temperature": 0.0, "topP": 0.5, "seed": "0", "n": 2, "stop": ["a", "b"]}
    penalties = {"presencePenalty": -1.0, "frequencyPenalty": 0.25}
    common = {"temperature": 0.0, "top_p": 0.5, "seed": 0, "n": 2, "stop": ["a", "b"]}
    common |= {"presence_penalty": -1.0, "frequency_penalty": 0.25}
    plain = {"model", "stream", "stream_options"}
    chat = body_of(make_chat(sampling=sampling | penalties | {"topLogprobs": 0}))
    assert {name: value for name, value in chat.items() if name not in plain | {"messages"}} == common | {
        "max_completion_tokens": 7,
        "logprobs": True,
        "top_logprobs": 0,
    }
    completion = body_of(make_prompt(sampling=sampling | penalties | {"topLogprobs": 3}))
    assert {name: value for name, value in completion.items() if name not in plain | {"prompt"}} == common | {
        "max_tokens": 7,
        "logprobs": 3,
    }


def test_integral_numbers_of_a_struct_are_json_integers() -> None:
    extra = {"top_k": 5, "min_p": 0.5, "logit_bias": {"7": -100}, "stop_token_ids": [1, 2], "a": None, "b": True}
    body = body_of(make_prompt(extra=extra))
    assert {name: body[name] for name in extra} == extra
    assert type(body["top_k"]) is int
    assert type(body["logit_bias"]["7"]) is int
    assert all(type(token) is int for token in body["stop_token_ids"])
    assert type(body_of(make_prompt(extra={"top_k": 1e300}))["top_k"]) is float


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.GenerateRequest(prompt="x"), "model"),
        (pb.GenerateRequest(model="m"), "input"),
        (pb.GenerateRequest(model="m", token_ids=pb.TokenIds()), "token_ids.ids"),
        (pb.GenerateRequest(model="m", chat=pb.Chat()), "chat.messages"),
        (make_chat(chat={"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}), "chat.messages[1].role"),
        (make_prompt(extra={"stream": False}), "extra.stream"),
        (make_prompt(extra={"stream_options": {}}), "extra.stream_options"),
        (make_prompt(extra={"model": "other"}), "extra.model"),
        (make_prompt(extra={"messages": []}), "extra.messages"),
        (make_chat(extra={"prompt": "x"}), "extra.prompt"),
        (make_prompt(sampling={"temperature": 1}, extra={"temperature": 1}), "extra.temperature"),
        (make_chat(sampling={"maxTokens": 1}, extra={"max_tokens": 1}), "extra.max_tokens"),
        (make_prompt(sampling={"topLogprobs": 1}, extra={"top_logprobs": 1}), "extra.top_logprobs"),
        (make_chat(chat={"tools": [_TOOL]}, extra={"tools": []}), "extra.tools"),
        (make_prompt(sampling={"temperature": "NaN"}), "sampling.temperature"),
        (make_prompt(sampling={"topP": "Infinity"}), "sampling.top_p"),
    ],
)
def test_a_refusal_names_the_proto_field(request_: pb.GenerateRequest, param: str) -> None:
    error = refusal_of(request_)
    assert error.param == param
    assert param.removeprefix("extra.") in error.message


def test_numbers_that_json_lacks_are_refused() -> None:
    request = make_prompt()
    request.extra.fields["min_p"].CopyFrom(struct_pb2.Value(number_value=math.nan))
    assert refusal_of(request).param == "extra"


def test_typed_fields_may_come_through_extra_where_they_are_not_set() -> None:
    body = body_of(make_chat(extra={"temperature": 1, "tools": [_TOOL], "response_format": {"type": "json_object"}}))
    assert (body["temperature"], body["tools"]) == (1, [_TOOL])
    assert body["response_format"] == {"type": "json_object"}


def test_chat_chunk() -> None:
    entry = {"token": "Hi", "logprob": -0.5, "bytes": [72], "top_logprobs": [{"token": "Yo", "logprob": -2.0}]}
    delta = {
        "content": "Hi",
        "tool_calls": [
            {"index": 1, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}},
            {"index": 1, "function": {"arguments": "}"}},
        ],
    }
    event = {
        "id": "chat-1",
        "choices": [{"index": 1, "delta": delta, "logprobs": {"content": [entry]}, "finish_reason": "tool_calls"}],
    }
    assert to_response(event) == pb.GenerateResponse(
        id="chat-1",
        choices=[
            pb.Choice(
                index=1,
                text="Hi",
                tool_calls=[
                    pb.ToolCallDelta(index=1, id="c", name="f", arguments="{"),
                    pb.ToolCallDelta(index=1, arguments="}"),
                ],
                logprobs=[
                    pb.TokenLogprob(token="Hi", logprob=-0.5, top=[pb.TopLogprob(token="Yo", logprob=-2.0)]),
                ],
                finish_reason="tool_calls",
            )
        ],
    )


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_has_two_names(name: str) -> None:
    event = {"id": "x", "choices": [{"index": 0, "delta": {"content": None, name: "hm"}, "finish_reason": None}]}
    assert to_response(event).choices[0] == pb.Choice(reasoning="hm")


def test_completion_chunk() -> None:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"b": -1.0, "c": -3.0}],
        "text_offset": [0, 1],
    }
    event = {"id": "cmpl-1", "choices": [{"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"}]}
    choice = to_response(event).choices[0]
    assert (choice.text, choice.finish_reason) == ("ab", "length")
    first, second = choice.logprobs
    assert (first.token, list(first.top)) == ("a", [])
    assert math.isnan(first.logprob)
    tops = [pb.TopLogprob(token="b", logprob=-1.0), pb.TopLogprob(token="c", logprob=-3.0)]
    assert second == pb.TokenLogprob(token="b", logprob=-1.0, top=tops)


def test_usage() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    expected = pb.Usage(prompt_tokens=5, completion_tokens=2)
    assert to_response({"id": "x", "choices": [], "usage": usage}).usage == expected
    assert to_response({"choices": [], "usage": usage | {"prompt_tokens_details": None}}).usage == expected
    expected.cached_tokens = 4
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    assert to_response({"choices": [], "usage": usage | details}).usage == expected
    assert not to_response({"choices": [], "usage": None}).HasField("usage")


@pytest.mark.parametrize(
    ("error", "status"), [({"message": "boom", "code": 500}, 502), ({"message": "boom", "code": 400}, 400), ("?", 502)]
)
def test_an_error_event_is_an_error(error: object, status: int) -> None:
    with pytest.raises(ApiError) as caught:
        to_response({"error": error})
    assert caught.value.status == status
    assert ("boom" if isinstance(error, dict) else "error") in caught.value.message


@pytest.mark.parametrize(
    "event",
    [
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{}]},
        {"id": 5},
        {"choices": [{"index": -1}]},
        {"choices": [{"index": 0, "logprobs": {"tokens": ["a"], "token_logprobs": []}}]},
        {"choices": [], "usage": {}},
    ],
)
def test_an_event_that_is_no_chunk_is_an_error(event: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="no completion chunk"):
        to_response(event)


def test_sse_comments_fields_line_ends_and_done() -> None:
    stream = b': ping\r\nevent: x\r\ndata: {"a":1}\r\n\r\n\n\ndata:{"b":\ndata: 2}\n\ndata: [DONE]\n\ndata: {"c":3}\n\n'
    reader = SseReader()
    assert list(reader.feed(stream)) == [{"a": 1}, {"b": 2}]
    assert reader.done
    assert list(reader.feed(b"data: x\n\n")) == []


def test_sse_gives_what_came_before_the_error() -> None:
    events = SseReader().feed(b'data: {"a":1}\n\ndata: [1]\n\n')
    assert next(events) == {"a": 1}
    with pytest.raises(ApiError, match="no completion chunk"):
        next(events)


@pytest.mark.parametrize("data", [b"{", b"5", b"null", b'{"a":"\xff"}', b"[" * 100_000])
def test_sse_refuses_what_is_no_object(data: bytes) -> None:
    with pytest.raises(ApiError, match="no completion chunk"):
        list(SseReader().feed(b"data: " + data + b"\n\n"))


_JSON_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_EVENTS = st.lists(st.dictionaries(_JSON_TEXT, _JSON_TEXT | st.integers(-9, 9), max_size=3), max_size=6)


@given(_EVENTS, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.booleans(), st.data())
def test_any_chunking_gives_the_same_events(
    events: list[dict[str, Any]], end: bytes, is_ascii: bool, has_comments: bool, data: st.DataObject
) -> None:
    comment = b": hello" + end + end if has_comments else b""
    parts = [comment + b"data: " + json.dumps(event, ensure_ascii=is_ascii).encode() + end + end for event in events]
    stream = b"".join([*parts, b"data: [DONE]", end, end])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = SseReader()
    seen = []
    for begin, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert not reader.done or begin == len(stream)
        seen += list(reader.feed(stream[begin:stop]))
    assert seen == events
    assert reader.done


def test_engine_error_keeps_what_the_engine_says() -> None:
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":"prompt","code":"context_length"}}'
    error = engine_error(400, body, "3")
    assert (error.status, error.message, error.code, error.param) == (400, "too long", "context_length", "prompt")
    assert error.retry_after_s == 3.0


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"error":"x"}', b'{"detail":"Not Found"}', b'{"error":{"message":"m","code":400}}'],
)
def test_engine_error_without_a_usable_body(body: bytes) -> None:
    error = engine_error(404, body)
    assert (error.status, error.code, error.retry_after_s) == (404, "engine_error", None)
    assert error.message in ("m", "the engine answered with status 404")
    assert engine_error(307, body).status == 502
