"""An engine of several data-parallel ranks: each rank is a worker of its own in index, ledger and cost."""

import asyncio
from pathlib import Path

from tests.fleet import Fleet, fleet
from tests.ranked_engine import RankedEngine, ranked_engine
from workers.fake import Plan
from workers.fake.plan import Action, Fault, Match, Timing
from workers.types import Role

# A cached prefix is worth seconds, so that nothing else on a busy machine decides.
SLOW = Plan(timing=Timing(prefill_s_per_token=0.0005, decode_s_per_token=0.002))
BREAKS_OFF = Plan(faults=(Fault(match=Match(every=1), action=Action.DISCONNECT_BEFORE_HEADERS),))
GROUPS = 4


def prompt(group: int, number: int) -> str:
    shared = f"group {group}: " + "words that many requests have in common, " * 20
    return f"{shared} question {number}"


async def ask(made: Fleet, number: int) -> list[int]:
    """One question to each group; cached tokens that the engine reports."""
    cached = []
    for group in range(GROUPS):
        status, answer = await made.complete(prompt(group, number))
        assert status == 200, answer
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    return cached


def served_by(engine: RankedEngine, group: int) -> set[int]:
    return {
        number
        for number, rank in enumerate(engine.ranks)
        for request in rank.requests
        if f"group {group}: " in str(request.body)
    }


def test_a_rank_is_a_worker_with_a_cache_and_a_queue_of_its_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet(tmp_path, router={"hand_off": "cost"}) as made, ranked_engine(2, SLOW) as engine:
            await made.join(engine.address, Role.MIXED, "m0")
            await made.start_router()
            await made.wait_for_workers(["m0", "m0/1"])
            await asyncio.gather(*(made.complete(prompt(group, 0)) for group in range(GROUPS)))
            assert all(len(served_by(engine, group)) == 1 for group in range(GROUPS))
            assert set().union(*(served_by(engine, group) for group in range(GROUPS))) == {0, 1}, "both ranks work"
            assert engine.without_a_rank == 0
            await made.wait_for_metric("headrace_index_blocks", GROUPS * 25)
            for number in range(1, 4):
                assert min(await ask(made, number)) >= 25 * 32, "each question found its prefix"
            assert all(len(served_by(engine, group)) == 1 for group in range(GROUPS)), "on the rank that has it"
            assert 'headrace_parity_trusted{model="fake"} 1.0' in await made.metrics()
            made.leaving["m0"].set()
            await made.wait_for_workers([])

    asyncio.run(test())


def test_another_rank_of_an_engine_that_failed_is_not_tried(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet(tmp_path, router={"hand_off": "cost"}) as made, ranked_engine(2, SLOW) as engine:
            await made.join(engine.address, Role.MIXED, "m0")
            await made.add(Role.MIXED, "m1", SLOW)
            await made.start_router()
            await made.wait_for_workers(["m0", "m0/1", "m1"])
            for rank in engine.ranks:
                rank.set_plan(BREAKS_OFF)
            for number in range(12):
                status, _ = await made.complete(f"question {number:03}")
                assert status == 200
            asked = [str(request.body) for rank in engine.ranks for request in rank.requests]
            tries = [sum(f"question {number:03}" in body for body in asked) for number in range(12)]
            assert max(tries) == 1

    asyncio.run(test())
