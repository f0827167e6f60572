"""What the router reads of a body, and what it refuses."""

import json
import time
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams

from router.errors import ApiError
from router.openai import (
    CHAT_ROUTE,
    COMPLETION_ROUTE,
    OPENAI_FIELDS,
    ParsedBody,
    check_fields,
    error_in_first_chunk,
    parse_body,
    usable_request_id,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ParsedBody:
    return parse_body(CHAT_ROUTE, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def completion(**fields: Any) -> ParsedBody:
    return parse_body(COMPLETION_ROUTE, json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def refused(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_body(CHAT_ROUTE, raw)
    assert caught.value.status == 400
    caught.value.body()  # can be sent
    return caught.value


NOT_JSON = {
    "half": b'{"model": "m"',
    "trailing": b'{"model": "m"} x',
    "two objects": b"{}{}",
    "NaN": b'{"model": "m", "temperature": NaN}',
    "infinity": b'{"model": "m", "temperature": -Infinity}',
    "out of range": b'{"model": "m", "temperature": 1e999}',
    "5,000 digits": b'{"model": "m", "n": %s}' % (b"9" * 5000),
    "invalid UTF-8": b'{"model": "m\xff"}',
    "invalid UTF-8 in a key": b'{"\xff": 1, "model": "m"}',
    "encoded surrogate": b'{"model": "\xed\xa0\x80"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "lone surrogate in a key": b'{"\\udc00": 1, "model": "m"}',
    "UTF-16": '{"model": "m"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"model": "m"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "single quotes": b"{'model': 'm'}",
    "comment": b'{"model": "m" /* m */}',
    "NUL": b'{"model": "m"}\x00',
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_a_400(raw: bytes) -> None:
    assert refused(raw).code == "invalid_json"


@pytest.mark.parametrize("raw", [b"1", b"null", b'"model"', b"[]", b"true", b'[{"model": "m"}]'])
def test_json_that_is_no_object_is_a_400(raw: bytes) -> None:
    assert refused(raw).message == "the request body must be a JSON object"


@pytest.mark.parametrize("raw", [b"", b" \r\n\t "])
def test_an_empty_body_is_a_400_that_says_so(raw: bytes) -> None:
    assert refused(raw).code == "empty_body"


@pytest.mark.parametrize("model", ["", None, 1, True, ["m"], {"m": 1}])
def test_a_model_is_a_non_empty_string(model: object) -> None:
    error = refused(json.dumps({"model": model}).encode())
    assert (error.code, error.param) == ("invalid_model", "model")


def test_a_body_without_a_model_is_a_400_that_names_it() -> None:
    assert refused(b"{}").param == "model"


@pytest.mark.parametrize("stream", ["true", 1, 0, [], {}])
def test_stream_is_true_or_false(stream: object) -> None:
    error = refused(json.dumps({"model": "m", "stream": stream}).encode())
    assert (error.code, error.param) == ("invalid_type", "stream")


@pytest.mark.parametrize(("stream", "expected"), [(True, True), (False, False), (None, False)])
def test_stream_is_read(stream: bool | None, expected: bool) -> None:
    assert chat(stream=stream).stream is expected
    assert chat().stream is False


RESERVED = [
    {"kv_transfer_params": {"remote_engine_id": "x"}},
    {"kv_transfer_params": {}},
    {"kv_transfer_params": "x"},
    {"ec_transfer_params": {"a": 1}},
    {"vllm_xargs": {"kv_transfer_params": "x"}},  # vLLM merges these, and its scheduler dies of a str here
    {"vllm_xargs": {"seed": 1, "ec_transfer_params": ["x"]}},
]


@pytest.mark.parametrize("fields", RESERVED)
def test_a_client_cannot_name_kv_blocks(fields: dict[str, object]) -> None:
    error = refused(json.dumps({"model": "m", **fields}).encode())
    assert error.code == "reserved_field"
    assert error.param in ("kv_transfer_params", "ec_transfer_params") or "vllm_xargs." in str(error.param)


def test_a_reserved_field_is_found_however_it_is_spelled() -> None:
    assert refused(b'{"model": "m", "kv\\u005ftransfer_params": {"a": 1}}').code == "reserved_field"


def test_a_reserved_field_may_be_null_and_other_extensions_may_be_there() -> None:
    parsed = chat(kv_transfer_params=None, vllm_xargs={"session_id": "s"})
    assert parsed.can_hand_off
    assert chat(vllm_xargs="not even an object").fields["vllm_xargs"] == "not even an object"


def test_the_last_of_two_equal_keys_counts_as_it_does_for_the_engine() -> None:
    raw = b'{"model": "a", "model": "b", "stream": true, "stream": false}'
    parsed = parse_body(CHAT_ROUTE, raw)
    assert (parsed.model, parsed.stream) == ("b", False)
    assert json.loads(raw) == parsed.fields  # the engine's parser reads the same
    assert refused(b'{"model": "m", "kv_transfer_params": null, "kv_transfer_params": {"a": 1}}').code


def test_large_integers_survive() -> None:
    assert chat(seed=2**70).fields["seed"] == 2**70


def test_nesting_that_is_merely_unusual_is_accepted() -> None:
    schema: object = {}
    for _ in range(200):
        schema = {"properties": {"a": schema}}
    assert chat(response_format=schema).fields["response_format"] == schema


def test_tokens_are_counted_where_they_are_given_and_estimated_where_not() -> None:
    assert completion(prompt=[1, 2, 3]).num_prompt_tokens == 3
    raw = json.dumps({"model": "m", "prompt": "x" * 4000}).encode()
    assert parse_body(COMPLETION_ROUTE, raw).num_prompt_tokens == len(raw) // 4
    for prompt in ([], ["a", "b"], [[1, 2]], None):
        assert completion(prompt=prompt).num_prompt_tokens >= 1
    assert parse_body("/x", b'{"model":"m"}').num_prompt_tokens >= 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 256),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8}, 8),
        ({"max_tokens": 7, "max_completion_tokens": 8}, 8),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({"max_tokens": True}, 256),
        ({"max_tokens": 0}, 256),
        ({"max_tokens": -1}, 256),
        ({"max_tokens": "7"}, 256),
        ({"max_tokens": 7.0}, 256),
        ({"max_tokens": [7]}, 256),
    ],
)
def test_the_output_length_is_read_or_guessed(fields: dict[str, object], expected: int) -> None:
    assert chat(**fields).max_output_tokens == expected


HAND_OFF: list[dict[str, object]] = [
    {},
    {"n": 1},
    {"n": None},
    {"n": 1.0},
    {"n": True},  # an engine reads it as 1
    {"stream": True},
    {"max_tokens": 2},
    {"logprobs": True, "top_logprobs": 5},
    {"echo": False},
    {"prompt_logprobs": None},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
]
NO_HAND_OFF: list[dict[str, object]] = [
    {"n": 2},
    {"n": "2"},
    {"n": 0},
    {"n": False},
    {"best_of": 2},
    {"use_beam_search": True},
    {"echo": True},
    {"prompt_logprobs": 0},
    {"prompt_logprobs": 5},
    {"prompt_logprobs": False},
    {"max_tokens": 1},
    {"max_completion_tokens": 1, "max_tokens": 99},
    {"truncate_prompt_tokens": -1},
    {"truncate_prompt_tokens": 100},
    {"prompt_embeds": "AAAA"},
]


@pytest.mark.parametrize("fields", HAND_OFF, ids=str)
def test_one_sequence_from_one_prompt_is_handed_off(fields: dict[str, object]) -> None:
    assert chat(**fields).can_hand_off
    assert completion(**fields).can_hand_off


@pytest.mark.parametrize("fields", NO_HAND_OFF, ids=str)
def test_what_a_handle_cannot_carry_is_not_handed_off(fields: dict[str, object]) -> None:
    assert not chat(**fields).can_hand_off
    assert not completion(**fields).can_hand_off


@pytest.mark.parametrize("prompt", [["one"], ["one", "two"], [[1, 2]], [1, "two"], [1.5], None, 7, {"a": 1}])
def test_prompts_that_are_not_one_prompt_are_not_handed_off(prompt: object) -> None:
    assert not completion(prompt=prompt).can_hand_off


@pytest.mark.parametrize("prompt", ["", "text", [1, 2, 3]])
def test_one_prompt_as_text_or_tokens_is_handed_off(prompt: object) -> None:
    assert completion(prompt=prompt).can_hand_off


@pytest.mark.parametrize("messages", [None, "hi", {"role": "user"}])
def test_a_chat_without_messages_is_left_to_the_engine_to_refuse(messages: object) -> None:
    assert not chat(messages=messages).can_hand_off


@pytest.mark.parametrize("route", ["/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize"])
def test_other_routes_are_not_handed_off(route: str) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, "prompt": "hi"}).encode()
    assert not parse_body(route, body).can_hand_off


def test_an_unknown_field_is_named_with_what_may_have_been_meant() -> None:
    with pytest.raises(ApiError) as caught:
        check_fields(["model", "temperatur"], {"model", "top_k"})
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unknown_field", "temperatur")
    assert caught.value.message == "unknown field 'temperatur'; did you mean 'temperature'?"


def test_an_unknown_field_like_no_other_is_to_be_removed() -> None:
    with pytest.raises(ApiError, match="unknown field 'zzzzzz'; remove it"):
        check_fields(["zzzzzz"], {"model"})


def test_known_fields_are_the_engines_and_openais() -> None:
    check_fields(["top_k", "model", *OPENAI_FIELDS], {"top_k"})
    check_fields(["anything"], ())  # an engine that does not say what it knows


def test_an_official_client_is_never_refused() -> None:
    """Every parameter of the official client's own types is let through."""
    official = {*ChatParams.__annotations__, *CompletionParams.__annotations__}
    assert official - {"stream"} <= OPENAI_FIELDS
    assert len(official) > 30


def test_a_huge_field_name_is_refused_quickly_and_quoted_briefly() -> None:
    cpu_s = time.process_time()
    with pytest.raises(ApiError) as caught:
        check_fields(["x" * 10_000_000], {"model"})
    assert time.process_time() - cpu_s < 1.0
    assert len(caught.value.body()) < 500


@pytest.mark.parametrize("text", ["a", "A-b_c.d:e", "0" * 128])
def test_a_clients_request_id_is_kept(text: str) -> None:
    assert usable_request_id(text) == text


@pytest.mark.parametrize("text", [None, "", "a b", "a\n", "a\r\nx: y", "é", "0" * 129, "a/b"])
def test_a_request_id_that_could_break_a_header_or_a_log_is_replaced(text: str | None) -> None:
    assert usable_request_id(text) is None


def test_a_stream_that_begins_with_an_error_is_recognised() -> None:
    assert error_in_first_chunk(b'data: {"error": {"message": "x"}}\n\n')
    assert not error_in_first_chunk(b'data: {"id": "x", "choices": [{"error": 1}]}\n\n')
    assert not error_in_first_chunk(b"")
