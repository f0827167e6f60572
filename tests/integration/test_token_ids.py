"""Completions go as token ids to engines that read texts as the router does, and as they came to all others."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import MODEL, Fleet, fleet
from workers.fake import Plan
from workers.fake.plan import Action, Fault, Match
from workers.types import Role

PROMPT = "a prompt that is long enough to fill several blocks of the cache " * 6
COMPLETIONS = "/v1/completions"
TOKENIZE = "/tokenize"


def run(folder: Path, test: Callable[[Fleet], Awaitable[None]], **sections: object) -> None:
    """Run one test in a fleet of its own."""

    sections.setdefault("router", {"tokens": {"send_ids": True}})

    async def body() -> None:
        async with fleet(folder, **sections) as made:
            await test(made)

    asyncio.run(body())


def seen(made: Fleet, name: str, route: str = COMPLETIONS) -> list[Any]:
    """Bodies that an engine was sent, oldest first."""
    return [json.loads(request.body) for request in made.engines[name].requests if request.route == route]


async def asked(made: Fleet, *names: str) -> None:
    """Wait until the router has asked these engines for the tokens of its last probe, and has had time to read them."""
    for name in names:
        for _ in range(200):
            if any(PROMPT_OF_ALL in body["prompt"] for body in seen(made, name, TOKENIZE)):
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"{name} was not asked")
    await asyncio.sleep(0.2)


PROMPT_OF_ALL = "MiXeD CaSe\n"  # in the last probe, which is all of them


async def one_p_one_d(made: Fleet, decode: Plan | None = None) -> None:
    await made.add(Role.PREFILL, "p1")
    await made.add(Role.DECODE, "d1", decode)
    await made.start_router()
    await made.wait_for_workers(["p1", "d1"])


@pytest.mark.parametrize("stream", [False, True])
def test_both_engines_of_a_hand_off_get_ids(tmp_path: Path, stream: bool) -> None:
    async def test(made: Fleet) -> None:
        await one_p_one_d(made)
        await asked(made, "p1", "d1")
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "seed": 3, "stream": stream}
        async with made.session.post(f"{made.url}{COMPLETIONS}", json=body) as response:
            assert response.status == 200
            with_ids = await response.text()
        for name in ("p1", "d1"):
            assert seen(made, name)[-1]["prompt"] == list(PROMPT.encode()), name
            assert seen(made, name)[-1]["seed"] == 3
        # A field that is not known to mean the same with ids: the same request as text.
        async with made.session.post(f"{made.url}{COMPLETIONS}", json={**body, "echo": False}) as response:
            with_text = await response.text()
        assert seen(made, "d1")[-1]["prompt"] == PROMPT
        assert texts(with_ids) == texts(with_text)

    run(tmp_path, test)


def texts(answer: str) -> str:
    """What a completion says, streamed or not."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line and not line.endswith("[DONE]")]
    return "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])


def test_an_engine_that_does_not_tell_its_tokens_gets_text(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        fault = Fault(match=Match(route=TOKENIZE, nth=20), action=Action.STATUS, status=400)
        await one_p_one_d(made, Plan(faults=(fault,)))
        await asked(made, "p1")
        status, _ = await made.complete(PROMPT)
        assert status == 200
        assert seen(made, "p1")[-1]["prompt"] == seen(made, "d1")[-1]["prompt"] == PROMPT, "all of a decision, or none"
        assert len(seen(made, "d1", TOKENIZE)) == 20, "it is not asked again"

    run(tmp_path, test)


def test_an_adapter_and_a_chat_get_text(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await made.add(Role.MIXED, "m1", adapters=("ad",))
        await made.start_router()
        await made.wait_for_workers(["m1"])
        await asked(made, "m1")
        await made.complete("plain", model="ad")
        assert seen(made, "m1")[-1]["prompt"] == "plain"
        await made.complete("plain")
        assert seen(made, "m1")[-1]["prompt"] == list(b"plain")

    run(tmp_path, test)


def test_a_prompt_over_the_context_gets_the_engines_own_words(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await one_p_one_d(made)
        await asked(made, "p1", "d1")
        status, answer = await made.complete("x" * 100_000)
        assert status == 400
        assert "at least" in answer["error"]["message"], "what it says of a text"

    run(tmp_path, test)


def test_the_operator_can_leave_it_off(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await one_p_one_d(made)
        await made.complete(PROMPT)
        assert seen(made, "d1")[-1]["prompt"] == PROMPT
        assert seen(made, "d1", TOKENIZE) == []

    run(tmp_path, test, router={"tokens": {"send_ids": False}})
