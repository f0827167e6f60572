"""The two expert routes of an expert-parallel engine, without the engine: loads are said, placements are kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import numpy as np
from aiohttp import web

from controlplane.placement.types import Tokens
from workers.expert_placement import (
    EXPERTS_PATH,
    PLACEMENT_PATH,
    ExpertReport,
    PlacementReply,
    SlotPlan,
    SlotPlanError,
    Table,
    check_slot_plan,
    equal_parts,
)


class FakeExperts:
    """An engine of `ranks` ranks with `slots_per_rank` slots; slot s holds expert s modulo their number at first."""

    def __init__(self, layers: int, experts: int, ranks: int, slots_per_rank: int) -> None:
        self.layers, self.experts, self.ranks, self.slots_per_rank = layers, experts, ranks, slots_per_rank
        self.address = ""
        self.refuses = 0  # status of the next placement, if any
        self.restart()

    def restart(self) -> None:
        """Another epoch: counts are zero, the first placement is back."""
        self.epoch = getattr(self, "epoch", 0) + 1
        self.placements = 0
        row = tuple(slot % self.experts for slot in range(self.ranks * self.slots_per_rank))
        self.slots: Table = (row,) * self.layers
        self.parts = equal_parts(self.slots)
        self._tokens = np.zeros((self.layers, self.experts), dtype=np.int64)

    def serve(self, tokens: Tokens) -> None:
        """So many tokens went to each expert."""
        self._tokens += np.rint(tokens).astype(np.int64)

    def report(self) -> ExpertReport:
        """What the engine says."""
        counts = tuple(map(tuple, self._tokens.tolist()))
        return ExpertReport(
            epoch=self.epoch,
            steps=int(self._tokens.sum() > 0),
            placements=self.placements,
            experts=self.experts,
            ranks=self.ranks,
            slots_per_rank=self.slots_per_rank,
            slots=self.slots,
            parts=self.parts,
            expert_tokens=counts,
            slot_tokens=tuple((0,) * len(row) for row in self.slots),
        )

    async def _report(self, _: web.Request) -> web.Response:
        return _json(self.report())

    async def _place(self, request: web.Request) -> web.Response:
        if self.refuses:
            status, self.refuses = self.refuses, 0
            return _json({"error": "not now"}, status)
        plan = msgspec.json.decode(await request.read(), type=SlotPlan)
        try:
            check_slot_plan(
                plan,
                layers=self.layers,
                experts=self.experts,
                ranks=self.ranks,
                slots_per_rank=self.slots_per_rank,
            )
        except SlotPlanError as error:
            return _json({"error": str(error)}, 400)
        self.slots, self.parts = plan.slots, plan.parts or equal_parts(plan.slots)
        self.placements += 1
        return _json(PlacementReply(epoch=self.epoch, placements=self.placements, slots=self.slots, parts=self.parts))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeExperts"]:
        """Listen on loopback."""
        app = web.Application()
        app.router.add_get(EXPERTS_PATH, self._report)
        app.router.add_post(PLACEMENT_PATH, self._place)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
