"""The control plane's side, against a small HTTP server."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp
import msgspec
import pytest
from aiohttp import web

from kvstore.types import WorkerId
from workers.errors import WorkerFailedError, WorkerUnreachableError
from workers.expert_client import ExpertClient, NoExpertsError, PlacementBusyError, PlacementRefusedError
from workers.expert_placement import EXPERTS_PATH, PLACEMENT_PATH, ExpertReport, PlacementReply, SlotPlan
from workers.ports import free_ports
from workers.types import NO_LOAD, Phase, Role, WorkerState
from workers.worker import new_spec

SLOTS = ((0, 1, 1, 0),)
REPORT = ExpertReport(
    epoch=5,
    steps=2,
    placements=1,
    experts=2,
    ranks=2,
    slots_per_rank=2,
    slots=SLOTS,
    parts=((1, 1, 1, 1),),
    expert_tokens=((3, 4),),
    slot_tokens=((1, 2, 2, 2),),
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(handler: Handler, question: Callable[[ExpertClient, WorkerState], Awaitable[None]]) -> None:
    async def body() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        (port,) = free_ports("127.0.0.1", 1)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        spec = replace(new_spec(WorkerId("w1"), Role.MIXED, "m"), address=f"http://127.0.0.1:{port}")
        try:
            async with aiohttp.ClientSession() as session:
                client = ExpertClient(session, report_timeout_s=0.5, place_timeout_s=0.5)
                await question(client, WorkerState(spec, Phase.READY, NO_LOAD))
        finally:
            await runner.cleanup()

    asyncio.run(body())


def answer(status: int, body: bytes) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    return handler


def test_a_report_arrives_typed() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert (request.method, request.path) == ("GET", EXPERTS_PATH)
        return web.Response(body=msgspec.json.encode(REPORT))

    async def question(client: ExpertClient, worker: WorkerState) -> None:
        assert await client.report(worker) == REPORT

    run(handler, question)


def test_a_placement_is_sent_and_what_is_in_force_comes_back() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert (request.method, request.path) == ("POST", PLACEMENT_PATH)
        plan = msgspec.json.decode(await request.read(), type=SlotPlan)
        assert plan.parts is not None
        return web.Response(
            body=msgspec.json.encode(PlacementReply(epoch=5, placements=2, slots=plan.slots, parts=plan.parts))
        )

    async def question(client: ExpertClient, worker: WorkerState) -> None:
        reply = await client.place(worker, [[1, 0, 0, 1]], [[1, 2, 3, 4]])
        assert (reply.slots, reply.parts, reply.placements) == (((1, 0, 0, 1),), ((1, 2, 3, 4),), 2)

    run(handler, question)


@pytest.mark.parametrize(
    ("status", "body", "error", "detail"),
    [
        (400, b'{"error": "no slot for expert 3"}', PlacementRefusedError, "no slot for expert 3"),
        (409, b'{"error": "another"}', PlacementBusyError, "another"),
        (404, b"", NoExpertsError, "not expert-parallel"),
        (503, b'{"error": "dead"}', WorkerFailedError, "dead"),
        (500, b"<html>", WorkerFailedError, "status 500: b'<html>'"),
        (200, b'{"slots": 1}', WorkerFailedError, "not a PlacementReply"),
    ],
)
def test_failures_say_which_worker_and_why(status: int, body: bytes, error: type[Exception], detail: str) -> None:
    async def question(client: ExpertClient, worker: WorkerState) -> None:
        with pytest.raises(error, match=f"worker w1: .*{detail}"):
            await client.place(worker, SLOTS)

    run(answer(status, body), question)


def test_an_engine_that_does_not_answer_in_time() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(5)
        raise AssertionError

    async def question(client: ExpertClient, worker: WorkerState) -> None:
        with pytest.raises(WorkerUnreachableError, match="worker w1: GET"):
            await client.report(worker)

    run(handler, question)


def test_nobody_there() -> None:
    async def question(client: ExpertClient, worker: WorkerState) -> None:
        (port,) = free_ports("127.0.0.1", 1)
        gone = replace(worker, spec=replace(worker.spec, address=f"http://127.0.0.1:{port}"))
        with pytest.raises(WorkerUnreachableError):
            await client.report(gone)

    run(answer(200, b""), question)
