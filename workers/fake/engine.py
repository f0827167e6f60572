"""A fake engine: a real HTTP server that speaks vLLM 0.32's OpenAI API, KV events and P/D hand-off, without a model.

For scale and fault tests. Text, latencies and faults are scripted (fake/model.py, fake/plan.py); everything a proxy or
a supervisor can observe is as in vLLM. Start one with `python -m workers.fake --port 8400`, or in a test with

    async with FakeEngine(FakeSettings(model="m")).serving() as engine:
        ... engine.address ...
"""

import argparse
import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from workers.fake.blocks import AllBlocksCleared, BlockRemoved, BlockStored
from workers.fake.core import FakeCore
from workers.fake.events import KvEventPublisher
from workers.fake.handoff import HandoffClient
from workers.fake.http import FakeHttp, SeenRequest
from workers.fake.metrics import Counters
from workers.fake.plan import Plan, PlanError, load_plan
from workers.fake.settings import FakeSettings

_MAX_BODY_BYTES = 64 << 20
_BACKLOG = 2048
_CANCEL_S = 0.05  # for handlers to end once they are cancelled


class FakeEngine:
    """One fake engine. Serves once, in `serving`; what it knows may be read before and after."""

    def __init__(self, settings: FakeSettings, *, on_exit: Callable[[], None] | None = None) -> None:
        """`on_exit` carries out the fault "exit"; without it the listener and all connections close."""
        self.settings = settings
        self.engine_id = settings.engine_id or str(uuid.uuid4())
        self._core = FakeCore(
            settings, self.engine_id, pull=self._pull, publish=self._publish, on_exit=on_exit or self.die
        )
        self._http = FakeHttp(settings, self._core)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._handoff: HandoffClient | None = None
        self._publisher: KvEventPublisher | None = None

    @property
    def address(self) -> str:
        """http://host:port, once it serves."""
        return f"http://{self.settings.host}:{self._core.port}"

    @property
    def plan(self) -> Plan:
        """The plan it follows."""
        return self._core.plan

    def set_plan(self, plan: Plan) -> None:
        """Follow another plan from now on, its counts from zero; a wedged engine goes on."""
        self._core.set_plan(plan)

    @property
    def running_seqs(self) -> int:
        """Sequences in the batch."""
        return self._core.gauges.running_seqs

    @property
    def waiting_seqs(self) -> int:
        """Sequences in the queue."""
        return self._core.gauges.waiting_seqs

    @property
    def kv_blocks_used(self) -> int:
        """Blocks held by sequences and leases."""
        return self._core.gauges.kv_blocks_used

    @property
    def num_leases(self) -> int:
        """Prefills whose blocks wait for a decode."""
        return len(self._core.leases)

    @property
    def counters(self) -> Counters:
        """Totals since the start."""
        return self._core.counters

    @property
    def aborted(self) -> int:
        """Sequences given up because their client went away."""
        return self._core.counters.finished["abort"]

    @property
    def requests(self) -> list[SeenRequest]:
        """The latest requests on all routes, oldest first."""
        return list(self._http.seen)

    @property
    def requests_seen(self) -> int:
        """Requests on all routes since the start."""
        return self._http.requests_seen

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeEngine"]:
        """Serve while inside; afterwards in-flight requests get `shutdown_timeout_s`."""
        await asyncio.sleep(self.settings.plan.timing.start_s)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            self._handoff = HandoffClient(session, self.settings.pull_timeout_s)
            if self.settings.kv_events_endpoint is not None:
                self._publisher = KvEventPublisher(self.settings.kv_events_endpoint, self.settings.kv_replay_endpoint)
                stack.push_async_callback(self._publisher.close)
            stack.callback(self._core.leases.close)
            await self._listen(stack)
            yield self

    def die(self) -> None:
        """Close the listener and break all connections, as if the process had been killed."""
        if self._listener is not None:
            self._listener.close()
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def _listen(self, stack: AsyncExitStack) -> None:
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._http.handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_CANCEL_S)
        await self._runner.setup()
        stack.push_async_callback(self._runner.cleanup)
        assert self._runner.server is not None
        stack.push_async_callback(self._http.drain, self.settings.shutdown_timeout_s)
        stack.callback(self._runner.server.pre_shutdown)  # closes idle connections
        self._listener = await asyncio.get_running_loop().create_server(
            self._runner.server, self.settings.host, self.settings.port, backlog=_BACKLOG
        )
        stack.callback(self._listener.close)
        self._core.port = self._listener.sockets[0].getsockname()[1]

    async def _pull(self, params: Mapping[str, Any]) -> list[int]:
        assert self._handoff is not None
        return await self._handoff.pull(params)

    def _publish(self, events: Sequence[BlockStored | BlockRemoved | AllBlocksCleared]) -> None:
        if self._publisher is not None:
            self._publisher.publish(events)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; ends with status 0 on SIGTERM or SIGINT."""
    uvloop.run(_serve(_parse_settings(argv)))


def _parse_settings(argv: Sequence[str] | None) -> FakeSettings:
    parser = argparse.ArgumentParser(prog="python -m workers.fake", description="A fake vLLM engine.")
    default = FakeSettings()
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port, help="0: any free one; it is printed")
    parser.add_argument("--model", default=default.model, help="the served model's name")
    parser.add_argument("--block-size", type=int, default=default.block_size_tokens, help="tokens in a KV block")
    parser.add_argument("--kv-blocks", type=int, default=default.kv_blocks, help="blocks in the KV cache")
    parser.add_argument("--max-model-len", type=int, default=default.max_model_len_tokens, help="tokens in a context")
    parser.add_argument("--plan", type=Path, help="JSON file with latencies and faults (workers/fake/plan.py)")
    parser.add_argument("--kv-events-endpoint", help="as in vLLM: bound if its host is `*`, else connected to")
    parser.add_argument("--kv-replay-endpoint", help="bound")
    parser.add_argument("--engine-id", help="the name of its KV cache; default: random")
    parser.add_argument("--shutdown-timeout", type=float, default=default.shutdown_timeout_s, help="seconds")
    args = parser.parse_args(argv)
    try:
        return FakeSettings(
            host=args.host,
            port=args.port,
            model=args.model,
            block_size_tokens=args.block_size,
            kv_blocks=args.kv_blocks,
            max_model_len_tokens=args.max_model_len,
            kv_events_endpoint=args.kv_events_endpoint,
            kv_replay_endpoint=args.kv_replay_endpoint,
            engine_id=args.engine_id,
            shutdown_timeout_s=args.shutdown_timeout,
            plan=load_plan(args.plan.read_bytes()) if args.plan is not None else default.plan,
        )
    except (PlanError, OSError, ValueError) as error:
        parser.error(str(error))


async def _serve(settings: FakeSettings) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        async with FakeEngine(settings, on_exit=lambda: os._exit(1)).serving() as engine:
            print(f"fake engine ready at {engine.address}", flush=True)
            await asyncio.Event().wait()
