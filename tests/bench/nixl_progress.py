"""Claim (ADR 0002): without the delay of workers/engine_plugin.py, NIXL's threads eat the decode engine's time.

    python -m tests.bench.nixl_progress [REQUESTS]

Starts the same 1P1D cluster twice, without and with the delay, hands the same prompts over, and compares CPU seconds
and wall seconds per request, and the CPU that idle engines burn. About four minutes on two cores.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from tests.stack import Stack, running_stack
from workers.engine_plugin import DELAY_ENV

IDLE_S = 10.0


def engine_cpu_s(stack: Stack) -> float:
    """CPU seconds so far of every vLLM process below `headrace up`."""
    total = 0.0
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        try:
            if "VLLM" in process.name() or "vllm" in " ".join(process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.Error:
            continue
    return total


def measure(delay_us: int, num_requests: int) -> dict[str, float]:
    """One cluster with this delay."""
    config = {"engine": {"max_model_len_tokens": 1024, "env": {DELAY_ENV: str(delay_us)}}}
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "headrace.yaml", config) as stack:
        stack.wait_for_ready()
        url = f"{stack.http_url}/v1/completions"

        def ask(number: int) -> float:
            body = {"model": stack.model, "prompt": f"{number} " + "mill " * 64, "max_tokens": 8, "ignore_eos": True}
            began_s = time.perf_counter()
            httpx.post(url, json=body, timeout=300).raise_for_status()
            return time.perf_counter() - began_s

        ask(0)  # connects the engines; from here on the threads run
        cpu_s, walls_s = engine_cpu_s(stack), [ask(number) for number in range(1, num_requests + 1)]
        busy_cpu_s = engine_cpu_s(stack) - cpu_s
        time.sleep(3)
        cpu_s = engine_cpu_s(stack)
        time.sleep(IDLE_S)
        return {
            "delay_us": delay_us,
            "wall_s_per_request": round(statistics.median(walls_s), 3),
            "cpu_s_per_request": round(busy_cpu_s / num_requests, 3),
            "idle_cores": round((engine_cpu_s(stack) - cpu_s) / IDLE_S, 3),
        }


def main() -> None:
    """Print the table and one JSON line."""
    num_requests = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    rows = [measure(delay_us, num_requests) for delay_us in (0, 10_000)]
    for row in rows:
        print("  ".join(f"{name} {value:>8}" for name, value in row.items()))
    ratio = {name: round(rows[0][name] / max(rows[1][name], 1e-3), 2) for name in rows[0] if name != "delay_us"}
    print(json.dumps({"bench": "nixl_progress", "rows": rows, "without_over_with": ratio}))


if __name__ == "__main__":
    main()
