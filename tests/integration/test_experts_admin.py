"""From `headrace experts` through the admin API to an engine's expert routes, and back."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np

from controlplane.admin_settings import AdminSettings
from controlplane.config import Config
from controlplane.embedded_redis import embedded_redis
from controlplane.placement.loads import read_scenarios, read_windows
from kvstore.board import Board, open_board
from kvstore.leases import open_leases
from router.class_tokens import encode
from tests.admin_server import OPERATOR, headrace, served, tokens_file
from tests.builders import make_worker
from tests.fake_experts import FakeExperts
from tests.placement_cases import domains
from workers.lease_keeper import LeaseKeeper

CONFIG = Config.model_validate(
    {
        "redis": {"lease_s": 2.0, "heartbeat_s": 0.1},
        "experts": {"mode": "observe", "interval_s": 0.2, "expert_bytes": 1e3},
    }
)


class World:
    """The admin API over HTTP, as Serve's ingress would have it, and one engine in the fleet."""

    def __init__(self, url: str, engine: FakeExperts, board: Board, token: Path) -> None:
        self.url = url
        self.engine = engine
        self.board = board
        self.options = ("--token-file", str(token))
        self.headers = {"Authorization": f"Bearer {OPERATOR}"}
        self.counted = {"chat": 0.0, "code": 0.0}

    async def serve(self, name: str) -> None:
        """Tokens of a domain, whose class has its name, and what a router says of them."""
        self.engine.serve(domains()[name])
        self.counted[name] += 1e4
        await self.board.classes.put("router", encode({"m0": self.counted}), 60.0)

    async def headrace(self, *args: str) -> tuple[int, str]:
        """Run the command; status and what it printed."""
        return await headrace("experts", *args, "--admin", self.url, *self.options)

    async def status(self) -> list[dict[str, object]]:
        """Engines, as `show --json` has them."""
        async with (
            aiohttp.ClientSession(headers=self.headers) as session,
            session.get(f"{self.url}/experts") as response,
        ):
            found: list[dict[str, object]] = (await response.json())["engines"]
            return found


def run(folder: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def body() -> None:
        async with embedded_redis(folder) as redis_url, FakeExperts(3, 64, 8, 9).serving() as engine:
            worker = make_worker("m0")
            worker = replace(worker, spec=replace(worker.spec, address=engine.address))
            async with open_leases(redis_url, CONFIG.redis.namespace, CONFIG.redis) as store:
                keeper = LeaseKeeper(store, CONFIG.redis, worker)
                task = asyncio.create_task(keeper.run())
                token = folder / "token"
                token.write_text(OPERATOR)
                admin = AdminSettings(port=0, tokens_file=str(tokens_file(folder)))
                try:
                    async with (
                        served(CONFIG.model_copy(update={"admin": admin}), redis_url) as url,
                        open_board(redis_url, CONFIG.redis.namespace) as board,
                    ):
                        await test(World(url, engine, board, token))
                finally:
                    keeper.stop()
                    await task

    asyncio.run(body())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


def test_an_operator_sees_the_engine_and_puts_a_plan_into_it(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async def is_known() -> bool:
            return bool(await world.status())

        async def is_measured() -> bool:
            world.engine.serve(domains()["code"])
            return (await world.status())[0]["balancedness"] is not None

        await until(is_known)
        await until(is_measured)
        code, windows = await world.headrace("loads", "--worker", "m0")
        assert code == 0
        recorded = tmp_path / "loads.json"
        recorded.write_text(windows)
        first = read_windows(recorded)[0].tokens
        assert first.shape == (3, 64)
        assert (first > 0).any()
        code, said = await world.headrace("loads", "--worker", "m9")
        assert (code, "no expert-parallel worker 'm9'" in said) == (1, True)
        code, shown = await world.headrace("show")
        assert code == 0, shown
        assert "m0" in shown
        assert "8 ranks with 9 slots" in shown
        async with aiohttp.ClientSession() as session, session.get(f"{world.url}/metrics") as response:
            text = await response.text()
            assert 'headrace_expert_balancedness{worker="m0"} 0.' in text
            assert 'headrace_expert_placements_total{worker="m0"} 0.0' in text
        slots = np.tile((np.arange(72) * 5) % 64, (3, 1)).tolist()
        plan = {"version": 1, "experts": 64, "ranks": 8, "slots_per_rank": 9, "slots": slots}
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(plan))
        code, said = await world.headrace("apply", "--plan", str(file), "--worker", "m0")
        assert code == 0, said
        assert world.engine.slots == tuple(map(tuple, slots))
        code, said = await world.headrace("apply", "--plan", str(file), "--worker", "m9")
        assert (code, "no expert-parallel worker 'm9'" in said) == (1, True)
        world.engine.refuses = 409
        code, said = await world.headrace("apply", "--plan", str(file), "--worker", "m0")
        assert (code, "not now" in said) == (1, True)
        file.write_text(json.dumps({**plan, "ranks": 4, "slots_per_rank": 18}))
        code, said = await world.headrace("apply", "--plan", str(file), "--worker", "m0")
        assert (code, "m0 has 72, 9 on a rank" in said) == (1, True)

    run(tmp_path, test)


def test_an_operator_sees_classes_of_traffic(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        names = itertools.cycle(("chat", "code", "code"))

        async def knows_both() -> bool:
            await world.serve(next(names))
            await asyncio.sleep(0.25)  # longer than a window: each has another mix
            engines = await world.status()
            classes = engines[0]["classes"] if engines else []
            assert isinstance(classes, list)
            return len(classes) > 0 and all(item["confidence"] > 0.9 for item in classes) and await has_both()

        async def has_both() -> bool:
            code, loads = await world.headrace("loads", "--worker", "m0", "--by-class")
            (tmp_path / "loads.json").write_text(loads)
            return code == 0 and {name for name in ("chat", "code") if f'"{name}"' in loads} == {"chat", "code"}

        await until(knows_both)
        chat, code = read_scenarios(tmp_path / "loads.json")
        assert (chat.name.rpartition("/")[2], code.name.rpartition("/")[2]) == ("chat", "code")
        for found, true in ((chat.tokens, domains()["chat"]), (code.tokens, domains()["code"])):
            apart = found / found.sum(axis=1, keepdims=True) - true / true.sum(axis=1, keepdims=True)
            assert np.abs(apart).sum(axis=1).mean() / 2 < 0.1
        status, shown = await world.headrace("show")
        assert status == 0, shown
        assert "of its tokens; alone it would be at 0." in shown
        async with aiohttp.ClientSession() as session, session.get(f"{world.url}/metrics") as response:
            text = await response.text()
            assert 'headrace_expert_class_share{class="c' in text
            assert 'headrace_expert_class_confidence{class="c' in text

    run(tmp_path, test)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async with aiohttp.ClientSession(headers=world.headers) as session:
            async with session.delete(f"{world.url}/experts") as response:
                assert response.status == 405
                assert response.headers["Allow"] == "GET"
            async with session.get(f"{world.url}/nothing") as response:
                assert response.status == 404
                assert "/openapi.json" in (await response.json())["error"]["message"]
            async with session.post(f"{world.url}/experts/m0/placement", data=b"{}") as response:
                assert response.status == 400
            async with session.get(f"{world.url}/metrics") as response:
                assert response.status == 200
                assert "# TYPE headrace_expert_balancedness gauge" in await response.text()
            async with session.get(f"{world.url}/status") as response:
                assert [row["id"] for row in (await response.json())["workers"]] == ["m0"]

    run(tmp_path, test)
