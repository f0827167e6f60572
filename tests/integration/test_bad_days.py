"""Bad days on the real cluster: clients that vanish, engines that die. Nothing leaks and nothing hangs.

The last test of this file kills an engine and waits for its successor, so the cluster is whole again afterwards.
"""

import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.engine_counters import engine_counters, wait_until
from tests.stack import Stack, describe

pytestmark = pytest.mark.cluster


def body(cluster: Stack, **fields: object) -> dict[str, object]:
    """A long completion that would not end by itself."""
    prompt = "Tell a very long story about a mill. " * 20
    return {"model": cluster.model, "prompt": prompt, "max_tokens": 1500, "ignore_eos": True, **fields}


def is_idle(address: str) -> bool:
    """Nothing runs, waits or holds KV blocks."""
    counters = engine_counters(address)
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(counters[name] == 0 for name in names)


def test_a_client_that_disconnects_mid_stream_stops_the_engine(cluster: Stack) -> None:
    prefill, decode = cluster.workers("prefill")[0]["address"], cluster.workers("decode")[0]["address"]
    url = f"{cluster.http_url}/v1/completions"
    with httpx.stream("POST", url, json=body(cluster, stream=True), timeout=120) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
        assert engine_counters(decode)["vllm:num_requests_running"] == 1
    wait_until(lambda: is_idle(decode), "the decode engine has stopped generating", timeout_s=30)
    generated = engine_counters(decode)["vllm:generation_tokens_total"]
    time.sleep(2)
    assert engine_counters(decode)["vllm:generation_tokens_total"] <= generated + 1, "at most a liveness probe"
    wait_until(lambda: is_idle(prefill), "the prefill engine holds no block", timeout_s=60)


def test_a_client_that_gives_up_during_prefill_frees_both_engines(cluster: Stack) -> None:
    long_prompt = [1000 + index % 20_000 for index in range(2000)]
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{cluster.http_url}/v1/completions", json=body(cluster, prompt=long_prompt, max_tokens=200), timeout=0.7
        )
    for row in cluster.workers():
        # Blocks that were prefilled for a decode that never came are kept for engine.kv_lease_s, no longer.
        wait_until(lambda row=row: is_idle(row["address"]), f"{row['id']} is idle", timeout_s=60)  # type: ignore[misc]
    assert "headrace_requests_in_flight 0.0" in httpx.get(f"{cluster.http_url}/metrics", timeout=30).text


def engine_tree(address: str) -> list[psutil.Process]:
    """The API server that listens at the address, and everything below it."""
    port = int(address.rpartition(":")[2])
    for process in psutil.process_iter():
        try:
            if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections()):
                return [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    raise AssertionError(f"nobody listens on {port}")


def test_a_killed_decode_engine_is_replaced_and_its_clients_are_told(cluster: Stack) -> None:
    (before,) = cluster.workers("decode")
    tree = engine_tree(before["address"])
    broken: list[httpx.HTTPError | str] = []

    def read_stream() -> None:
        try:
            url = f"{cluster.http_url}/v1/completions"
            with httpx.stream("POST", url, json=body(cluster, stream=True), timeout=120) as response:
                broken.append("".join(response.iter_text())[-200:])
        except httpx.HTTPError as error:
            broken.append(error)

    reader = threading.Thread(target=read_stream)
    reader.start()
    wait_until(lambda: engine_counters(before["address"])["vllm:num_requests_running"] == 1, "the stream runs")
    time.sleep(1)
    worker = next(p for p in tree if "Worker" in p.name() or "VLLM::Wor" in p.name())
    worker.send_signal(signal.SIGKILL)
    reader.join(timeout=60)
    assert not reader.is_alive(), "the client of the broken stream must not hang"
    ended = broken[0]
    assert isinstance(ended, httpx.HTTPError) or "[DONE]" not in ended or "error" in ended

    wait_until(
        lambda: httpx.get(f"{cluster.http_url}/readyz", timeout=30).status_code == 503, "not ready", timeout_s=60
    )
    refused = httpx.post(f"{cluster.http_url}/v1/completions", json=body(cluster, max_tokens=2), timeout=60)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "no_worker"

    wait_until(
        lambda: httpx.get(f"{cluster.http_url}/readyz", timeout=30).status_code == 200, "ready again", timeout_s=240
    )
    (after,) = cluster.workers("decode")
    assert after["id"] == before["id"]
    assert after["epoch"] > before["epoch"]
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive, [describe(process) for process in alive]
    answer = httpx.post(
        f"{cluster.http_url}/v1/chat/completions",
        json={"model": cluster.model, "messages": [{"role": "user", "content": "What is the capital of France?"}]},
        timeout=120,
    )
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
