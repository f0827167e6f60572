"""Tells the control plane of one router through Redis, once a second and never on the request path.

Redis away: nothing is told, and what was counted meanwhile is in the next record.
"""

import asyncio
import time
from dataclasses import dataclass

import msgspec

from kvstore.board import Board
from kvstore.errors import RedisUnavailableError
from router.class_counts import ClassCounts
from router.class_gate import ClassGate
from router.drains import Drains
from router.interval import wait_at_most
from router.service import RouterService
from router.standing import STANDING_VERSION, Standing, with_refused
from workers.ranks import engine_of

_INTERVAL_S = 1.0
_TTL_S = 5.0


@dataclass(frozen=True, slots=True)
class StandingSources:
    """Where a standing is read from."""

    service: RouterService
    counts: ClassCounts
    drains: Drains
    gate: ClassGate

    def read(self, replica_id: str, now_s: float) -> Standing:
        """As it is now."""
        seqs: dict[str, int] = {}
        for promised in self.service.core.report(replica_id, now_s).workers:
            engine = engine_of(promised.worker_id)
            seqs[engine] = seqs.get(engine, 0) + promised.seqs
        return Standing(
            version=STANDING_VERSION,
            in_flight=self.service.num_in_flight,
            waiting=self.service.core.num_waiting,
            classes=with_refused(self.counts.by_class, self.service.metrics.refused()),
            seqs=seqs,
            drained=tuple(sorted(self.drains.drained)),
            paused=self.gate.paused,
            waiting_by_class=dict(self.counts.waiting),
            refused_tenants=self.service.metrics.tenants.refused,
        )


class StandingReporter:
    """Run `run()` as a task, end it with `stop()`."""

    def __init__(self, board: Board, replica_id: str, sources: StandingSources) -> None:
        self._board = board
        self._replica_id = replica_id
        self._sources = sources
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()

    def look_now(self) -> None:
        """Something changed that somebody may be waiting for."""
        self._changed.set()

    async def run(self) -> None:
        """Tell every second until `stop`."""
        while not self._stopping.is_set():
            self._changed.clear()
            await self.tell()
            await wait_at_most(self._changed, _INTERVAL_S)

    def stop(self) -> None:
        """Let `run` end after the report under way."""
        self._stopping.set()
        self._changed.set()

    async def tell(self) -> None:
        """Write our standing."""
        standing = self._sources.read(self._replica_id, time.monotonic())
        try:
            await self._board.standings.put(self._replica_id, msgspec.json.encode(standing), _TTL_S)
        except RedisUnavailableError:
            pass  # the exchange with the other replicas says so
