"""One command, and any client gets an answer: the promise of the README, on the real cluster."""

import json

import grpc
import httpx
import pytest

from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from tests.stack import Stack

pytestmark = pytest.mark.cluster

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_answers_over_http(cluster: Stack) -> None:
    response = httpx.post(
        f"{cluster.http_url}/v1/chat/completions",
        json={"model": cluster.model, "messages": QUESTION},
        headers={"x-request-id": "first-light-1"},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    assert "Paris" in response.json()["choices"][0]["message"]["content"]
    assert response.headers["x-request-id"] == "first-light-1"


def test_answers_as_a_stream(cluster: Stack) -> None:
    text, events = "", []
    body = {"model": cluster.model, "messages": QUESTION, "stream": True}
    with httpx.stream("POST", f"{cluster.http_url}/v1/chat/completions", json=body, timeout=120) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
    for event in events[:-1]:
        text += json.loads(event)["choices"][0]["delta"].get("content") or ""
    assert events[-1] == "[DONE]"
    assert "Paris" in text


def test_answers_over_grpc(cluster: Stack) -> None:
    chat = pb.Chat(messages=[pb.Message(role="user")])
    chat.messages[0].content.string_value = "What is the capital of France?"
    with grpc.insecure_channel(cluster.grpc_target) as channel:
        stub = pb_grpc.InferenceStub(channel)
        responses = list(stub.Generate(pb.GenerateRequest(model=cluster.model, chat=chat), timeout=120))
    assert "Paris" in "".join(choice.text for response in responses for choice in response.choices)
    assert len(responses) > 3, "streamed, not sent in one piece"


def test_the_printed_curl_line_is_right(cluster: Stack) -> None:
    """What `headrace up` prints to be pasted is run as it is."""
    import subprocess

    (line,) = [line for line in cluster.output if line.strip().startswith("curl ")]
    answer = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=120, check=True)
    assert "Paris" in json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_ready_means_routable(cluster: Stack) -> None:
    assert httpx.get(f"{cluster.http_url}/healthz", timeout=30).status_code == 200
    ready = httpx.get(f"{cluster.http_url}/readyz", timeout=30)
    assert ready.status_code == 200
    assert ready.json()["models"] == [cluster.model]


def test_status_lists_workers_roles_load_and_leases(cluster: Stack) -> None:
    rows = {row["role"]: row for row in cluster.workers()}
    assert set(rows) == {"prefill", "decode"}
    for row in rows.values():
        assert row["phase"] == "ready"
        assert row["kv_blocks_total"] > 0
        assert row["block_size_tokens"] == 32
        assert 0 < row["lease_s"] <= 15
        assert row["address"].startswith("http://127.0.0.2:")


def test_other_engine_routes_reach_a_worker(cluster: Stack) -> None:
    tokens = httpx.post(
        f"{cluster.http_url}/tokenize", json={"model": cluster.model, "prompt": "Hello world"}, timeout=60
    ).json()["tokens"]
    text = httpx.post(
        f"{cluster.http_url}/detokenize", json={"model": cluster.model, "tokens": tokens}, timeout=60
    ).json()["prompt"]
    assert text.endswith("Hello world")
    answer = httpx.post(
        f"{cluster.http_url}/v1/responses",
        json={"model": cluster.model, "input": "What is the capital of France?", "max_output_tokens": 12},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.text
    message = httpx.post(
        f"{cluster.http_url}/v1/messages",
        json={"model": cluster.model, "max_tokens": 12, "messages": QUESTION},
        timeout=120,
    )
    assert message.status_code == 200, message.text
    assert "Paris" in message.text


@pytest.mark.parametrize("route", ["/scale_elastic_ep", "/is_scaling_elastic_ep", "/collective_rpc", "/sleep", "/load"])
def test_dev_and_scaling_routes_are_not_reachable(cluster: Stack, route: str) -> None:
    response = httpx.post(f"{cluster.http_url}{route}", json={"model": cluster.model}, timeout=30)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_route"


def test_router_metrics_are_prometheus_text(cluster: Stack) -> None:
    text = httpx.get(f"{cluster.http_url}/metrics", timeout=30).text
    for series in (
        "headrace_requests_total",
        "headrace_ttft_seconds_bucket",
        "headrace_worker_up",
        "headrace_redis_up",
    ):
        assert series in text
