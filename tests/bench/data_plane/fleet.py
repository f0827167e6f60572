"""What stands beside a Headrace router: Redis, the workers' leases for the mock engines, and what these have cached.

    python -m tests.bench.data_plane.fleet CONFIG WORKLOAD LOG_DIR PORT:ROLE:INDEX ...     prints the URL of Redis

Leases are those of `headrace` workers that join by address. The cached blocks do not come from engine events but from
the workload's file, through the workers' own publisher; they do not change while it runs. Redis counts as the router's.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from controlplane.config import Config, load_config
from controlplane.embedded_redis import embedded_redis
from kvstore.kv_log import open_kv_log
from kvstore.kv_types import KvChange, Op, SourceId, Tier
from kvstore.types import WorkerId
from tests.bench.data_plane import prompts
from tests.bench.data_plane.cases import MODELS
from tests.bench.data_plane.meter import CONTENDER_ENV
from workers.kv_publisher import KvPublisher, PublishPace
from workers.types import Role
from workers.worker import new_spec, run_joined

COUNTED_ENV = "HEADRACE_BENCH_COUNTED"  # the contender that Redis counts for


async def run(config: Config, workload: prompts.Workload, log_dir: Path, engines: list[tuple[str, Role, int]]) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    os.environ[CONTENDER_ENV] = os.environ[COUNTED_ENV]  # inherited by Redis
    async with embedded_redis(log_dir) as url:
        tasks = [asyncio.create_task(_lease(config, url, *engine, stop)) for engine in engines]
        tasks += [asyncio.create_task(_publish(config, url, workload, *engine, stop)) for engine in engines]
        print(url, flush=True)
        await asyncio.gather(*tasks)


async def _lease(config: Config, url: str, port: str, role: Role, index: int, stop: asyncio.Event) -> None:
    await run_joined(
        f"http://127.0.0.1:{port}",
        new_spec(_worker(role, index), role, MODELS[0]),
        config.engine,
        url,
        config.redis,
        stop,
        index=config.index,
        kv_events=config.kv_events,
    )


async def _publish(
    config: Config, url: str, workload: prompts.Workload, _port: str, role: Role, index: int, stop: asyncio.Event
) -> None:
    blocks = workload.blocks[index]
    pace = PublishPace(
        batch_s=config.kv_events.publish_interval_s,
        touch_s=config.redis.heartbeat_s,
        snapshot_s=config.index.snapshot_interval_s,
        lease_s=config.redis.lease_s,
        max_unsent_blocks=config.kv_events.max_unsent_blocks,
    )
    async with open_kv_log(url, config.redis.namespace, config.index, config.redis) as log:
        source = SourceId(_worker(role, index))
        publisher = KvPublisher(log, source, time.time_ns() // 1_000_000, pace, lambda: {Tier.DEVICE: blocks})
        publisher.put([KvChange(Op.STORE, Tier.DEVICE, tuple(blocks))])
        await publisher.run(stop)


def _worker(role: Role, index: int) -> WorkerId:
    return WorkerId(f"{role.value}-{index}")


def main() -> None:
    """`CONFIG WORKLOAD LOG_DIR PORT:ROLE:INDEX ...`"""
    config, workload, log_dir, *engines = sys.argv[1:]
    parsed = [(port, Role(role), int(index)) for port, role, index in (each.split(":") for each in engines)]
    asyncio.run(run(load_config(Path(config)), prompts.load(Path(workload)), Path(log_dir), parsed))


if __name__ == "__main__":
    main()
