"""Claim: a router that starts cold has the whole index within seconds.

    python -m tests.bench.index_cold_start

A real server holds the snapshots of a fleet, and a log of what its workers have said since. Measured is the time from
the first command to `ready`, and how long the event loop was held at a time meanwhile.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from random import Random

from kvstore.fleet_index import FleetIndex
from kvstore.index_follower import IndexFollower
from kvstore.kv_log import KvLog, open_kv_log
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.prefix_index import PrefixIndex
from kvstore.settings import IndexSettings
from kvstore.types import WorkerId
from tests.redis_servers import plain_server

BLOCKS_PER_SOURCE = 10_000
SHARED_BLOCKS = 500  # that every source holds: a system prompt
DELTAS_PER_SOURCE = 20
BLOCKS_PER_DELTA = 32
SETTINGS = IndexSettings()


def cold_start(num_blocks: int, seed: int = 1) -> dict[str, float]:
    """Seconds until a router knows `num_blocks` held blocks of as many sources as hold 10,000 each."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        return asyncio.run(_measure(Path(folder), max(1, num_blocks // BLOCKS_PER_SOURCE), Random(seed)))


async def _measure(folder: Path, num_sources: int, random: Random) -> dict[str, float]:
    async with plain_server(folder) as servers, open_kv_log(servers.url, "bench", SETTINGS) as log:
        await _fill(log, num_sources, random)
        index = FleetIndex(PrefixIndex(SETTINGS.budget_bytes))
        follower = IndexFollower(log, index, SETTINGS, 15.0, lambda _: None)
        held_s: list[float] = []
        ticking = asyncio.create_task(_tick(held_s))
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        following = asyncio.create_task(follower.run())
        await follower.wait_ready(120.0)
        cold_start_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        ticking.cancel()
        follower.stop()
        await following
        stats = index.stats()
        assert all(index.is_exact(source) for source in index.sources())
    return {
        "sources": num_sources,
        "blocks_held": num_sources * (BLOCKS_PER_SOURCE + DELTAS_PER_SOURCE * BLOCKS_PER_DELTA),
        "blocks": stats.blocks,
        "cold_start_s": round(cold_start_s, 3),
        "cpu_s": round(cpu_s, 3),
        "hold_p99_ms": round(1000 * sorted(held_s)[len(held_s) * 99 // 100], 2),
        "longest_hold_ms": round(1000 * max(held_s), 1),
        "bytes_per_block": round(stats.bytes_used / stats.blocks, 1),
    }


async def _fill(log: KvLog, num_sources: int, random: Random) -> None:
    shared = [random.getrandbits(64) for _ in range(SHARED_BLOCKS)]
    for number in range(num_sources):
        source = SourceId(WorkerId(f"worker-{number:04}"))
        own = [random.getrandbits(64) for _ in range(BLOCKS_PER_SOURCE - SHARED_BLOCKS)]
        await log.write_snapshot(KvSnapshot(source, 1, 100, {Tier.DEVICE: shared + own}), 3600.0)
    for seq in range(91, 101 + DELTAS_PER_SOURCE):  # some that the snapshots cover, and some that they do not
        for number in range(num_sources):
            hashes = tuple(random.getrandbits(64) for _ in range(BLOCKS_PER_DELTA))
            changes = (KvChange(Op.STORE, Tier.DEVICE, hashes),)
            await log.publish([KvDelta(SourceId(WorkerId(f"worker-{number:04}")), 1, seq, changes)])


async def _tick(held_s: list[float]) -> None:
    """Note how much CPU is spent between two turns of the event loop: so long somebody else held it.

    CPU and not elapsed time, which says more about what else runs on the machine.
    """
    while True:
        began_s = time.thread_time()
        await asyncio.sleep(0)
        held_s.append(time.thread_time() - began_s)


def main() -> None:
    """Print the table and one JSON line."""
    rows = [cold_start(num_blocks) for num_blocks in (100_000, 1_000_000)]
    for row in rows:
        print("  ".join(f"{name} {value:,}" for name, value in row.items()))
    print(json.dumps({"bench": "index_cold_start", "rows": rows}))


if __name__ == "__main__":
    main()
