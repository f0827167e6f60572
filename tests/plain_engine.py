"""One vLLM as anybody would start it: no connector, no Headrace."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from controlplane.app import demo_model_path
from controlplane.config import Config
from tests.engine_counters import wait_until
from workers.child_process import ChildProcess, PrefixedLog, inherited_env
from workers.ports import free_ports


@dataclass(frozen=True)
class PlainEngine:
    """A running reference engine."""

    address: str
    model: str


@contextmanager
def plain_engine(model: str, log_path: Path) -> Iterator[PlainEngine]:
    """Serve the demo model in float32."""
    import sys

    (port,) = free_ports("127.0.0.1", 1)
    argv = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(demo_model_path(Config())), "--served-model-name", model]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    argv += ["--max-model-len", "2304", "--shutdown-timeout", "1"]
    env = {**inherited_env(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    log = PrefixedLog(log_path, "plain")
    with _child(argv, env, log):
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: _is_up(address), f"plain engine up, see {log_path}", timeout_s=300)
        yield PlainEngine(address, model)


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def _child(argv: list[str], env: dict[str, str], log: PrefixedLog) -> Iterator[None]:
    """Run a guarded child from synchronous code."""
    started, stop = threading.Event(), threading.Event()

    async def run() -> None:
        child = await ChildProcess.start(argv, env, grace_s=5.0, log=log)
        started.set()
        try:
            await asyncio.to_thread(stop.wait)
        finally:
            await child.stop()
            log.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    started.wait(timeout=30)
    try:
        yield
    finally:
        stop.set()
        thread.join()
