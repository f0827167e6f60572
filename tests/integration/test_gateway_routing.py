"""Whole fleets behind a real Envoy: prefixes, adapters and ranks are routed as they are over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.envoy_proxy import Envoy, gateway_config, running_envoy
from tests.fleet import MODEL, Fleet, fleet
from tests.ranked_engine import ranked_engine
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.types import Role

NAMES = ["m0", "m1", "m2"]
GROUPS = 4
# A cached prefix is worth seconds, so that nothing else on a busy machine decides.
SLOW = Plan(timing=Timing(prefill_s_per_token=0.0005, decode_s_per_token=0.002))


@asynccontextmanager
async def gateway_of(made: Fleet, **options: Any) -> AsyncIterator[Envoy]:
    assert made.picker_port is not None
    async with running_envoy(made.folder / "envoy", gateway_config(made.picker_port, **options)) as envoy:
        yield envoy


@asynccontextmanager
async def open_fleet(folder: Path) -> AsyncIterator[Fleet]:
    async with fleet(folder, router={"hand_off": "cost", "endpoint_picker": {"enabled": True, "port": 0}}) as made:
        yield made
        assert await made.metric("headrace_requests_in_flight") == 0


async def complete(made: Fleet, envoy: Envoy, prompt: str, **fields: Any) -> Any:
    """The answer; of a stream, its event with the usage."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 6, **fields}
    async with made.session.post(f"{envoy.url}/v1/completions", json=body) as response:
        text = await response.text()
        assert response.status == 200, text
        return json.loads(text.split("\n\n")[-3][6:] if fields.get("stream") else text)


def prompt_of(group: int, number: int) -> str:
    return f"group {group}: " + "words that many requests have in common, " * 20 + f" question {number}"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_shared_prefix_goes_to_the_worker_that_holds_it(tmp_path: Path, streamed: bool) -> None:
    async def test() -> None:
        async with open_fleet(tmp_path) as made:
            for name in NAMES:
                await made.add(Role.MIXED, name, SLOW)
            await made.start_router()
            await made.wait_for_workers(NAMES)
            options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
            async with gateway_of(made) as envoy:
                for group in range(GROUPS):
                    await complete(made, envoy, prompt_of(group, 0), **options)
                await made.wait_for_metric("headrace_index_blocks", GROUPS * 25)
                for number in range(1, 4):
                    for group in range(GROUPS):
                        usage = (await complete(made, envoy, prompt_of(group, number), **options))["usage"]
                        assert usage["prompt_tokens_details"]["cached_tokens"] >= 25 * 32
            for group in range(GROUPS):
                served = [
                    (name, request.body)
                    for name in NAMES
                    for request in made.engines[name].requests
                    if f"group {group}: " in str(request.body)
                ]
                assert len(served) == 4
                assert len({name for name, _ in served}) == 1
            metrics = await made.metrics()
            # The engine's own word on what it had cached was read from the answers as they went by.
            assert 'headrace_parity_error{model="fake"} 0.0' in metrics
            assert 'headrace_parity_trusted{model="fake"} 1.0' in metrics

    asyncio.run(test())


def test_an_adapter_is_asked_for_by_name_where_it_is_loaded(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_fleet(tmp_path) as made:
            await made.add(Role.MIXED, "m0", SLOW, adapters=("french",))
            await made.add(Role.MIXED, "m1", SLOW, adapters=("french", "german"))
            await made.start_router()
            await made.wait_for_workers(["m0", "m1"])
            async with gateway_of(made) as envoy:
                for number in range(4):
                    assert (await complete(made, envoy, f"question {number}", model="german"))["model"] == "german"
            bodies = {name: [str(request.body) for request in made.engines[name].requests] for name in ("m0", "m1")}
            assert [sum("question" in body for body in bodies[name]) for name in ("m0", "m1")] == [0, 4]

    asyncio.run(test())


def test_a_rank_is_named_to_its_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_fleet(tmp_path) as made, ranked_engine(2, SLOW) as engine:
            await made.join(engine.address, Role.MIXED, "m0")
            await made.start_router()
            await made.wait_for_workers(["m0", "m0/1"])
            async with gateway_of(made) as envoy:
                await asyncio.gather(*(complete(made, envoy, prompt_of(group, 0)) for group in range(GROUPS)))
                await made.wait_for_metric("headrace_index_blocks", GROUPS * 25)
                for number in range(1, 3):
                    for group in range(GROUPS):
                        await complete(made, envoy, prompt_of(group, number))
            ranks_of = [
                {rank for rank, fake in enumerate(engine.ranks) for r in fake.requests if f"group {group}: " in str(r)}
                for group in range(GROUPS)
            ]
            assert all(len(ranks) == 1 for ranks in ranks_of)
            assert set().union(*ranks_of) == {0, 1}, "both ranks work"
            assert engine.without_a_rank == 0
            made.leaving["m0"].set()
            await made.wait_for_workers([])

    asyncio.run(test())
