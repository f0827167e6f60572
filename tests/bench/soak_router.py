"""The router under the soak: the production composition on uvloop, in a process of its own, with the fakes' tokenizer.

    python -m tests.bench.soak_router CONFIG REDIS_URL LOG_DIR

Prints its HTTP and gRPC ports; then, for every line on stdin, what cannot be seen from outside: its asyncio tasks.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from controlplane.app import RouterPlan, RouterPorts, run_router
from controlplane.config import load_config
from tests.byte_renderer import ByteRenderer
from tests.fleet import MODEL


async def run(plan: RouterPlan) -> None:
    """Run until SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    def listening(ports: RouterPorts) -> None:
        print(ports.http, ports.grpc, flush=True)

    answering = asyncio.create_task(_answer(lines))
    await run_router(plan, listening, stop)
    answering.cancel()


async def _answer(lines: asyncio.StreamReader) -> None:
    async for _ in lines:
        print(json.dumps({"tasks": len(asyncio.all_tasks())}), flush=True)


def main() -> None:
    """`CONFIG REDIS_URL LOG_DIR`"""
    config, redis_url, log_dir = sys.argv[1:]
    plan = RouterPlan(load_config(Path(config)), redis_url, log_dir, {MODEL: ByteRenderer()})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(plan))


if __name__ == "__main__":
    main()
