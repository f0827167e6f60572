"""What clients get over gRPC: answers and refusals."""

import json
from typing import Any

import grpc
import pytest

from router._generated.headrace.v1 import inference_pb2 as pb
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from tests.grpc_door import (
    MODEL,
    chunk,
    collect,
    failure,
    finish_reasons,
    make_chat,
    make_request,
    make_worker_at,
    open_door,
    open_door_to_fake,
    open_door_to_script,
    reference,
    run,
    sse,
    text_of,
    trailing,
)
from workers.fake import FakeEngine, FakeSettings
from workers.types import Role

_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_chat() -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, engine):
            call = door.stub.Generate(make_chat(sampling={"maxTokens": 12, "seed": "5"}))
            responses = [response async for response in call]
            messages = [{"role": "user", "content": "hello"}]
            expected = await reference(engine, CHAT_ROUTE, messages=messages, max_completion_tokens=12, seed=5)
            assert text_of(responses) == expected["choices"][0]["message"]["content"]
            assert finish_reasons(responses) == ["length"]
            assert len({response.id for response in responses}) == 1
            assert [response.HasField("usage") for response in responses[-2:]] == [False, True]
            usage = responses[-1].usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (expected["usage"]["prompt_tokens"], 12)
            assert len(responses) > 10  # a stream, not one answer

    run(test())


def test_a_hand_off_gives_the_same_answer() -> None:
    async def test() -> None:
        settings = FakeSettings(model=MODEL)
        async with FakeEngine(settings).serving() as prefill, FakeEngine(settings).serving() as decode:
            fleet = (
                make_worker_at(prefill.address, "p1", role=Role.PREFILL),
                make_worker_at(decode.address, "d1", role=Role.DECODE),
            )
            async with open_door(*fleet) as door:
                prompt = "a prompt of more than one block " * 4
                responses = await collect(door, make_request(prompt=prompt, sampling={"maxTokens": 9}))
                assert prefill.requests[0].route == COMPLETION_ROUTE
                assert responses[-1].usage.completion_tokens == 9
                await door.settle()
            expected = await reference(prefill, COMPLETION_ROUTE, prompt=prompt, max_tokens=9)
            assert text_of(responses) == expected["choices"][0]["text"]

    run(test())


@pytest.mark.parametrize("source", [{"prompt": "hello"}, {"tokenIds": {"ids": [104, 101, 108, 108, 111]}}])
def test_completion_of_text_and_of_token_ids(source: dict[str, Any]) -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, engine):
            responses = await collect(door, make_request(**source, sampling={"maxTokens": 9}))
            expected = await reference(engine, COMPLETION_ROUTE, prompt="hello", max_tokens=9)
            assert text_of(responses) == expected["choices"][0]["text"]
            assert responses[-1].usage == pb.Usage(prompt_tokens=5, completion_tokens=9)

    run(test())


def test_several_completions_are_told_apart_and_end_at_the_stop_string() -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, engine):
            responses = await collect(door, make_request(sampling={"maxTokens": 40, "n": 2, "stop": [" "]}))
            expected = await reference(engine, COMPLETION_ROUTE, prompt="hello", max_tokens=40, n=2, stop=[" "])
            for choice in expected["choices"]:
                assert text_of(responses, choice["index"]) == choice["text"]
            assert sorted(finish_reasons(responses)) == sorted(
                choice["finish_reason"] for choice in expected["choices"]
            )
            assert "stop" in finish_reasons(responses)

    run(test())


@pytest.mark.parametrize("is_chat", [True, False])
def test_logprobs(is_chat: bool) -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, engine):
            make = make_chat if is_chat else make_request
            responses = await collect(door, make(sampling={"maxTokens": 3, "topLogprobs": 2}))
            found = [
                (one.token, one.logprob, {top.token: top.logprob for top in one.top})
                for response in responses
                for choice in response.choices
                for one in choice.logprobs
            ]
            if is_chat:
                body = {"messages": [{"role": "user", "content": "hello"}], "logprobs": True, "top_logprobs": 2}
                logprobs = (await reference(engine, CHAT_ROUTE, **body, max_tokens=3))["choices"][0]["logprobs"]
                expected = [
                    (one["token"], one["logprob"], {top["token"]: top["logprob"] for top in one["top_logprobs"]})
                    for one in logprobs["content"]
                ]
            else:
                answer = await reference(engine, COMPLETION_ROUTE, prompt="hello", logprobs=2, max_tokens=3)
                logprobs = answer["choices"][0]["logprobs"]
                expected = list(
                    zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
                )
            assert len(found) == 3
            assert found == expected

    run(test())


def test_extra_tools_and_headers_reach_the_engine() -> None:
    async def test() -> None:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}
        pieces = sse(
            {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}}]},
            {
                "id": "x",
                "choices": [
                    {
                        "index": 0,
                        "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Oslo"}'}}]},
                        "finish_reason": "tool_calls",
                    }
                ],
            },
        )
        async with open_door_to_script(*pieces) as (door, engine):
            schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"minItems": 2}}}
            chat = {"tools": [_TOOL], "tool_choice": "required"}
            metadata = (
                ("x-request-id", "abc-1"),
                ("x-session-id", "s7"),
                ("traceparent", "00-aa-bb-01"),
                ("secret", "x"),
            )
            stream = door.stub.Generate(make_chat(chat=chat, extra={"response_format": schema}), metadata=metadata)
            deltas = [delta async for response in stream for delta in response.choices[0].tool_calls]
            assert deltas == [
                pb.ToolCallDelta(id="c1", name="weather"),
                pb.ToolCallDelta(arguments='{"city":"Oslo"}'),
            ]
            assert dict(await stream.initial_metadata()) == {"x-request-id": "abc-1"}
            (body,) = engine.bodies
            assert (body["tools"], body["tool_choice"], body["response_format"]) == ([_TOOL], "required", schema)
            headers = engine.seen_headers[0]
            assert {name: headers.get(name) for name in ("x-request-id", "x-session-id", "traceparent", "secret")} == {
                "x-request-id": "abc-1",
                "x-session-id": "s7",
                "traceparent": "00-aa-bb-01",
                "secret": None,
            }

    run(test())


def test_models() -> None:
    async def test() -> None:
        short = make_worker_at("http://127.0.0.1:1", "w2", max_model_len_tokens=512)
        other = make_worker_at("http://127.0.0.1:1", "w3", model="another")
        async with open_door(make_worker_at("http://127.0.0.1:1"), short, other) as door:
            models = (await door.stub.ListModels(pb.ListModelsRequest())).models
            assert [(model.name, model.max_model_len_tokens) for model in models] == [("another", 2048), (MODEL, 512)]
            assert (await door.stub.GetModel(pb.GetModelRequest(name=MODEL))).max_model_len_tokens == 512
            error = await failure(door.stub.GetModel(pb.GetModelRequest(name="none")))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert trailing(error)["x-headrace-error-code"] == "model_not_found"

    run(test())


def test_unknown_model_is_not_found() -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, _):
            request = make_request(model="none")
            error = await failure(door.stub.Generate(request, metadata=(("x-request-id", "abc-2"),)))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert "'none'" in (error.details() or "")
            assert trailing(error) == {"x-request-id": "abc-2", "x-headrace-error-code": "model_not_found"}

    run(test())


def test_no_worker_is_unavailable_and_says_when_to_come_back() -> None:
    async def test() -> None:
        async with open_door() as door:
            error = await failure(door.stub.Generate(make_request()))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert trailing(error)["retry-after"] == "2"
            assert trailing(error)["x-headrace-error-code"] == "no_worker"

    run(test())


def test_a_paused_class_is_unavailable_and_says_when_to_come_back() -> None:
    async def test() -> None:
        async with open_door() as door:
            door.desk.gate.set_paused({"batch": 7.0})
            call = door.stub.Generate(make_request(), metadata=(("x-headrace-class", "batch"),))
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert trailing(error)["retry-after"] == "7"
            assert trailing(error)["x-headrace-error-code"] == "class_paused"
            error = await failure(door.stub.Generate(make_request()))
            assert trailing(error)["x-headrace-error-code"] == "no_worker", "the default class is open"

    run(test())


def test_bad_input_is_an_invalid_argument() -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, _):
            for request in (pb.GenerateRequest(model=MODEL), make_request(extra={"stream": False})):
                error = await failure(door.stub.Generate(request))
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert len(trailing(error)["x-request-id"]) == 32
            refused = await failure(door.stub.Generate(make_request(sampling={"maxTokens": 100_000})))
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "max_tokens=100000" in (refused.details() or "")
            assert trailing(refused)["x-headrace-error-code"] == "engine_error"

    run(test())


def test_a_request_over_the_limit_is_refused() -> None:
    async def test() -> None:
        async with open_door(max_body_bytes=4096) as door:
            error = await failure(door.stub.Generate(make_request(prompt="x" * 5000)))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(test())


def test_an_engines_long_refusal_still_reaches_the_client() -> None:
    async def test() -> None:
        body = json.dumps({"error": {"message": "é" * 20_000, "code": 429}}, ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "retry-after": "7"}
        async with open_door_to_script(body, status=429, headers=headers) as (door, _):
            error = await failure(door.stub.Generate(make_request()))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (error.details() or "").startswith("ééé")
            assert trailing(error)["retry-after"] == "7"

    run(test())


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (sse({"error": {"message": "out of memory", "code": 500}}), "out of memory"),
        (sse("not a chunk"), "no completion chunk"),
        ([], "before it was complete"),
    ],
)
def test_an_answer_that_ends_badly_gives_its_part_and_an_error(end: list[bytes], word: str) -> None:
    async def test() -> None:
        async with open_door_to_script(*sse(chunk("he"), chunk("llo"), done=False), *end) as (door, _):
            call = door.stub.Generate(make_request())
            assert (await anext(aiter(call))).choices[0].text == "he"
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert word in (error.details() or "")
            assert trailing(error)["x-headrace-error-code"] == "stream_broken"

    run(test())


def test_a_bug_of_ours_says_no_more_than_that(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with open_door_to_fake() as (door, _):
            door.core.handle = lambda event, now_s: 1 / 0  # type: ignore[method-assign,assignment,return-value]
            error = await failure(door.stub.Generate(make_request(), metadata=(("x-request-id", "abc-3"),)))
            del door.core.handle
            assert error.code() is grpc.StatusCode.INTERNAL
            assert "division" not in (error.details() or "")
            assert trailing(error)["x-request-id"] == "abc-3"

    run(test())
    assert "abc-3" in caplog.text
