"""A gRPC front door for tests: a real server and client, the real service, and engines behind it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web
from google.protobuf import json_format

from controlplane.app import build_history
from kvstore.fleet_index import FleetIndex
from kvstore.prefix_index import PrefixIndex
from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from router.core import RouterCore
from router.dispatch import Dispatcher
from router.grpc_server import GrpcServer
from router.identity.cache_salts import CacheSalts
from router.identity.doorkeeper import Doorkeeper
from router.identity_settings import IdentitySettings
from router.intake import FrontDesk
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.prompt_index import PromptIndex
from router.service import RouterService
from router.settings import RouterSettings
from router.slo_settings import SloSettings
from router.tokens.settings import TokenSettings
from router.tokens.tokenizer import PromptTokenizer
from router.tracing import NoTracing
from tests.builders import make_core, make_worker
from workers.client import EngineClient
from workers.engine_http.settings import EngineHttpSettings
from workers.fake import FakeEngine, FakeSettings, Plan
from workers.fake.plan import Timing
from workers.membership import Joined
from workers.types import Role, WorkerState

MODEL = "fake"
SERVICE = "headrace.v1.Inference"


def make_worker_at(
    address: str, name: str = "w1", *, role: Role = Role.MIXED, model: str = MODEL, max_model_len_tokens: int = 2048
) -> WorkerState:
    """A ready worker that serves at an address."""
    routes: dict[str, tuple[str, ...]] = {CHAT_ROUTE: (), COMPLETION_ROUTE: ()}
    worker = make_worker(name, role, model=model, routes=routes)
    spec = replace(worker.spec, address=address, max_model_len_tokens=max_model_len_tokens)
    return replace(worker, spec=spec)


@dataclass
class Door:
    """A running gRPC server and a client of it."""

    service: RouterService
    desk: FrontDesk
    core: RouterCore
    server: GrpcServer
    port: int
    channel: grpc.aio.Channel
    stub: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stub = pb_grpc.InferenceStub(self.channel)

    async def settle(self) -> None:
        """Wait until nothing is in flight; the ledger must then be empty."""
        await eventually(lambda: self.service.num_in_flight == 0)
        self.core.validate()
        for worker in self.service.fleet():
            assert self.core.candidate(worker).reserved_seqs == 0


@asynccontextmanager
async def open_door(
    *workers: WorkerState, core: RouterCore | None = None, identity: IdentitySettings | None = None, **settings: Any
) -> AsyncIterator[Door]:
    """A router with a fleet, behind gRPC. With `identity`, tenants are salted."""
    client = EngineClient(EngineHttpSettings(first_byte_timeout_s=30.0, silence_timeout_s=30.0))
    core = core or make_core()
    prompts = PromptIndex(PromptTokenizer(TokenSettings()), FleetIndex(PrefixIndex(1 << 20)), 32)
    history = build_history(RouterSettings(), "test")
    service = RouterService(core, Dispatcher(client), prompts, lambda: True, history)
    for worker in workers:
        service.on_membership(Joined(worker))
    router = RouterSettings(drain_s=5.0, **settings)
    desk = FrontDesk(router, SloSettings(), prompts)
    if identity is not None:
        salts = CacheSalts()
        salts.set_secret(b"secret" * 6)
        desk = replace(desk, door=Doorkeeper(identity, time.time), salts=salts, ledger=service.ledger)
    server = GrpcServer(service, desk, router, NoTracing())
    port = await server.start("127.0.0.1", 0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Door(service, desk, core, server, port, channel)
    finally:
        await server.stop()
        await client.close()


@dataclass
class ScriptedEngine:
    """Answers every request with the same status and pieces; keeps what it was sent."""

    pieces: list[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    bodies: list[Any] = field(default_factory=list)
    seen_headers: list[dict[str, str]] = field(default_factory=list)
    address: str = ""
    num_running: int = 0
    num_sent: int = 0

    @asynccontextmanager
    async def serving(self) -> "AsyncIterator[ScriptedEngine]":
        """Listen while the context is open."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/{route:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await http.read()))
        self.seen_headers.append({name.lower(): value for name, value in http.headers.items()})
        response = web.StreamResponse(status=self.status, headers=self.headers)
        await response.prepare(http)
        self.num_running += 1
        try:
            for piece in self.pieces:
                await response.write(piece)
                self.num_sent += 1
        finally:
            self.num_running -= 1
        return response


def sse(*events: Any, done: bool = True) -> list[bytes]:
    """An event stream."""
    parts = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]
    return [*parts, b"data: [DONE]\n\n"] if done else parts


def chunk(text: str, **choice: Any) -> dict[str, Any]:
    """A chunk of a plain completion."""
    return {"id": "cmpl-1", "choices": [{"index": 0, "text": text, **choice}]}


def make_request(**fields: Any) -> pb.GenerateRequest:
    """A request from its JSON form; a plain prompt unless it has another input."""
    given = {"model": MODEL, **fields}
    if "chat" not in given and "tokenIds" not in given:
        given.setdefault("prompt", "hello")
    return json_format.ParseDict(given, pb.GenerateRequest())


def make_chat(**fields: Any) -> pb.GenerateRequest:
    """A chat request."""
    messages = fields.pop("messages", [{"role": "user", "content": "hello"}])
    return make_request(chat={"messages": messages, **fields.pop("chat", {})}, **fields)


async def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until it holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "did not come true in time"
        await asyncio.sleep(0.01)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    return caught.value


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The trailing metadata."""
    return dict(error.trailing_metadata())


def text_of(responses: list[pb.GenerateResponse], index: int = 0) -> str:
    """The text of one completion."""
    return "".join(choice.text for response in responses for choice in response.choices if choice.index == index)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run one test, not forever."""
    asyncio.run(asyncio.wait_for(test, 60.0))


async def reference(engine: FakeEngine, route: str, **body: Any) -> dict[str, Any]:
    """What the engine answers when it is asked directly, and not for a stream."""
    async with aiohttp.ClientSession() as session, session.post(f"{engine.address}{route}", json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


@asynccontextmanager
async def open_door_to_fake(*, decode_s_per_token: float = 0.0) -> AsyncIterator[tuple[Door, FakeEngine]]:
    """A router with one fake vLLM."""
    settings = FakeSettings(model=MODEL, plan=Plan(timing=Timing(decode_s_per_token=decode_s_per_token)))
    async with FakeEngine(settings).serving() as engine, open_door(make_worker_at(engine.address)) as door:
        yield door, engine
        await door.settle()


@asynccontextmanager
async def open_door_to_script(*pieces: bytes, **scripted: Any) -> AsyncIterator[tuple[Door, ScriptedEngine]]:
    """A router with one engine that answers as told."""
    engine = ScriptedEngine(list(pieces), **scripted)
    async with engine.serving(), open_door(make_worker_at(engine.address)) as door:
        yield door, engine
        await door.settle()


def finish_reasons(responses: list[pb.GenerateResponse]) -> list[str]:
    """Of all completions, in the order in which they ended."""
    return [choice.finish_reason for response in responses for choice in response.choices if choice.finish_reason]


async def collect(door: Door, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    """All responses of one call."""
    return [response async for response in door.stub.Generate(request)]


@asynccontextmanager
async def mutable_proxy(target_port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A TCP proxy; after `mute()` nothing of the client's gets through, and nothing tells the server so."""
    muted = asyncio.Event()
    pumps: list[asyncio.Task[None]] = []

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, may_mute: bool) -> None:
        while data := await source.read(65536):
            if not (may_mute and muted.is_set()):
                sink.write(data)
                await sink.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target_port)
        writers.extend((writer, server_writer))
        pumps.append(asyncio.create_task(pump(reader, server_writer, may_mute=True)))
        pumps.append(asyncio.create_task(pump(server_reader, writer, may_mute=False)))

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], muted.set
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
