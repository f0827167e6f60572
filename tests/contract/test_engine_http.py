"""What Headrace relies on in an engine's HTTP. The fake and a real vLLM pass the same tests."""

import json
import re
from typing import Any

import httpx
import pytest

from tests.contract.engine_requests import (
    CHAT,
    COMPLETIONS,
    Engine,
    body_for,
    chat,
    completion,
    long_prompt,
    wait_for,
)
from workers.engine_metrics import parse_metrics, parse_routes

_HANDLE_KEYS = {
    "do_remote_prefill", "do_remote_decode", "remote_block_ids", "remote_engine_id", "remote_request_id",
    "remote_host", "remote_port", "tp_size", "dcp_size", "pp_size", "remote_num_tokens",
    "remote_blocks_expiry_time", "transfer_mode", "remote_prefill_cached_tokens",
}  # fmt: skip
_METRICS = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:cache_config_info",
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_queries_total",
    "vllm:external_prefix_cache_hits_total", "vllm:nixl_bytes_transferred_sum", "vllm:nixl_bytes_transferred_count",
    "vllm:nixl_num_failed_transfers_total", "vllm:nixl_num_kv_expired_reqs_total",
    "vllm:prompt_tokens_by_source_total", "vllm:request_success_total",
)  # fmt: skip
_READ_FIELDS = {"model", "stream", "stream_options", "max_tokens", "n", "stop", "seed", "cache_salt", "session_id"}


def _events(response: httpx.Response) -> list[str]:
    """The payloads of a stream, whose framing is checked."""
    text = response.text
    assert text.endswith("data: [DONE]\n\n")
    events = text.split("\n\n")[:-1]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]


def _running(http: httpx.Client) -> int:
    return parse_metrics(http.get("/metrics").text).load.running_seqs


def test_health_and_version(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    assert isinstance(http.get("/version").json()["version"], str)


def test_models(engine: Engine, http: httpx.Client) -> None:
    listing = http.get("/v1/models").json()
    assert listing["object"] == "list"
    (card,) = listing["data"]
    assert card["id"] == engine.model
    assert card["object"] == "model"
    assert card["max_model_len"] >= 512


def test_metrics_have_the_names_that_headrace_reads(engine: Engine, http: httpx.Client) -> None:
    assert http.post(COMPLETIONS, json=completion(engine, max_tokens=1)).status_code == 200
    text = http.get("/metrics").text
    for name in _METRICS:
        assert re.search(rf"^{name}{{[^}}]*engine=\"0\"", text, re.MULTILINE), name
    metrics = parse_metrics(text)
    assert metrics.kv_blocks_total > 0
    assert metrics.block_size_tokens > 0
    assert sum(metrics.tokens_done) > 0


def test_openapi_names_routes_and_fields(http: httpx.Client) -> None:
    routes = parse_routes(http.get("/openapi.json").json())
    assert {CHAT, COMPLETIONS, "/tokenize", "/detokenize"} <= routes.keys()
    assert {*_READ_FIELDS, "kv_transfer_params", "prompt", "echo"} <= set(routes[COMPLETIONS])
    assert {*_READ_FIELDS, "kv_transfer_params", "messages", "max_completion_tokens"} <= set(routes[CHAT])


def test_tokenize_and_back(engine: Engine, http: httpx.Client) -> None:
    prompt = "Water runs: über 3 wheels."
    tokens = http.post("/tokenize", json={"model": engine.model, "prompt": prompt}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert http.post("/detokenize", json={"model": engine.model, "tokens": tokens["tokens"]}).json() == {
        "prompt": prompt
    }


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT])
def test_whole_answer_with_usage(engine: Engine, http: httpx.Client, route: str) -> None:
    response = http.post(route, json=body_for(engine, route, n=2, temperature=0.8, seed=1, ignore_eos=True))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
    answer = response.json()
    assert answer["model"] == engine.model
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        assert isinstance(choice["message"]["content"] if route == CHAT else choice["text"], str)
        assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8
    assert "cached_tokens" in usage["prompt_tokens_details"]


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT])
def test_stream_says_the_same_as_the_whole_answer(engine: Engine, http: httpx.Client, route: str) -> None:
    body = body_for(engine, route, ignore_eos=True)
    whole = http.post(route, json=body).json()["choices"][0]
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    response = http.post(route, json=streamed)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = _events(response)
    assert done == "[DONE]"
    parts = [json.loads(chunk)["choices"][0] for chunk in chunks]
    if route == CHAT:
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in parts) == whole["message"]["content"]
    else:
        assert "".join(part["text"] for part in parts) == whole["text"]
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]
    closing = json.loads(last)
    assert closing["choices"] == []
    assert closing["usage"]["completion_tokens"] == 4


def test_greedy_output_is_the_same_again(engine: Engine, http: httpx.Client) -> None:
    answers = [http.post(COMPLETIONS, json=completion(engine)).json()["choices"][0]["text"] for _ in range(2)]
    assert answers[0] == answers[1]


def test_stop_string_ends_the_text(engine: Engine, http: httpx.Client) -> None:
    body = completion(engine, max_tokens=8, ignore_eos=True)
    text = http.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
    stop = text[3]
    choice = http.post(COMPLETIONS, json={**body, "stop": [stop]}).json()["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_log_probabilities(engine: Engine, http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json=completion(engine, logprobs=2, ignore_eos=True)).json()
    found = answer["choices"][0]["logprobs"]
    assert {len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {4}
    answer = http.post(CHAT, json=chat(engine, logprobs=True, top_logprobs=2, ignore_eos=True)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in content)


def test_field_the_engine_does_not_know_is_accepted(engine: Engine, http: httpx.Client) -> None:
    assert http.post(COMPLETIONS, json=completion(engine, headrace_unknown=1)).status_code == 200


def _assert_error(response: httpx.Response, status: int, message: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert re.search(message, error["message"]), error["message"]


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (CHAT, {"messages": "hello"}),
        (CHAT, {"messages": None}),
        (COMPLETIONS, {"prompt": 7}),
        (COMPLETIONS, {"prompt": None}),
        (COMPLETIONS, {"max_tokens": "many"}),
        (COMPLETIONS, {"max_tokens": 0}),
        (COMPLETIONS, {"max_tokens": 4, "min_tokens": 5}),
        (COMPLETIONS, {"n": 2, "temperature": 0}),
        (COMPLETIONS, {"stream_options": {"include_usage": True}}),
    ],
)
def test_bad_field_is_refused(engine: Engine, http: httpx.Client, route: str, fields: dict[str, Any]) -> None:
    _assert_error(http.post(route, json=body_for(engine, route, **fields)), 400, "")


def test_bad_body_is_refused(http: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    _assert_error(http.post(COMPLETIONS, content=b'{"prompt": ', headers=headers), 400, "")
    _assert_error(http.post(COMPLETIONS, content=b"[]", headers=headers), 400, "")
    _assert_error(http.post(COMPLETIONS, content=b"{}", headers={"content-type": "text/plain"}), 400, "Media Type")


def test_unknown_model_and_route_are_not_found(engine: Engine, http: httpx.Client) -> None:
    for route in (COMPLETIONS, CHAT):
        response = http.post(route, json=body_for(engine, route, model="nobody"))
        _assert_error(response, 404, "The model `nobody` does not exist.")
    response = http.post("/v1/nothing", json={})
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})
    response = http.get(COMPLETIONS)
    assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})


def test_prompt_over_the_context_is_refused(engine: Engine, http: httpx.Client) -> None:
    limit = http.get("/v1/models").json()["data"][0]["max_model_len"]
    context = f"This model's maximum context length is {limit} tokens"
    text = http.post(COMPLETIONS, json=completion(engine, prompt="a " * (limit + 1)))
    _assert_error(text, 400, f"{context}. However, your prompt contains at least {limit + 1} input tokens")
    tokens = http.post(COMPLETIONS, json=completion(engine, prompt=[65] * (limit + 5)))
    _assert_error(tokens, 400, f"{context}. However, your prompt contains {limit + 5} input tokens")
    too_many = http.post(COMPLETIONS, json=completion(engine, max_tokens=limit + 1))
    _assert_error(too_many, 400, f"max_tokens={limit + 1} cannot be greater than max_model_len={limit}")


def test_client_that_leaves_stops_the_generation(engine: Engine, http: httpx.Client) -> None:
    # At the engine's pace all these tokens would take longer than this test waits.
    body = completion(engine, max_tokens=1500 if not engine.is_real else 600, stream=True, ignore_eos=True)
    with http.stream("POST", COMPLETIONS, json=body) as response:
        chunks = response.iter_bytes()  # kept: httpx hangs up when its iterator goes
        assert next(chunks).startswith(b"data: ")
        with httpx.Client(base_url=engine.address, timeout=60.0) as other:
            wait_for(lambda: _running(other) >= 1, "the request to run")
    wait_for(lambda: _running(http) == 0, "the engine to stop")


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT])
def test_prefill_answers_with_a_handle(engine: Engine, http: httpx.Client, route: str) -> None:
    prompt = long_prompt()
    shape = {"messages": [{"role": "user", "content": prompt}]} if route == CHAT else {"prompt": prompt}
    body = body_for(engine, route, max_tokens=1, kv_transfer_params={"do_remote_decode": True}, **shape)
    answer = http.post(route, json=body).json()
    handle = answer["kv_transfer_params"]
    assert handle.keys() == _HANDLE_KEYS
    assert (handle["do_remote_prefill"], handle["do_remote_decode"]) == (True, False)
    assert handle["transfer_mode"] == "pull"
    assert handle["remote_num_tokens"] == answer["usage"]["prompt_tokens"]
    assert handle["remote_prefill_cached_tokens"] == answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    (block_ids,) = handle["remote_block_ids"]
    block_size = parse_metrics(http.get("/metrics").text).block_size_tokens
    assert len(block_ids) == -(-handle["remote_num_tokens"] // block_size)


def test_second_identical_prompt_hits_the_cache(engine: Engine, http: httpx.Client) -> None:
    body = completion(engine, prompt=long_prompt(), max_tokens=1)

    def cached(**fields: Any) -> int:
        usage = http.post(COMPLETIONS, json={**body, **fields}).json()["usage"]
        assert usage["prompt_tokens"] > 3 * block_size
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    block_size = parse_metrics(http.get("/metrics").text).block_size_tokens
    first, second, salted = cached(), cached(), cached(cache_salt="other")
    assert (first, salted) == (0, 0)
    assert second >= 3 * block_size
    assert second % block_size == 0
