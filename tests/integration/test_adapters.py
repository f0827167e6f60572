"""LoRA adapters: requests name them instead of the model, and go where they are loaded and their KV is."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.fleet import MODEL, Fleet, fleet
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.types import Role

# A cached prefix is worth seconds, so that nothing else on a busy machine decides.
SLOW = Plan(timing=Timing(prefill_s_per_token=0.0005, decode_s_per_token=0.002))
SHARED = "words that many requests have in common, " * 20


def run(folder: Path, test: Callable[[Fleet], Awaitable[None]]) -> None:
    async def body() -> None:
        async with fleet(folder, router={"hand_off": "cost"}) as made:
            await made.add(Role.MIXED, "m0", SLOW, adapters=("french",))
            await made.add(Role.MIXED, "m1", SLOW, adapters=("french", "german"))
            await made.start_router()
            await made.wait_for_workers(["m0", "m1"])
            await test(made)

    asyncio.run(body())


def served(made: Fleet, name: str) -> list[str]:
    bodies = [json.loads(request.body) for request in made.engines[name].requests if b"question" in request.body]
    return [body["model"] for body in bodies]


def test_an_adapter_is_asked_for_by_name_where_it_is_loaded(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        for number in range(4):
            status, answer = await made.complete(f"question {number}", model="german")
            assert status == 200
            assert answer["model"] == "german"
        assert served(made, "m0") == []
        assert served(made, "m1") == ["german"] * 4
        status, answer = await made.complete("question", model="spanish")
        assert status == 404
        assert "french, german" in answer["error"]["message"]

    run(tmp_path, test)


def test_each_adapter_has_prefixes_of_its_own(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        for number, model in enumerate(("french", MODEL)):
            status, _ = await made.complete(f"{SHARED} question", model=model)
            assert status == 200
            await made.wait_for_metric("headrace_index_blocks", 25 * (number + 1))
        for number in range(3):
            for model in ("french", MODEL):
                _, answer = await made.complete(f"{SHARED} question {number}", model=model)
                assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 25 * 32
        metrics = await made.metrics()
        assert 'headrace_parity_error{model="fake"} 0.0' in metrics, "predicted for the adapter as for the model"

    run(tmp_path, test)


def test_models_lists_them_and_what_they_belong_to(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        async with made.session.get(f"{made.url}/v1/models") as response:
            cards = (await response.json())["data"]
        assert {card["id"]: card["parent"] for card in cards} == {MODEL: None, "french": MODEL, "german": MODEL}
        async with made.session.get(f"{made.url}/v1/models/german") as response:
            assert response.status == 200

    run(tmp_path, test)
