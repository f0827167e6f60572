"""Claims: a block with one holder costs tens of bytes, and memory is flat whatever comes, within the byte budget.

    python -m tests.bench.index_memory one-holder | dict | removes | no-removes | restarts      one run; prints JSON

Memory is the growth of a fresh process's resident set, so that nothing is forgotten that allocators do.
"""

import json
import subprocess
import sys
import time
from collections import deque
from random import Random
from typing import Any

from xxhash import xxh3_64_intdigest

from kvstore.prefix_index import PrefixIndex
from tests.bench.index_workload import rss_bytes

MODULE = "tests.bench.index_memory"
NUM_WORKERS = 1000
ONE_HOLDER_BLOCKS = 2_000_000
FLAT_EVENTS = 10_000_000
FLAT_BUDGET_BYTES = 64 << 20
RUN_BLOCKS = 32
SWEEP_BLOCKS = 2048
RUNS = ("one-holder", "dict", "removes", "no-removes", "restarts")


def hashes_of(run: int) -> list[int]:
    """The blocks of run number so-and-so; no run shares any."""
    first = run * RUN_BLOCKS
    return [xxh3_64_intdigest(number.to_bytes(8, "little")) for number in range(first, first + RUN_BLOCKS)]


def measure_one_holder(num_blocks: int, in_dict: bool) -> dict[str, Any]:
    """Bytes a block when all are stored, the worst on the way (from half of them on), and the longest pause (CPU)."""
    index = PrefixIndex(1 << 30)
    slots = [index.open_slot() for _ in range(NUM_WORKERS)]
    bits, table = [1 << slot for slot in slots], dict[int, int]()
    before, worst_bytes, longest_ns = rss_bytes(), 0.0, 0
    for run in range(num_blocks // RUN_BLOCKS):
        hashes, worker = hashes_of(run), run % NUM_WORKERS
        began_ns = time.process_time_ns()
        if in_dict:
            for block in hashes:
                table[block] = bits[worker]
        else:
            index.store(slots[worker], hashes)
        longest_ns = max(longest_ns, time.process_time_ns() - began_ns)
        done = (run + 1) * RUN_BLOCKS
        if done >= num_blocks // 2 and run % 256 == 0:
            worst_bytes = max(worst_bytes, (rss_bytes() - before) / done)
    return {
        "bytes_per_block": round((rss_bytes() - before) / num_blocks, 1),
        "worst_bytes_per_block": round(worst_bytes, 1),
        "longest_pause_ms": round(longest_ns / 1e6, 1),
    }


def measure_flat(kind: str, num_events: int, budget_bytes: int = FLAT_BUDGET_BYTES) -> dict[str, Any]:
    """Resident set at ten points of so many store events, every block new.

    `removes`: workers remove their oldest, and all fits. `no-removes`: they never do, and the index refuses.
    `restarts`: as before, but a worker that was refused starts again, and its old slot is swept.
    """
    index, random = PrefixIndex(budget_bytes), Random(1)
    runs_held = index.room_blocks * 2 // 3 // RUN_BLOCKS // NUM_WORKERS  # by a worker that removes
    slots = [index.open_slot() for _ in range(NUM_WORKERS)]
    runs: list[deque[int]] = [deque() for _ in range(NUM_WORKERS)]
    before, num_runs, points_mib, most_bytes = rss_bytes(), num_events // RUN_BLOCKS, list[float](), 0
    for run in range(num_runs):
        worker = random.randrange(NUM_WORKERS)
        refused = index.store(slots[worker], hashes_of(run))
        if kind == "removes":
            runs[worker].append(run)
            if len(runs[worker]) > runs_held:
                index.remove(slots[worker], hashes_of(runs[worker].popleft())[::-1])
        elif kind == "restarts" and refused:
            index.retire(slots[worker])
            slots[worker] = index.open_slot()
        index.sweep(SWEEP_BLOCKS)
        most_bytes = max(most_bytes, index.bytes_used)
        if (run + 1) * 10 // num_runs > len(points_mib):
            points_mib.append(round((rss_bytes() - before) / 2**20, 1))
    return {
        "rss_mib": points_mib,
        "most_bytes_used_mib": round(most_bytes / 2**20, 1),
        "budget_mib": round(budget_bytes / 2**20, 1),
        "blocks": index.num_blocks,
        "refused": index.num_refused_blocks,
    }


def in_fresh_process(*arguments: str, python: str = sys.executable, module: str = MODULE) -> dict[str, Any]:
    """What a bench module prints when run with these arguments."""
    command = [python, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"skipped": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_memory(scale: float = 1.0) -> dict[str, Any]:
    """`bytes_per_block` and all else, by run. Each run is a process of its own."""
    return {run: in_fresh_process(run, str(scale)) for run in RUNS}


def main() -> None:
    """One run."""
    kind, scale = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    if kind in ("one-holder", "dict"):
        result = measure_one_holder(int(ONE_HOLDER_BLOCKS * scale), in_dict=kind == "dict")
    else:
        result = measure_flat(kind, int(FLAT_EVENTS * scale), max(1 << 20, int(FLAT_BUDGET_BYTES * scale)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
