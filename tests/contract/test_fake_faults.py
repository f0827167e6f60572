"""The fake engine's scripted faults, as a client meets them."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.contract.fakes import Fakes, failing, run_with_fakes, wait_until
from workers.fake.plan import Action, Match, Plan


def test_status_fault() -> None:
    async def check(fakes: Fakes) -> None:
        answers = [await fakes.complete(fakes.engines[0]) for _ in range(2)]
        assert [answer["status"] for answer in answers] == [429, 200]
        assert answers[0]["error"]["code"] == 429

    run_with_fakes(check, failing(Action.STATUS, status=429))


def test_fault_on_another_route() -> None:
    async def check(fakes: Fakes) -> None:
        address = fakes.engines[0].address
        for expected in (500, 200):
            async with fakes.session.get(f"{address}/metrics") as response:
                assert response.status == expected

    run_with_fakes(check, failing(Action.STATUS, Match(route="/metrics", nth=1)))


def test_disconnect_before_headers() -> None:
    async def check(fakes: Fakes) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await fakes.complete(fakes.engines[0])
        assert (await fakes.complete(fakes.engines[0]))["status"] == 200

    run_with_fakes(check, failing(Action.DISCONNECT_BEFORE_HEADERS))


def test_disconnect_after_chunks() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        events = []
        with pytest.raises(aiohttp.ClientPayloadError):
            async for event in fakes.events(engine):
                events.append(event)
        assert len(events) == 3
        await wait_until(lambda: engine.running_seqs == 0)
        assert engine.aborted == 1
        with pytest.raises(aiohttp.ClientPayloadError):
            await fakes.complete(engine)

    run_with_fakes(check, failing(Action.DISCONNECT_AFTER_CHUNKS, Match(every=1), chunks=3))


@pytest.mark.parametrize(("action", "num_events"), [(Action.HANG_BEFORE_HEADERS, 0), (Action.HANG_AFTER_CHUNKS, 2)])
def test_hang(action: Action, num_events: int) -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        events = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                async for event in fakes.events(engine):
                    events.append(event)
        assert len(events) == num_events
        await wait_until(lambda: engine.running_seqs == 0)

    run_with_fakes(check, failing(action, chunks=2))


def test_error_as_first_event() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        first, _ = [event async for event in fakes.events(engine)]
        assert json.loads(first.removeprefix(b"data: "))["error"]["code"] == 500
        assert (await fakes.complete(engine))["status"] == 500

    run_with_fakes(check, failing(Action.SSE_ERROR_FIRST, Match(every=1)))


def test_wedged_engine_only_answers_health() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        events = fakes.events(engine, max_tokens=20)
        received = [await anext(events) for _ in range(5)]
        stuck = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.2)
        assert not stuck.done()
        async with fakes.session.get(f"{engine.address}/health") as response:
            assert response.status == 200
        with pytest.raises(TimeoutError):
            await fakes.session.get(f"{engine.address}/metrics", timeout=aiohttp.ClientTimeout(total=0.2))
        engine.set_plan(Plan())
        received += [await stuck, *[event async for event in events]]
        assert len(received) == 21

    run_with_fakes(check, failing(Action.WEDGE, Match(after_tokens=5)))


def test_exit_breaks_everything_off() -> None:
    async def check(fakes: Fakes) -> None:
        (engine,) = fakes.engines
        with pytest.raises(aiohttp.ClientError):
            await fakes.complete(engine, max_tokens=20)
        with pytest.raises(aiohttp.ClientConnectorError):
            await fakes.complete(engine)
        assert engine.counters.generation_tokens == 5

    run_with_fakes(check, failing(Action.EXIT, Match(after_tokens=5)))


def test_exit_ends_the_process_of_a_command(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"faults": [{"match": {"route": "/version", "nth": 1}, "action": "exit"}]}')
    command = [sys.executable, "-m", "workers.fake", "--port", "0", "--plan", str(plan)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/version")
        assert process.wait(timeout=10) == 1
