"""The bodies of the two calls of a hand-off."""

import json
from typing import Any

import pytest

from workers.kv_connector import HandleError, KvHandle, decode_body, parse_handle, prefill_body

# As a vLLM 0.32 prefill worker answers it.
HANDLE = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2]],
    "remote_engine_id": "0f3c2a52-5b8e-4a57-8c39-3bfa4f1a9a51",
    "remote_request_id": "chatcmpl-abc-0",
    "remote_host": "127.0.0.1",
    "remote_port": 20001,
    "tp_size": 1,
    "remote_num_tokens": 44,
}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def prefill(**fields: Any) -> Any:
    return json.loads(prefill_body(json.dumps({**CHAT, **fields}).encode()))


def reply(params: object) -> bytes:
    return json.dumps({"id": "x", "choices": [], "kv_transfer_params": params}).encode()


def test_the_prefill_call_makes_one_token_and_leaves_its_blocks_for_a_peer() -> None:
    assert prefill() == {**CHAT, "max_tokens": 1, "stream": False, "kv_transfer_params": {"do_remote_decode": True}}


def test_a_client_s_null_does_not_replace_the_prefill_call_s_own_fields() -> None:
    body = prefill(max_tokens=None, stream=None, kv_transfer_params=None)
    assert (body["max_tokens"], body["stream"]) == (1, False)
    assert body["kv_transfer_params"] == {"do_remote_decode": True}


PROMPT_SHAPING: dict[str, object] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "documents": [{"title": "t", "text": "x"}],
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},  # some chat renderers write it into the prompt
    "add_generation_prompt": False,
    "continue_final_message": True,
    "add_special_tokens": False,
    "truncation_side": "left",
    "mm_processor_kwargs": {"num_crops": 4},
    "media_io_kwargs": {"image": {}},
    "cache_salt": "s",
    "prompt": [1, 2, 3],
    "suffix": "x",
}


@pytest.mark.parametrize(("name", "value"), PROMPT_SHAPING.items())
def test_what_shapes_the_prompt_stays(name: str, value: object) -> None:
    """Otherwise the decode worker would read blocks of other tokens than its own."""
    assert prefill(**{name: value})[name] == value


def test_the_bytes_of_what_stays_are_the_client_s() -> None:
    raw = b'{"prompt" : "\\u00e9 \\ud83d\\ude00", "temperature": 1.50, "seed": 123456789012345678901234567890}'
    body = prefill_body(raw)
    for value in (b'"\\u00e9 \\ud83d\\ude00"', b"1.50", b"123456789012345678901234567890"):
        assert value in body


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True, "stream_options": {"include_usage": True}},
        {"max_completion_tokens": 99},
        {"max_tokens": 99, "min_tokens": 50},
        {"logprobs": True, "top_logprobs": 5, "logprob_token_ids": [1, 2]},
        {"stop": ["x"], "stop_token_ids": [1]},
        {"structured_outputs": {"regex": "a+"}},
        {"thinking_token_budget": 5},
    ],
)
def test_what_asks_for_output_goes(fields: dict[str, object]) -> None:
    """A field left alone would be an error: options without a stream, logprob_token_ids without logprobs, ..."""
    assert prefill(**fields) == prefill()


def test_the_handle_of_a_reply_is_passed_on_as_it_is() -> None:
    handle = parse_handle(reply(HANDLE))
    assert (handle.engine_id, handle.num_tokens) == (HANDLE["remote_engine_id"], 44)
    assert handle.params == json.dumps(HANDLE).encode()


WITHOUT_HANDLE = {
    "no field": b"{}",
    "null": reply(None),
    "a list": reply([1]),
    "a string": reply("x"),
    "no engine id": reply({k: v for k, v in HANDLE.items() if k != "remote_engine_id"}),
    "no token count": reply({k: v for k, v in HANDLE.items() if k != "remote_num_tokens"}),
    "token count null": reply({**HANDLE, "remote_num_tokens": None}),
    "token count no number": reply({**HANDLE, "remote_num_tokens": "many"}),
    "empty": b"",
    "not json": b"Internal Server Error",
    "a json list": b"[]",
    "a json string": b'"kv_transfer_params"',
    "invalid UTF-8": b'{"kv_transfer_params": {"remote_engine_id": "\xff", "remote_num_tokens": 1}}',
    "number out of range": b'{"kv_transfer_params": {"remote_engine_id": "x", "remote_num_tokens": 1e999}}',
    "deep": b'{"kv_transfer_params": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", WITHOUT_HANDLE.values(), ids=WITHOUT_HANDLE)
def test_a_reply_without_a_usable_handle_is_a_handle_error(body: bytes) -> None:
    with pytest.raises(HandleError, match="no KV handle"):
        parse_handle(body)


def test_the_decode_call_is_the_clients_bytes_and_the_handle() -> None:
    raw = b'{ "model": "m",\n "prompt": "a } b", "temperature": 1.50 }\r\n '
    spliced = b"".join(decode_body(raw, KvHandle("e", 1, json.dumps(HANDLE).encode())))
    assert spliced.startswith(raw.rstrip()[:-1])
    assert json.loads(spliced) == {**json.loads(raw), "kv_transfer_params": HANDLE}


def test_the_decode_call_s_handle_wins_over_a_null_of_the_client() -> None:
    raw = b'{"kv_transfer_params": null, "model": "m"}'
    spliced = b"".join(decode_body(raw, KvHandle("e", 1, json.dumps(HANDLE).encode())))
    assert json.loads(spliced)["kv_transfer_params"] == HANDLE
