"""Every line of bad input, against the running cluster: an OpenAI-shaped error that names the cause, nothing hangs."""

import json
import socket
from typing import Any
from urllib.parse import urlparse

import httpx
import pytest

from tests.stack import Stack

pytestmark = pytest.mark.cluster

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def post(cluster: Stack, route: str, body: bytes | dict[str, Any]) -> httpx.Response:
    """POST a body as it is, or a dict as JSON with the cluster's model filled in."""
    content = body if isinstance(body, bytes) else json.dumps({"model": cluster.model, **body}).encode()
    headers = {"content-type": "application/json"}
    return httpx.post(f"{cluster.http_url}{route}", content=content, headers=headers, timeout=60)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The OpenAI error object, after checking its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    error: dict[str, Any] = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "empty_body", "empty"),
        (b"  \n", "empty_body", "empty"),
        (b'{"model": "m", ', "invalid_json", "not valid JSON"),
        (b'{"model": "m", "prompt": NaN}', "invalid_json", "not valid JSON"),
        (b"\xff\xfe", "invalid_json", "not valid JSON"),
        (b"[1, 2]", "invalid_json", "object"),
        (b"[" * 100_000, "invalid_json", "not valid JSON"),
        (b"{}", "invalid_model", "model"),
        (b'{"model": 7}', "invalid_model", "model"),
        (b'{"model": ""}', "invalid_model", "model"),
        (b'{"model": "m", "stream": "yes"}', "invalid_type", "stream"),
    ],
)
def test_malformed_bodies(cluster: Stack, body: bytes, code: str, words: str) -> None:
    error = error_of(post(cluster, CHAT, body), 400)
    assert error["code"] == code
    assert words in error["message"]


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "hi"}], "temperature": "hot"}, "temperature"),
        (COMPLETIONS, {"prompt": 5}, "prompt"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        (COMPLETIONS, {"prompt": "a", "n": True, "temperature": -3}, "temperature"),
    ],
)
def test_wrong_types_and_values(cluster: Stack, route: str, fields: dict[str, Any], param: str) -> None:
    error = error_of(post(cluster, route, fields), 400)
    assert param in json.dumps(error)


def test_unknown_model(cluster: Stack) -> None:
    error = error_of(post(cluster, CHAT, {"model": "gpt-17", "messages": []}), 404)
    assert error["code"] == "model_not_found"
    assert cluster.model in error["message"], "says what there is"


def test_unknown_field_names_the_likely_one(cluster: Stack) -> None:
    error = error_of(post(cluster, COMPLETIONS, {"prompt": "a", "temprature": 0.1}), 400)
    assert error["param"] == "temprature"
    assert "did you mean 'temperature'" in error["message"]


def test_hand_off_parameters_are_not_for_clients(cluster: Stack) -> None:
    error = error_of(
        post(cluster, COMPLETIONS, {"prompt": "a", "kv_transfer_params": {"do_remote_prefill": True}}), 400
    )
    assert error["code"] == "reserved_field"


def test_oversized_body_with_a_length(cluster: Stack) -> None:
    error = error_of(post(cluster, COMPLETIONS, b" " * ((32 << 20) + 1)), 413)
    assert "router.max_body_bytes" in error["message"]


def test_oversized_body_without_a_length(cluster: Stack) -> None:
    def pieces() -> Any:
        for _ in range(33):
            yield b" " * (1 << 20)

    response = httpx.post(f"{cluster.http_url}{COMPLETIONS}", content=pieces(), timeout=60)
    assert error_of(response, 413)["code"] == "body_too_large"


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_over_the_context(cluster: Stack, stream: bool) -> None:
    error = error_of(post(cluster, COMPLETIONS, {"prompt": "word " * 3000, "max_tokens": 4, "stream": stream}), 400)
    assert "maximum context length" in error["message"]


def test_unknown_route_and_method(cluster: Stack) -> None:
    error = error_of(httpx.post(f"{cluster.http_url}/v1/nothing", json={}, timeout=30), 404)
    assert error["code"] == "unknown_route"
    error = error_of(httpx.get(f"{cluster.http_url}{CHAT}", timeout=30), 405)
    assert "POST" in error["message"]


def test_a_route_no_engine_has(cluster: Stack) -> None:
    error = error_of(post(cluster, "/v1/embeddings", {"input": "x"}), 404)
    assert error["code"] == "route_not_served"


def test_half_a_request_does_not_hold_anything(cluster: Stack) -> None:
    """A client that announces a body and goes away leaves no request in flight."""
    url = urlparse(cluster.http_url)
    with socket.create_connection((url.hostname, url.port), timeout=10) as sock:
        sock.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n".encode() + b'{"model"')
    metrics = httpx.get(f"{cluster.http_url}/metrics", timeout=30).text
    assert "headrace_requests_in_flight 0.0" in metrics


def test_errors_never_quote_the_prompt(cluster: Stack) -> None:
    secret = "the launch code is 0000"
    post(cluster, COMPLETIONS, {"prompt": secret, "temperature": -3})
    post(cluster, COMPLETIONS, {"prompt": secret, "max_tokens": 2})
    post(cluster, COMPLETIONS, f'{{"prompt": "{secret}", '.encode())
    logs = [path.read_text(errors="replace") for path in cluster.log_dir.iterdir()]
    assert not any(secret in log for log in logs)
    assert secret not in httpx.get(f"{cluster.http_url}/metrics", timeout=30).text
