"""Claim: behind Envoy, Headrace's decision costs little on top of what asking any Python process costs.

    python -m tests.bench.endpoint_picker [--requests 2000] [--connections 8]

A real Envoy (one thread), canned engines and a picker in processes of their own; CPU seconds are those of Envoy's and
of the picker's process. Beside Headrace: Envoy that asks nobody, and Envoy that asks a Python process which reads
nothing and decides nothing. `headers`: request body BUFFERED, response body NONE; `all`: both FULL_DUPLEX_STREAMED.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import psutil
import uvloop

from controlplane.app import build_history
from kvstore.fleet_index import FleetIndex
from kvstore.prefix_index import PrefixIndex
from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2_grpc as pb_grpc
from router.dispatch import Dispatcher
from router.gateway.endpoint_picker import EndpointPicker
from router.gateway.exchange import Picking
from router.gateway.ext_proc import piece
from router.intake import FrontDesk
from router.prompt_index import PromptIndex
from router.service import RouterService
from router.settings import RouterSettings
from router.slo_settings import SloSettings
from router.tokens.settings import TokenSettings
from router.tokens.tokenizer import PromptTokenizer
from router.tracing import NoTracing
from tests.builders import make_core
from tests.byte_renderer import ByteRenderer
from tests.envoy_proxy import endpoint, gateway_config, running_envoy
from tests.grpc_door import MODEL, make_worker_at
from workers.client import EngineClient
from workers.engine_http.settings import EngineHttpSettings
from workers.membership import Joined

ENGINES = 4
PROMPT_TOKENS = 400
CHUNKS = 64
MODES = {"headers": ("BUFFERED", "NONE"), "all": ("FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED")}
CONTENDERS = ("nobody is asked", "Python that does nothing", "Headrace")
_EVENT = b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" word"}]}\n\n'
_UNARY = json.dumps({"id": "cmpl-1", "choices": [{"index": 0, "text": " word" * 16}]}).encode()


@dataclass(frozen=True)
class Row:
    """One line of the table. CPU in microseconds per request."""

    contender: str
    mode: str
    case: str
    connections: int
    rps: float
    p50_us: float
    p99_us: float
    cpu_us_per_request: float  # of the picker
    envoy_cpu_us_per_request: float


class Engine(asyncio.Protocol):
    """Answers every request with the same bytes: 64 chunks a millisecond apart where it asks for a stream."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        is_chunked = b"chunked" in head
        if (
            not found
            or (is_chunked and not body.endswith(b"0\r\n\r\n"))
            or (not is_chunked and not body.endswith(b"}"))
        ):
            return
        self._data = b""
        if b'"stream": true' in body:
            self._task = asyncio.get_running_loop().create_task(self._stream())
        else:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_UNARY)
            self._transport.write(head + _UNARY)

    async def _stream(self) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(CHUNKS):
            self._transport.write(b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT))
            await asyncio.sleep(0.001)
        self._transport.write(b"0\r\n\r\n")


class Nothing:
    """Lets everything pass."""

    async def Process(self, _: Any, context: Any) -> None:  # noqa: N802  as in the .proto
        while (said := await context.read()) is not grpc.aio.EOF:
            kind = said.WhichOneof("request")
            if kind == "request_headers":
                gives_back = said.protocol_config.request_body_mode == pb.FULL_DUPLEX_STREAMED
            answer = pb.ProcessingResponse()
            getattr(answer, kind).SetInParent()
            if kind.endswith("_body") and gives_back:
                body = getattr(said, kind)
                getattr(answer, kind).CopyFrom(piece(body.body, is_last=body.end_of_stream))
            await context.write(answer)


async def _engines(ready: Connection) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Engine, "127.0.0.1", 0) for _ in range(ENGINES)]
    ready.send([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers])
    await asyncio.Event().wait()


async def _nothing(ready: Connection, _: Sequence[str]) -> None:
    server = grpc.aio.server()
    pb_grpc.add_ExternalProcessorServicer_to_server(Nothing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready.send(port)
    await asyncio.Event().wait()


async def _headrace(ready: Connection, addresses: Sequence[str]) -> None:
    """Everything on: prompts hashed and looked up, costs, SLO admission."""
    tokenizer = PromptTokenizer(TokenSettings())
    tokenizer.add_renderer(MODEL, ByteRenderer())
    prompts = PromptIndex(tokenizer, FleetIndex(PrefixIndex(1 << 24)), 32)
    settings = RouterSettings()
    client = EngineClient(EngineHttpSettings())
    core, history = make_core(hand_off="cost"), build_history(settings, "bench")
    service = RouterService(core, Dispatcher(client), prompts, lambda: True, history)
    for number, address in enumerate(addresses):
        service.on_membership(Joined(make_worker_at(address, f"w{number}")))
    picking = Picking(service, FrontDesk(settings, SloSettings(), prompts), settings, NoTracing())
    picker = EndpointPicker(picking)
    ready.send(await picker.start("127.0.0.1", 0))
    await asyncio.Event().wait()


def _child(main: Any, ready: Connection, *arguments: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(ready, *arguments))


@asynccontextmanager
async def running(main: Any, *arguments: Any) -> AsyncIterator[tuple[int, Any]]:
    """A process of its own; its pid and what it says when it is ready."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(main, there, *arguments), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield process.pid, await asyncio.to_thread(here.recv)
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)


async def load(url: str, case: str, requests: int, connections: int) -> list[float]:
    """Seconds of each request, over connections that are kept open."""
    host, _, port = url.removeprefix("http://").partition(":")
    rng = Random(1)
    took_s: list[float] = []
    left = iter(range(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in left:
            prompt = "".join(rng.choices("abcdefgh ", k=PROMPT_TOKENS))
            fields = {"model": MODEL, "prompt": prompt, "max_tokens": CHUNKS, "stream": case == "stream"}
            body = json.dumps(fields).encode()
            head = "POST /v1/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
            started_s = time.perf_counter()
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b" 200 " in answer.partition(b"\r\n")[0], answer
            if b"chunked" in answer:
                while not (await reader.readuntil(b"\r\n")).startswith(b"0\r\n"):
                    pass
                await reader.readuntil(b"\r\n")
            else:
                await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            took_s.append(time.perf_counter() - started_s)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return sorted(took_s)


async def measure(contender: str, mode: str, case: str, requests: int, connections: int, folder: Path) -> Row:
    """One row."""
    async with running(_engines) as (_, addresses):
        picker = _headrace if contender == "Headrace" else _nothing
        async with running(picker, addresses) as (picker_pid, port):
            request_body, response_body = MODES[mode]
            pool = None if contender == "Headrace" else [endpoint(address) for address in addresses]
            config = gateway_config(port, request_body=request_body, response_body=response_body, pool=pool)
            if contender == CONTENDERS[0]:
                listener = config["static_resources"]["listeners"][0]
                del listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][0]
            async with running_envoy(folder, config) as envoy:
                processes = [psutil.Process(pid) for pid in (picker_pid, envoy.pid)]
                await load(envoy.url, case, requests // 4, connections)
                before = [sum(process.cpu_times()[:2]) for process in processes]
                started_s = time.perf_counter()
                took_s = await load(envoy.url, case, requests, connections)
                wall_s = time.perf_counter() - started_s
                used = [sum(p.cpu_times()[:2]) - was for p, was in zip(processes, before, strict=True)]
    per_request = [round(cpu_s / requests * 1e6, 1) for cpu_s in used]
    p50, p99 = took_s[len(took_s) // 2], took_s[len(took_s) * 99 // 100]
    return Row(contender, mode, case, connections, round(requests / wall_s, 1), p50 * 1e6, p99 * 1e6, *per_request)


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=8)
    options = parser.parse_args()
    print(f"{'':<26}{'mode':<9}{'case':<8}{'req/s':>8}{'p50 us':>9}{'p99 us':>9}{'picker us':>11}{'Envoy us':>10}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case, requests in (("unary", options.requests), ("stream", options.requests // 4)):
            for mode in MODES:
                for contender in CONTENDERS[mode == "all" :]:
                    row = asyncio.run(measure(contender, mode, case, requests, options.connections, Path(folder)))
                    rows.append(row)
                    print(
                        f"{row.contender:<26}{row.mode:<9}{row.case:<8}{row.rps:>8.0f}{row.p50_us:>9.0f}"
                        f"{row.p99_us:>9.0f}{row.cpu_us_per_request:>11.0f}{row.envoy_cpu_us_per_request:>10.0f}"
                    )
    print(json.dumps({"bench": "endpoint_picker", "rows": [vars(row) for row in rows]}))


if __name__ == "__main__":
    main()
