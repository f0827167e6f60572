"""Expert loads are collected from engines, plans are made and applied. Numbers: invariants of expert_placer.py."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from controlplane.expert_placer import ExpertPlacer
from controlplane.placement.settings import ExpertSettings
from controlplane.placement.types import Placement, PlacementError
from kvstore.errors import RedisUnavailableError
from router.class_tokens import encode
from tests.builders import make_worker
from tests.fake_experts import FakeExperts
from tests.placement_cases import domains
from workers.expert_client import ExpertClient, PlacementRefusedError
from workers.types import Phase, WorkerState

# Moves are cheap and loads heavy, so that one window is reason enough.
SETTINGS = ExpertSettings(mode="apply", interval_s=10.0, expert_bytes=1e3, expert_s_per_token=1e-4)
CODE = domains()["code"]
OTHER = np.tile((np.arange(72) * 5) % 64, (3, 1))


class World:
    """One engine, and the placer that looks after it."""

    def __init__(self, placer: ExpertPlacer, engine: FakeExperts, worker: WorkerState) -> None:
        self.placer, self.engine, self.worker = placer, engine, worker
        self.now_s = 0.0
        self.counted: dict[str, float] = {}  # by the one router, of each class

    async def records(self) -> dict[str, bytes]:
        """What lies on the routers' board."""
        return {"router": encode({self.worker.spec.id: self.counted})}

    async def look_at_mix(self, **mix: float) -> str:
        """Ten seconds of these classes, each asking for what its domain does."""
        for name, part in mix.items():
            self.counted[name] = self.counted.get(name, 0.0) + 1e4 * part
        return await self.look(sum((part * domains()[name] for name, part in mix.items()), np.zeros((3, 64))))

    async def look(self, tokens: "np.ndarray[tuple[int, int], np.dtype[np.float64]] | None" = None) -> str:
        """Serve this load for ten seconds, then look; the decision."""
        if tokens is not None:
            self.engine.serve(tokens)
        self.now_s += 10.0
        await self.placer.look(self.now_s)
        (status,) = self.placer.status()
        return status.decision


def run(test: Callable[[World], Awaitable[None]], settings: ExpertSettings = SETTINGS) -> None:
    async def body() -> None:
        async with aiohttp.ClientSession() as session, FakeExperts(3, 64, 8, 9).serving() as engine:
            worker = make_worker("m0")
            world = World(ExpertPlacer(ExpertClient(session), settings, list), engine, worker)
            world.placer.class_tokens = world.records
            world.placer.workers = lambda: [replace(world.worker, spec=replace(worker.spec, address=engine.address))]
            await test(world)

    asyncio.run(body())


def test_experts_move_to_where_the_load_is() -> None:
    async def test(world: World) -> None:
        assert await world.look() == "too little load so far"
        assert "move" in await world.look(CODE)
        assert world.engine.placements == 1
        await world.look(CODE)
        await world.look(CODE)
        (status,) = world.placer.status()
        assert status.balancedness is not None
        assert status.balancedness.mean > 0.97
        assert status.placements == world.engine.placements
        assert status.window_s == 10.0
        assert status.drift is not None
        assert status.drift < 0.01, "the same load"
        assert len(world.placer.loads(world.worker.spec.id)) == 3
        await world.look(domains()["law"])
        (status,) = world.placer.status()
        assert status.drift is not None
        assert status.drift > 0.1

    run(test)


def test_classes_are_told_apart_and_planned_for() -> None:
    """Each window is another mix; after a few, the placement serves either class alone."""

    async def test(world: World) -> None:
        await world.look()
        await world.look_at_mix(code=1.0)
        (status,) = world.placer.status()
        assert [item.name for item in status.classes] == ["code"]
        for part in (0.2, 0.9, 0.5, 0.7, 0.3):
            await world.look_at_mix(code=part, law=1.0 - part)
        await world.look_at_mix(code=0.4, law=0.6)
        (status,) = world.placer.status()
        law, code = status.classes
        assert (law.name, code.name) == ("law", "code")
        assert law.share == pytest.approx(0.6)
        assert min(law.confidence, code.confidence) > 0.95
        assert min(law.balancedness, code.balancedness) > 0.9
        by_class = {window.traffic_class: window for window in world.placer.class_loads(world.worker.spec.id)}
        assert set(by_class) == {"code", "law"}
        for name, window in by_class.items():
            seen, true = window.tokens / window.tokens.sum(axis=1, keepdims=True), domains()[name]
            assert np.abs(seen - true / true.sum(axis=1, keepdims=True)).sum(axis=1).max() / 2 < 0.02
        whole = np.sum([window.tokens for window in world.placer.loads(world.worker.spec.id)], axis=0)
        assert np.allclose(whole, sum(window.tokens for window in by_class.values()))

    run(test)


def test_without_classes_plans_are_made_as_ever() -> None:
    async def test(world: World) -> None:
        async def away() -> dict[str, bytes]:
            raise RedisUnavailableError("redis://away", "test")

        world.placer.class_tokens = away
        await world.look()
        assert "move" in await world.look(CODE)
        (status,) = world.placer.status()
        assert list(status.classes) == []
        assert world.placer.class_loads(world.worker.spec.id) == []

    run(test)


def test_observing_explains_and_changes_nothing() -> None:
    async def test(world: World) -> None:
        await world.look()
        decision = await world.look(CODE)
        assert decision.startswith("move")
        assert "experts.mode is observe" in decision
        assert world.engine.placements == 0

    run(test, SETTINGS.model_copy(update={"mode": "observe"}))


def test_little_load_is_waited_for() -> None:
    async def test(world: World) -> None:
        await world.look()
        few = np.full((3, 64), 20.0)
        assert await world.look(few) == "too little load so far"
        assert await world.look(few) == "too little load so far"
        await world.look(few)
        (status,) = world.placer.status()
        assert status.window_s == 30.0

    run(test)


def test_a_restarted_engine_begins_anew_with_the_placement_that_it_had() -> None:
    """Invariant 2: counts of two lives are never subtracted from each other."""

    async def test(world: World) -> None:
        await world.look()
        await world.look(CODE)
        await world.look()
        planned = world.engine.slots
        world.engine.restart()
        world.worker = replace(world.worker, phase=Phase.STARTING)
        await world.look()
        world.worker = replace(world.worker, phase=Phase.READY)
        assert "put back" in await world.look()
        assert world.engine.slots == planned
        assert "too little load" in await world.look() or world.engine.slots == planned
        await world.look(CODE)
        (status,) = world.placer.status()
        assert status.balancedness is not None
        assert status.balancedness.mean > 0.95

    run(test)


def test_tokens_are_divided_anew_where_no_move_is_worth_it() -> None:
    hot = np.full((3, 64), 100.0)
    hot[:, 63] = 1500.0  # on rank 7, which shares experts 0 to 7 with rank 0

    async def test(world: World) -> None:
        await world.look()
        decision = await world.look(hot)
        assert decision.startswith("keep"), decision
        assert "dividing tokens anew saves" in decision
        assert world.engine.placements == 1
        assert max(map(max, world.engine.parts)) > 1
        slots = world.engine.slots
        await world.look(hot)
        decision = await world.look(hot)
        assert "anew" not in decision, "what is as good as it gets is left alone"
        assert world.engine.slots == slots

    run(test, SETTINGS.model_copy(update={"expert_bytes": 1e15}))


def test_what_is_only_observed_is_not_put_back() -> None:
    async def test(world: World) -> None:
        await world.look()
        await world.placer.place(world.worker.spec.id, Placement(OTHER, 64, 9))
        await world.look()
        world.engine.restart()
        assert await world.look() == "too little load so far"
        assert world.engine.placements == 0

    run(test, SETTINGS.model_copy(update={"mode": "observe"}))


def test_a_refused_placement_changes_nothing_and_is_said() -> None:
    """Invariant 3."""

    async def test(world: World) -> None:
        await world.look()
        world.engine.refuses = 409
        assert "not now" in await world.look(CODE)
        assert world.engine.placements == 0
        assert "move" in await world.look(CODE), "the next window is another chance"
        assert world.engine.placements == 1

    run(test)


def test_an_operators_plan_is_applied() -> None:
    async def test(world: World) -> None:
        await world.look()
        slots = OTHER
        await world.placer.place(world.worker.spec.id, Placement(slots, 64, 9))
        assert world.engine.slots == tuple(map(tuple, slots.tolist()))
        await world.look()
        (status,) = world.placer.status()
        assert status.placements == 1
        with pytest.raises(PlacementError, match="has 72, 9 on a rank"):
            await world.placer.place(world.worker.spec.id, Placement(slots[:, :64], 64, 8))
        with pytest.raises(PlacementRefusedError, match="no slot for expert"):
            await world.placer.place(world.worker.spec.id, Placement(slots * 0, 64, 9))
        assert world.engine.placements == 1

    run(test)


def test_an_engine_without_experts_is_left_alone() -> None:
    async def test(world: World) -> None:
        async def nothing_here(_: web.Request) -> web.Response:
            return web.json_response({"detail": "Not Found"}, status=404)

        app = web.Application()
        app.router.add_get("/{path:.*}", nothing_here)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        dense = replace(world.worker, spec=replace(world.worker.spec, address=address))
        world.placer.workers = lambda: [dense]
        await world.placer.look(1.0)
        assert world.placer.status() == []
        await runner.cleanup()

    run(test)


def test_ranks_that_do_not_divide_over_machines_are_said_and_other_engines_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(world: World) -> None:
        async with FakeExperts(3, 64, 9, 8).serving() as odd:
            other = make_worker("a0")  # looked at first
            other = replace(other, spec=replace(other.spec, address=odd.address))
            engine = world.placer.workers
            world.placer.workers = lambda: [other, *engine()]
            assert await world.look() == "too little load so far"
        assert "experts of a0: 9 ranks do not divide over 2 nodes" in caplog.text

    run(test, SETTINGS.model_copy(update={"ranks_per_node": 4}))


def test_an_engine_that_left_is_forgotten() -> None:
    async def test(world: World) -> None:
        await world.look()
        world.placer.workers = list
        await world.placer.look(20.0)
        assert world.placer.status() == []

    run(test)
