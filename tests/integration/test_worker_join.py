"""An engine that somebody else started joins the real cluster by address, and leaves it."""

import signal
import subprocess
import sys

import httpx
import pytest

from tests.engine_counters import wait_until
from tests.stack import HEADRACE, Stack
from workers.ports import free_ports

pytestmark = pytest.mark.cluster


def test_an_engine_joins_by_address_and_leaves(cluster: Stack) -> None:
    (port,) = free_ports("127.0.0.1", 1)
    address = f"http://127.0.0.1:{port}"
    engine = subprocess.Popen([sys.executable, "-m", "workers.fake", "--port", str(port), "--model", "elsewhere"])
    try:
        wait_until(lambda: _is_up(address), "the engine is up")
        arguments = ["--address", address, "--redis", cluster.redis_url, "--role", "mixed", "--id", "joined-1"]
        joined = subprocess.Popen([HEADRACE, "worker", "join", *arguments])
        try:
            wait_until(lambda: "elsewhere" in _models(cluster), "the router knows its model")
            (row,) = [row for row in cluster.workers("mixed") if row["phase"] == "ready"]
            assert (row["id"], row["address"]) == ("joined-1", address)
            body = {"model": "elsewhere", "prompt": "hello", "max_tokens": 3}
            assert httpx.post(f"{cluster.http_url}/v1/completions", json=body, timeout=30).status_code == 200
        finally:
            joined.send_signal(signal.SIGINT)
            assert joined.wait(timeout=20) == 0
        wait_until(lambda: "elsewhere" not in _models(cluster), "the router has forgotten it", timeout_s=5)
    finally:
        engine.terminate()
        engine.wait(timeout=20)


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _models(cluster: Stack) -> list[str]:
    return [model["id"] for model in httpx.get(f"{cluster.http_url}/v1/models", timeout=30).json()["data"]]
