"""Failures of workers and of Redis, scripted on fake engines behind the real router: nothing lost that can be saved."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.fleet import MODEL, Fleet, fleet
from workers.fake import Plan
from workers.fake.plan import Action, Fault, Match, Timing
from workers.types import Role

PROMPT = "a prompt that is long enough to fill several blocks of the cache " * 6


def run(folder: Path, test: Callable[[Fleet], Awaitable[None]], **sections: object) -> None:
    """Run one test in a fleet of its own."""

    async def body() -> None:
        async with fleet(folder, **sections) as made:
            await test(made)

    asyncio.run(body())


def fails(action: Action, *, status: int = 500, chunks: int = 1) -> Plan:
    """A plan with one fault, at the second completion: the first is the probe of `worker join`."""
    match = Match(route="/v1/completions", nth=2)
    return Plan(faults=(Fault(match=match, action=action, status=status, chunks=chunks),))


async def one_p_one_d(made: Fleet, prefill: Plan | None = None, decode: Plan | None = None) -> None:
    await made.add(Role.PREFILL, "p1", prefill)
    await made.add(Role.DECODE, "d1", decode)
    await made.start_router()
    await made.wait_for_workers(["p1", "d1"])


def test_hands_off_through_fakes(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await one_p_one_d(made)
        status, _ = await made.complete(PROMPT)
        assert status == 200
        assert made.engines["d1"].counters.transferred_bytes > 0
        assert 'headrace_attempts_total{kind="hand_off"} 1.0' in await made.metrics()

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("action", "status"),
    [(Action.STATUS, 500), (Action.STATUS, 503), (Action.DISCONNECT_BEFORE_HEADERS, 500), (Action.EXIT, 500)],
)
def test_a_failed_prefill_moves_to_another_prefill_worker(tmp_path: Path, action: Action, status: int) -> None:
    async def test(made: Fleet) -> None:
        await made.add(Role.PREFILL, "p1", fails(action, status=status))
        await made.add(Role.PREFILL, "p2")
        await made.add(Role.DECODE, "d1")
        await made.start_router()
        await made.wait_for_workers(["p1", "p2", "d1"])
        for number in range(40):  # both are idle, and nobody holds this prompt: each is chosen with probability 1/2
            prompt = f"{number}: {PROMPT}"
            got, answer = await made.complete(prompt)
            assert got == 200
            if 'headrace_failed_attempts_total{worker="p1"}' in await made.metrics():
                break
        else:
            raise AssertionError("p1 was never chosen")
        _, again = await made.complete(prompt)
        assert again["choices"][0]["text"] == answer["choices"][0]["text"], "the same, wherever it was prefilled"
        assert 'headrace_attempts_total{kind="local"}' not in await made.metrics(), (
            "p2 took over, not the decode worker"
        )

    run(tmp_path, test)


def test_without_a_prefill_worker_the_decode_worker_prefills(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await one_p_one_d(made, prefill=fails(Action.STATUS))
        status, _ = await made.complete(PROMPT)
        assert status == 200
        text = await made.metrics()
        assert 'headrace_attempts_total{kind="hand_off"} 1.0' in text
        assert 'headrace_attempts_total{kind="local"} 1.0' in text
        assert made.engines["d1"].counters.transferred_bytes == 0

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("action", "stream"),
    [
        (Action.STATUS, False),
        (Action.STATUS, True),
        (Action.DISCONNECT_BEFORE_HEADERS, False),
        (Action.DISCONNECT_BEFORE_HEADERS, True),
        (Action.SSE_ERROR_FIRST, True),
    ],
)
def test_a_decode_that_fails_before_its_first_byte_is_tried_elsewhere(
    tmp_path: Path, action: Action, stream: bool
) -> None:
    async def test(made: Fleet) -> None:
        await made.add(Role.DECODE, "d1", fails(action))
        await made.add(Role.DECODE, "d2", fails(action))
        await made.start_router()
        await made.wait_for_workers(["d1", "d2"])
        # Both fail their first request, so the first request of all meets one failure at each.
        for expected in (502, 200):
            body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "stream": stream}
            async with made.session.post(f"{made.url}/v1/completions", json=body) as response:
                text = await response.text()
            assert response.status == expected, text
            if expected == 502:
                assert "d1" in text
                assert "d2" in text
                assert int(response.headers["Retry-After"]) >= 1

    run(tmp_path, test)


def test_a_stream_that_breaks_is_never_ended_as_if_it_were_complete(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await made.add(Role.DECODE, "d1", fails(Action.DISCONNECT_AFTER_CHUNKS, chunks=3))
        await made.start_router()
        await made.wait_for_workers(["d1"])
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 20, "stream": True}
        received = b""
        with pytest.raises(aiohttp.ClientError):
            async with made.session.post(f"{made.url}/v1/completions", json=body) as response:
                assert response.status == 200
                async for chunk in response.content.iter_any():
                    received += chunk
        assert received.startswith(b"data: ")
        assert b"[DONE]" not in received
        assert "headrace_requests_in_flight 0.0" in await made.metrics()

    run(tmp_path, test)


def test_a_worker_that_hangs_and_loses_its_lease_is_given_up(tmp_path: Path) -> None:
    """Invariant 5 of router/core.py, with real leases: the attempt is aborted, another worker answers."""

    async def test(made: Fleet) -> None:
        await made.add(Role.DECODE, "d1", fails(Action.HANG_BEFORE_HEADERS))
        await made.start_router()
        await made.wait_for_workers(["d1"])
        answer = asyncio.create_task(made.complete(PROMPT))
        await asyncio.sleep(0.3)
        await made.add(Role.DECODE, "d2")
        await made.wait_for_workers(["d1", "d2"])
        made.leaving["d1"].set()
        status, _ = await asyncio.wait_for(answer, timeout=20)
        assert status == 200
        assert 'headrace_failed_attempts_total{worker="d1"} 1.0' in await made.metrics()

    run(tmp_path, test)


def test_no_worker_is_503_with_retry_after_and_ready_says_so(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await made.start_router()
        async with made.session.get(f"{made.url}/readyz") as response:
            assert response.status == 503
        body = {"model": MODEL, "prompt": "x"}
        async with made.session.post(f"{made.url}/v1/completions", json=body) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["code"] == "no_worker"
        await made.add(Role.PREFILL, "p1")
        await made.wait_for_workers(["p1"])
        async with made.session.get(f"{made.url}/readyz") as response:
            assert response.status == 503, "a prefill worker alone cannot answer a client"
        await made.add(Role.DECODE, "d1")
        await made.wait_for_workers(["p1", "d1"])
        for _ in range(200):  # it also waits for its tokenizer, fifteen seconds at most
            async with made.session.get(f"{made.url}/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)
        raise AssertionError("the router did not become ready")

    run(tmp_path, test)


def test_redis_away_costs_nothing_but_news(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await one_p_one_d(made)
        socket_path = made.redis_url.removeprefix("unix://")
        family = psutil.Process().children(recursive=True)
        (server,) = [p for p in family if "valkey" in p.name() and socket_path in " ".join(p.cmdline())]
        server.send_signal(signal.SIGSTOP)
        try:
            server.kill()
            await asyncio.sleep(3)  # longer than a lease
            status, _ = await made.complete(PROMPT)
            assert status == 200
            assert "headrace_redis_up 0.0" in await made.metrics()
        finally:
            server.wait(timeout=5)

    run(tmp_path, test)


def test_a_client_that_goes_away_stops_the_engine(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        slow = Plan(timing=Timing(decode_s_per_token=0.05))
        await one_p_one_d(made, decode=slow)
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 500, "stream": True}
        async with made.session.post(f"{made.url}/v1/completions", json=body) as response:
            await response.content.readany()
            assert made.engines["d1"].running_seqs == 1
        for _ in range(100):
            if made.engines["d1"].running_seqs == 0:
                break
            await asyncio.sleep(0.05)
        assert made.engines["d1"].running_seqs == 0
        assert made.engines["d1"].aborted == 1
        assert "headrace_requests_in_flight 0.0" in await made.metrics()
        assert "headrace_requests_cancelled_total 1.0" in await made.metrics()

    run(tmp_path, test)


def test_two_hundred_requests_at_once_spread_and_all_end(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        slow = Plan(timing=Timing(prefill_s_fixed=0.002, decode_s_per_token=0.002))
        names = [f"{role}{index}" for role in "pd" for index in range(3)]
        for name in names:
            await made.add(Role.PREFILL if name[0] == "p" else Role.DECODE, name, slow)
        await made.start_router()
        await made.wait_for_workers(names)
        answers = await asyncio.gather(*(made.complete(f"{index} {PROMPT}") for index in range(200)))
        assert {status for status, _ in answers} == {200}
        for name in names:
            seen = [request for request in made.engines[name].requests if request.route == "/v1/completions"]
            assert len(seen) > 30, f"{name} got {len(seen)} of 200"
        assert "headrace_requests_in_flight 0.0" in await made.metrics()

    run(tmp_path, test)
