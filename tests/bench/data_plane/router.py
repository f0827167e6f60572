"""One Headrace router process as in production (controlplane/app.py, uvloop), without Ray around it.

python -m tests.bench.data_plane.router CONFIG REDIS_URL LOG_DIR      prints its HTTP and gRPC ports
"""

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from controlplane.app import RouterPlan, RouterPorts, run_router
from controlplane.config import load_config


async def run(plan: RouterPlan) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def listening(ports: RouterPorts) -> None:
        print(ports.http, ports.grpc, flush=True)

    await run_router(plan, listening, stop)


def main() -> None:
    """`CONFIG REDIS_URL LOG_DIR`"""
    config, redis_url, log_dir = sys.argv[1:]
    plan = RouterPlan(load_config(Path(config)), redis_url, log_dir)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(plan))


if __name__ == "__main__":
    main()
