"""The middleware in the engine's API server, with an engine that only remembers what it was asked."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from workers.expert_endpoint import ExpertEndpoint, decode_plan
from workers.expert_placement import EXPERTS_PATH, PLACEMENT_PATH, RankReport, Table, equal_parts

START: Table = ((0, 1, 2, 0),)
OTHER: Table = ((2, 1, 0, 2),)


class FakeClient:
    """vLLM's AsyncLLM, as far as the endpoint uses it: two data-parallel engines of one rank each."""

    def __init__(self) -> None:
        self.engine_core = self
        self.calls: list[str] = []
        self.slots = START
        self.placements = 0
        self.errored = False
        self.dead_error = RuntimeError("dead")
        self.paused = False
        self.hang = asyncio.Event()
        self.hang.set()

    async def call_utility_all_async(self, utility: str, method: str, *rest: Any) -> Any:
        timeout_s, args, kwargs = rest
        assert (utility, timeout_s, kwargs) == ("collective_rpc", None, None)
        self.calls.append(method)
        if method == "headrace_place_experts":
            await self.hang.wait()
            assert self.paused
            self.slots, self.placements = args[0], self.placements + 1
        return [[self.rank()], [self.rank()]]

    def rank(self) -> Any:
        report = RankReport(
            is_copy=False,
            steps=1,
            placements=self.placements,
            experts=3,
            ranks=2,
            slots_per_rank=2,
            slots=self.slots,
            parts=equal_parts(self.slots),
            expert_tokens=((2, 1, 1),),
            slot_tokens=((1, 1, 1, 1),),
        )
        return msgspec.to_builtins(report)

    async def is_paused(self) -> bool:
        return self.paused

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert (mode, clear_cache) == ("keep", False), "requests and their KV stay"
        self.calls.append("pause")
        self.paused = True

    async def resume_generation(self) -> None:
        self.calls.append("resume")
        self.paused = False


class Server:
    """Asks the middleware as uvicorn would."""

    def __init__(self) -> None:
        self.client = FakeClient()
        self.passed_on: list[str] = []
        self.endpoint = ExpertEndpoint(self._app)
        self.state = SimpleNamespace(engine_client=self.client)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed_on.append(scope["path"])

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        chunks = [body[:3], body[3:]]
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "app": SimpleNamespace(state=self.state)}
        await self.endpoint(scope, receive, send)
        return (sent[0]["status"], msgspec.json.decode(sent[1]["body"])) if sent else (0, None)

    async def place(self, slots: Any) -> tuple[int, Any]:
        return await self.ask("POST", PLACEMENT_PATH, msgspec.json.encode({"slots": slots}))


def test_a_report_adds_up_all_ranks_of_all_engines() -> None:
    async def test() -> None:
        server = Server()
        status, report = await server.ask("GET", EXPERTS_PATH)
        assert status == 200
        assert report["expert_tokens"] == [[4, 2, 2]]
        assert report["slots"] == [[0, 1, 2, 0]]
        assert report["epoch"] > 1_600_000_000_000

    asyncio.run(test())


def test_a_placement_is_applied_while_the_engine_stands_still() -> None:
    """Invariant 2."""

    async def test() -> None:
        server = Server()
        status, reply = await server.place(OTHER)
        assert (status, reply["slots"], reply["placements"]) == (200, [[2, 1, 0, 2]], 1)
        assert server.client.calls == ["headrace_experts", "pause", "headrace_place_experts", "resume"]

    asyncio.run(test())


def test_an_engine_that_somebody_paused_stays_paused() -> None:
    async def test() -> None:
        server = Server()
        server.client.paused = True
        assert (await server.place(OTHER))[0] == 200
        assert server.client.paused
        assert "resume" not in server.client.calls

    asyncio.run(test())


@pytest.mark.parametrize("slots", [[[0, 1, 2]], [[0, 1, 1, 0]], [[0, 1, 2, 3]], [], [["0", 1, 2, 0]], None])
def test_a_bad_placement_reaches_no_rank(slots: Any) -> None:
    """Invariant 1."""

    async def test() -> None:
        server = Server()
        status, answer = await server.place(slots)
        assert status == 400
        assert "slots" in answer["error"]
        assert {*server.client.calls} <= {"headrace_experts"}
        assert server.client.slots == START

    asyncio.run(test())


def test_one_placement_at_a_time_and_reports_wait_for_it() -> None:
    """Invariant 3."""

    async def test() -> None:
        server = Server()
        server.client.hang.clear()
        first = asyncio.create_task(server.place(OTHER))
        await asyncio.sleep(0.01)
        report = asyncio.create_task(server.ask("GET", EXPERTS_PATH))
        assert (await server.place(START))[0] == 409
        assert not first.done()
        assert not report.done()
        server.client.hang.set()
        assert (await first)[0] == 200
        assert (await report)[1]["placements"] == 1
        assert (await server.place(START))[0] == 200

    asyncio.run(test())


def test_who_waits_for_an_engine_that_dies_is_told() -> None:
    """vLLM never answers a question that was open when the engine died, and an open connection keeps it from ending."""

    async def test() -> None:
        server = Server()
        server.client.hang.clear()
        waiting = asyncio.create_task(server.place(OTHER))
        await asyncio.sleep(0.01)
        server.client.errored = True
        status, answer = await asyncio.wait_for(waiting, timeout=5)
        assert status == 503
        assert "dead" in answer["error"]

    asyncio.run(test())


def test_other_routes_and_methods() -> None:
    async def test() -> None:
        server = Server()
        await server.ask("GET", "/health")
        assert server.passed_on == ["/health"]
        assert (await server.ask("POST", EXPERTS_PATH))[0] == 405
        assert (await server.ask("GET", PLACEMENT_PATH))[0] == 405
        server.state = SimpleNamespace()
        assert (await server.ask("GET", EXPERTS_PATH))[0] == 503

    asyncio.run(test())


def test_a_plan_with_parts() -> None:
    plan = decode_plan(b'{"slots": [[0, 1]], "parts": [[1, 2]]}')
    assert (plan.slots, plan.parts) == (((0, 1),), ((1, 2),))
