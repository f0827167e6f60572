"""Two real vLLM workers: prefix traffic finds its worker, the engine agrees with the prediction, and both come back
after a worker, a router or Redis has been killed. Prints how long each recovery took."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests.engine_counters import wait_until
from tests.redis_servers import HOST, Server
from tests.stack import Stack, running_stack
from workers.ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.own_cluster, pytest.mark.timeout(600)]

BLOCK_SIZE_TOKENS = 32
NUM_GROUPS = 4
RECOVERY_TIMEOUT_S = 240.0


@dataclass
class Traffic:
    """Questions in groups that share a long prefix; each question is new, so only its group's prefix can be cached."""

    stack: Stack
    asked: int = 0
    workers: dict[int, list[str]] = field(default_factory=dict)

    def ask(self, group: int) -> tuple[int, int, int]:
        """(prompt tokens, cached tokens, overlap that the router predicted) of one question of a group."""
        self.asked += 1
        shared = " ".join(f"fact {group}-{number} is {number * 7 % 13}." for number in range(40))
        body = {
            "model": self.stack.model,
            "messages": [
                {"role": "system", "content": f"Group {group}. {shared}"},
                {"role": "user", "content": f"Question {self.asked}: say one word."},
            ],
            "max_tokens": 2,
        }
        response = httpx.post(
            f"{self.stack.http_url}/v1/chat/completions", json=body, headers={"x-headrace-explain": "1"}, timeout=120
        )
        assert response.status_code == 200, response.text
        self.workers.setdefault(group, []).append(response.headers["x-headrace-worker"])
        usage = response.json()["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return usage["prompt_tokens"], cached, int(float(response.headers["x-headrace-overlap-tokens"]))

    def hit_rate(self, rounds: int = 2) -> float:
        """Cached share of the prompts' tokens."""
        answers = [self.ask(group) for _ in range(rounds) for group in range(NUM_GROUPS)]
        return sum(cached for _, cached, _ in answers) / sum(prompt for prompt, _, _ in answers)

    def seconds_until(self, hit_rate: float) -> float:
        """How long until this hit rate is reached again; requests that fail meanwhile are asked again."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < RECOVERY_TIMEOUT_S:
            try:
                if self.hit_rate(rounds=1) >= hit_rate - 0.01:
                    return time.monotonic() - began_s
            except (httpx.HTTPError, AssertionError):
                time.sleep(0.5)
        raise AssertionError(f"the hit rate of {hit_rate:.2f} did not come back in {RECOVERY_TIMEOUT_S:g} s")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis of its own, which comes back empty: the one that `headrace up` starts would end it."""
    (port,) = free_ports(HOST, 1)
    argv = ["--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no"]
    server = Server(port, tmp_path_factory.mktemp("redis"), argv, own_port=port)
    asyncio.run(server.start())
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def two_workers(redis_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two mixed workers behind one router."""
    config = {
        "engine": {
            "max_model_len_tokens": 2048,
            "extra_args": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
        },
        "redis": {"url": f"redis://127.0.0.1:{redis_server.port}/0", "lease_s": 6.0},
        # A CPU shared with everything else: targets that only say that there is admission.
        "slo": {"classes": {"chat": {"ttft_s": 100, "tpot_s": 10, "deadline_s": 200}}, "default_class": "chat"},
        "index": {"snapshot_interval_s": 2.0},
    }
    path = tmp_path_factory.mktemp("two") / "headrace.yaml"
    with running_stack(path, config, "--pools", "2M") as stack:
        stack.wait_for_ready()
        yield stack


def metric(stack: Stack, name: str) -> float:
    text = httpx.get(f"{stack.http_url}/metrics", timeout=30).text
    values = [float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)]
    return sum(values)


@pytest.fixture(scope="module")
def traffic(two_workers: Stack) -> Traffic:
    """Every group has been asked once, and the router knows what the engines cached."""
    made = Traffic(two_workers)
    for group in range(NUM_GROUPS):
        made.ask(group)
    wait_until(lambda: metric(two_workers, "headrace_index_blocks") >= 4 * 10, "the index has the prefixes")
    time.sleep(1.0)
    return made


def test_shared_prefixes_go_to_their_worker_and_the_engine_agrees(traffic: Traffic) -> None:
    traffic.workers.clear()
    for _ in range(3):
        for group in range(NUM_GROUPS):
            prompt, cached, predicted = traffic.ask(group)
            assert abs(cached - predicted) <= BLOCK_SIZE_TOKENS, (group, prompt, cached, predicted)
            assert cached >= prompt / 2
    assert all(len(set(workers)) == 1 for workers in traffic.workers.values()), traffic.workers


@pytest.mark.parametrize("kind", ["chat", "tools", "completion", "token ids"])
def test_predicted_and_reported_cached_tokens_agree(traffic: Traffic, kind: str) -> None:
    stack = traffic.stack
    shared = " ".join(f"{kind} item {number}." for number in range(60))
    route = "/v1/chat/completions"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": shared}]}
    if kind == "tools":
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
        body["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    elif kind == "completion":
        route, body = "/v1/completions", {"prompt": shared}
    elif kind == "token ids":
        route, body = "/v1/completions", {"prompt": list(range(1000, 1300))}
    seen = []
    for _ in range(3):
        response = httpx.post(
            f"{stack.http_url}{route}",
            json={"model": stack.model, "max_tokens": 2, **body},
            headers={"x-headrace-explain": "1"},
            timeout=120,
        )
        assert response.status_code == 200, response.text
        usage = response.json()["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        seen.append((usage["prompt_tokens"], cached, int(float(response.headers["x-headrace-overlap-tokens"]))))
        time.sleep(1.5)
    prompt, cached, predicted = seen[-1]
    assert cached >= prompt - 2 * BLOCK_SIZE_TOKENS, seen
    assert abs(cached - predicted) <= BLOCK_SIZE_TOKENS, seen


def _kill_router(stack: Stack) -> None:
    """By the youngest log; not by the highest pid, as pids begin again."""
    newest = max(stack.log_dir.glob("router-*.log"), key=lambda path: path.stat().st_ctime)
    os.kill(int(newest.stem.split("-")[1]), signal.SIGKILL)


def test_a_killed_router_is_back_with_the_whole_index(traffic: Traffic) -> None:
    before = traffic.hit_rate()
    _kill_router(traffic.stack)
    seconds = traffic.seconds_until(before)
    print(f"\nrouter killed: hit rate {before:.2f} is back after {seconds:.1f} s")


def test_redis_killed_and_wiped_is_filled_again(traffic: Traffic, redis_server: Server) -> None:
    before = traffic.hit_rate()
    redis_server.kill()
    assert traffic.hit_rate() >= before - 0.01, "without Redis routing goes on with what is known"
    asyncio.run(redis_server.start())
    began_s = time.monotonic()
    wait_until(lambda: _snapshots(redis_server) >= 2, "both workers have written what they hold again")
    print(f"\nRedis killed and wiped: refilled {time.monotonic() - began_s:.1f} s after its start")
    wait_until(lambda: len(traffic.stack.workers()) == 2, "both leases are back")
    _kill_router(traffic.stack)
    seconds = traffic.seconds_until(before)
    print(f"router killed after the wipe: hit rate {before:.2f} is back after {seconds:.1f} s")


def test_a_killed_worker_is_back_with_an_empty_cache_and_fills_it(traffic: Traffic) -> None:
    before = traffic.hit_rate()
    victim = traffic.workers[0][-1]
    os.kill(_engine_pid(traffic.stack, victim), signal.SIGKILL)
    seconds = traffic.seconds_until(before)
    print(f"\nworker killed: hit rate {before:.2f} is back after {seconds:.1f} s, on the other worker")
    wait_until(
        lambda: {row["phase"] for row in traffic.stack.workers()} == {"ready"}, "the engine is back", RECOVERY_TIMEOUT_S
    )
    assert traffic.seconds_until(before) >= 0.0
    for _ in range(2):
        for group in range(NUM_GROUPS):
            _, cached, predicted = traffic.ask(group)
            assert abs(cached - predicted) <= BLOCK_SIZE_TOKENS, "nothing of the engine's old life is believed"


def test_the_router_explains_a_request(traffic: Traffic) -> None:
    request_id = f"explain-{time.time_ns()}"
    body = {"model": traffic.stack.model, "prompt": "a short prompt", "max_tokens": 2}
    url = f"{traffic.stack.http_url}/v1/completions"
    assert httpx.post(url, json=body, headers={"x-request-id": request_id}, timeout=120).status_code == 200
    url = f"{traffic.stack.admin_url}/decisions/{request_id}"
    wait_until(lambda: httpx.get(url, timeout=30).status_code == 200, "the decision has been shipped")
    record: dict[str, Any] = httpx.get(url, timeout=30).json()
    assert record["public_id"] == request_id
    assert "a short prompt" not in json.dumps(record)


def _snapshots(server: Server) -> int:
    with redis.Redis(port=server.port) as client:
        return len(list(client.scan_iter("*:snapshot")))


def _engine_pid(stack: Stack, worker_id: str) -> int:
    """The engine's API server, by the port in its lease."""
    address = next(row["address"] for row in stack.workers() if row["id"] == worker_id)
    port = address.rsplit(":", 1)[1]
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if "vllm.entrypoints.openai.api_server" in line and f"--port {port}" in line and "child_guard" not in line:
            return int(process.info["pid"])
    raise AssertionError(f"no engine of {worker_id} on port {port}")
