"""Claim: a decision with everything switched on costs microseconds, also in a large fleet.

    python -m tests.bench.decide

`RouterCore.handle(RequestArrived)` for fleets of several sizes: prefix overlap at three depths, service classes and
admission on, every term of the cost, the explanation's rivals. Also CPU time of a whole request: arrival, end of
prefill, first token, end, with the answer's usage. Half of the fleet prefills for the other half, or all do both.
"""

import json
import time
from statistics import quantiles

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
from router.events import (
    Dispatch,
    FirstToken,
    PrefillDone,
    RequestArrived,
    RequestDone,
    SlotsChanged,
    WorkerChanged,
)
from router.types import Overlap, Usage
from tests.builders import make_core, make_overlap, make_request, make_terms, make_worker
from workers.types import Role

ROUNDS = 400
PROMPT_TOKENS = 4_000
TERMS = make_terms(ttft_s=60.0, tpot_s=1.0, deadline_s=600.0)


def fleet(num_workers: int, *, mixed: bool) -> tuple[RouterCore, Overlap]:
    """A core with this fleet, and a prompt of which everybody holds a little and two workers much."""
    core = make_core(seed=1, hand_off="cost")
    for index in range(num_workers):
        role = Role.MIXED if mixed else (Role.PREFILL, Role.DECODE)[index % 2]
        core.handle(WorkerChanged(make_worker(f"w{index:04}", role, kv_blocks_total=20_000)), 0.0)
        core.handle(SlotsChanged(WorkerId(f"w{index:04}"), (index, -1, -1)), 0.0)
    depths = dict.fromkeys(range(num_workers), 32) | {0: 80, 1: 100}
    return core, make_overlap(depths)


def measure(num_workers: int, *, mixed: bool) -> dict[str, float | str]:
    """Microseconds: percentiles of one arrival, and CPU of a whole request."""
    core, overlap = fleet(num_workers, mixed=mixed)
    arrivals_us, now_s = [], 0.0
    began_s = time.process_time()
    for index in range(ROUNDS):
        now_s += 1.0
        request = make_request(f"r{index}", num_prompt_tokens=PROMPT_TOKENS, terms=TERMS)
        arrived_s = time.perf_counter()
        commands = core.handle(RequestArrived(request, overlap), now_s)
        arrivals_us.append((time.perf_counter() - arrived_s) * 1e6)
        assert isinstance(commands[0], Dispatch), commands
        request_id = RequestId(f"r{index}")
        if commands[0].decision.prefill is not None:
            core.handle(PrefillDone(request_id, 1), now_s + 0.1)
        core.handle(FirstToken(request_id, 1), now_s + 0.2)
        core.handle(RequestDone(request_id, 1, Usage(PROMPT_TOKENS, 1024, 100)), now_s + 0.3)
    cpu_us = (time.process_time() - began_s) / ROUNDS * 1e6
    cuts = quantiles(arrivals_us, n=100)
    return {
        "fleet": "mixed" if mixed else "P and D",
        "workers": num_workers,
        "handle_p50_us": round(cuts[49], 1),
        "handle_p99_us": round(cuts[98], 1),
        "cpu_us_per_request": round(cpu_us, 1),
    }


def handle_times() -> dict[str, float]:
    """What the table of the index's benchmark shows of decisions: the slower kind of fleet."""
    sizes = {64: "handle64_p50_us", 1000: "handle1000_p50_us"}
    return {
        name: max(float(measure(size, mixed=mixed)["handle_p50_us"]) for mixed in (True, False))
        for size, name in sizes.items()
    }


def main() -> None:
    """Print the table and one JSON line."""
    rows = [measure(size, mixed=mixed) for mixed in (True, False) for size in (2, 64, 1000)]
    print(f"{'fleet':<8} {'workers':>7} {'handle p50':>11} {'p99':>9} {'CPU a request':>14}   (microseconds)")
    for row in rows:
        print(
            f"{row['fleet']:<8} {row['workers']:>7} {row['handle_p50_us']:>11} {row['handle_p99_us']:>9}"
            f" {row['cpu_us_per_request']:>14}"
        )
    print(json.dumps({"bench": "decide", "rows": rows}))


if __name__ == "__main__":
    main()
