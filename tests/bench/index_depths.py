"""Claim: a match grows with the number of different depths, and says so: each is a row of the answer.

    python -m tests.bench.index_depths

Prompts whose beginnings are held by more and more workers, each to another depth, in an index full of other prompts.
"""

import json
import time
from random import Random

from kvstore.prefix_index import PrefixIndex
from tests.bench.index_workload import NUM_WORKERS, PROMPT_BLOCKS, num_prompts, percentile, prompt_chain, stores

DEPTHS = (1, 4, 16, 64, 512)
NUM_BLOCKS = 1_000_000
NUM_PROMPTS = 16  # of each kind
NUM_ROUNDS = 40


def measure_depths(num_blocks: int = NUM_BLOCKS, depths: tuple[int, ...] = DEPTHS) -> dict[str, float]:
    """Median microseconds of a match by number of different depths."""
    index, random = PrefixIndex(1 << 30), Random(1)
    slots = [index.open_slot() for _ in range(NUM_WORKERS)]
    for worker, chain, depth in stores("scattered", num_blocks):
        index.store(slots[worker], chain[:depth])
    first = num_prompts("scattered", num_blocks)
    measured: dict[str, float] = {}
    for num_depths in depths:
        prompts = range(first, first + NUM_PROMPTS)
        first += NUM_PROMPTS
        for prompt in prompts:
            chain = prompt_chain("scattered", prompt)
            holders = random.sample(slots, num_depths)
            for slot, depth in zip(holders, random.sample(range(1, PROMPT_BLOCKS + 1), num_depths), strict=True):
                index.store(slot, chain[:depth])
        measured[str(num_depths)] = round(percentile(_times_us(index, prompts, num_depths), 0.5), 1)
    return measured


def _times_us(index: PrefixIndex, prompts: range, num_rows: int) -> list[float]:
    times_us = []
    for _ in range(NUM_ROUNDS):
        for prompt in prompts:
            chain = prompt_chain("scattered", prompt)
            began_ns = time.perf_counter_ns()
            rows = index.match(chain)
            times_us.append((time.perf_counter_ns() - began_ns) / 1000)
            assert len(rows) == num_rows
    return times_us


def main() -> None:
    """Print the line."""
    print(json.dumps(measure_depths()))


if __name__ == "__main__":
    main()
