"""Requests go where their prefix is: engine events, Redis, index, overlap, cost and parity together, on fakes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.fleet import Fleet, fleet
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.types import Role

NAMES = ["m0", "m1", "m2"]
# A cached prefix is worth seconds, so that nothing else on a busy machine decides.
SLOW = Plan(timing=Timing(prefill_s_per_token=0.0005, decode_s_per_token=0.002))


def run(folder: Path, test: Callable[[Fleet], Awaitable[None]], **sections: Any) -> None:
    async def body() -> None:
        async with fleet(folder, router={"hand_off": "cost"}, **sections) as made:
            await test(made)

    asyncio.run(body())


def holder(made: Fleet, prompt: str) -> str:
    served = [name for name in NAMES for request in made.engines[name].requests if prompt in str(request.body)]
    assert served, "nobody was asked"
    return served[-1]


def prompts(group: int) -> list[str]:
    shared = f"group {group}: " + "words that many requests have in common, " * 20
    return [f"{shared} question {number}" for number in range(6)]


async def start(made: Fleet) -> None:
    for name in NAMES:
        await made.add(Role.MIXED, name, SLOW)
    await made.start_router()
    await made.wait_for_workers(NAMES)


async def ask_groups(made: Fleet, numbers: range) -> list[int]:
    """Ask one request after another; cached tokens that the engines report."""
    cached = []
    for number in numbers:
        for group in range(4):
            status, answer = await made.complete(prompts(group)[number])
            assert status == 200, answer
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    return cached


def test_a_shared_prefix_goes_to_the_worker_that_holds_it(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await start(made)
        await ask_groups(made, range(1))
        await made.wait_for_metric("headrace_index_blocks", 4 * 25)
        cached = await ask_groups(made, range(1, 6))
        assert min(cached) >= 25 * 32, "every further request of a group found its prefix"
        for group in range(4):
            assert len({holder(made, prompt) for prompt in prompts(group)}) == 1
        metrics = await made.metrics()
        assert 'headrace_parity_error{model="fake"} 0.0' in metrics
        assert 'headrace_parity_trusted{model="fake"} 1.0' in metrics

    run(tmp_path, test)


def test_a_router_that_starts_late_knows_what_the_others_know(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await start(made)
        await ask_groups(made, range(1))
        await made.wait_for_metric("headrace_index_blocks", 4 * 25)
        await made.start_router()
        await made.wait_for_workers(NAMES)
        await made.wait_for_metric("headrace_index_blocks", 4 * 25)
        assert min(await ask_groups(made, range(1, 3))) >= 25 * 32

    run(tmp_path, test)


def test_streams_report_parity_too_and_the_client_sees_no_usage_it_did_not_ask_for(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await start(made)
        body = {"model": "fake", "prompt": prompts(0)[0], "max_tokens": 4, "stream": True}
        for asks in (False, False, True):
            extra = {"stream_options": {"include_usage": True}} if asks else {}
            async with made.session.post(f"{made.url}/v1/completions", json={**body, **extra}) as response:
                text = await response.text()
            assert response.status == 200
            assert ('"usage":{' in text) == asks
            assert text.endswith("data: [DONE]\n\n")
            await made.wait_for_metric("headrace_index_blocks", 25)
        assert 'headrace_parity_error{model="fake"} 0.0' in await made.metrics()

    run(tmp_path, test)
