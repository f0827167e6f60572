"""Looks at the fleet once a second for all who watch: the window of `/slo`, and the stream of `/events`.

Nobody's page costs Redis anything: there is one look, whoever watches; newly ended decisions are looked for only while
somebody does.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import msgspec

from controlplane.counter_window import Counters, CounterWindow
from controlplane.decision_list import Brief, DecisionList
from controlplane.fleet_status import FleetReader, read_fleet
from controlplane.gauge_window import GaugeWindow
from controlplane.slo_report import (
    SloReport,
    engine_counters,
    make_report,
    refused_tenants,
    router_counters,
    tenant_counters,
    waiting_by_class,
)
from kvstore.errors import RedisUnavailableError
from kvstore.intents import Intents

_log = logging.getLogger(__name__)
INTERVAL_S = 1.0
MAX_WINDOW_S = 3600.0
TENANTS_WINDOW_S = 600.0
_TENANTS_STEP_S = 10.0  # there may be many of them
_EVENTS_WINDOW_S = 60.0
_MOST_DECISIONS = 50  # told of one look
_REMEMBERED = 4 * _MOST_DECISIONS


class Watch:
    """Run `run()` as a task, end it with `stop()`."""

    def __init__(self, reader: FleetReader, decisions: DecisionList, intents: Callable[[], Intents]) -> None:
        self._reader = reader
        self._decisions = decisions
        self._intents = intents
        self._window = CounterWindow(MAX_WINDOW_S, INTERVAL_S)
        self._queues = GaugeWindow(MAX_WINDOW_S, INTERVAL_S)
        self._tenants = CounterWindow(TENANTS_WINDOW_S, _TENANTS_STEP_S, max_keys=1024)
        self._told: dict[str, None] = {}  # decisions, the oldest first
        self._num_watching = 0
        self._looked = asyncio.Event()
        self._events: tuple[bytes, ...] = ()
        self._stopping = False

    @property
    def num_watching(self) -> int:
        """Streams of events that are open."""
        return self._num_watching

    def slo(self, window_s: float, *, ago_s: float = 0.0) -> SloReport:
        """The window that ended `ago_s` before the last look that worked; its `at_s` says when that was."""
        newest_s = self._window.newest_s
        if newest_s is None:
            return make_report(self._window, self._queues, window_s, time.time())
        at_s = time.time() - (time.monotonic() - newest_s) - ago_s
        return make_report(self._window, self._queues, window_s, at_s, newest_s - ago_s if ago_s else None)

    def refused_tenants(self) -> dict[str, dict[str, int]]:
        """Requests of the last ten minutes that were refused before they were decided on, by tenant and reason."""
        return refused_tenants(self._tenants.increase(TENANTS_WINDOW_S)[1])

    async def run(self) -> None:
        """Look every second until `stop`."""
        while not self._stopping:
            began_s = time.monotonic()
            self._events = await self._look()
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            await asyncio.sleep(max(0.0, INTERVAL_S - (time.monotonic() - began_s)))

    def stop(self) -> None:
        """Let `run` and every stream end."""
        self._stopping = True
        self._looked.set()

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events: of what is, at once, then of every look. Ends with `stop`, or with its reader."""
        with self._watching():
            yield b"retry: 2000\n\n"
            while not self._stopping:
                looked = self._looked
                await looked.wait()
                for event in self._events:
                    yield event

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._num_watching += 1
        try:
            yield
        finally:
            self._num_watching -= 1

    async def _look(self) -> tuple[bytes, ...]:
        try:
            standings = await self._reader.standings()
            fleet = await read_fleet(self._reader.leases, self._intents(), standings, self._reader.lease_s)
            sources: dict[str, Counters] = {name: router_counters(standing) for name, standing in standings.items()}
            sources |= {f"{worker.id}@{worker.epoch}": engine_counters(worker) for worker in fleet.workers}
            now_s = time.monotonic()
            self._window.observe(now_s, sources)
            self._queues.observe(now_s, waiting_by_class(standings.values()))
            self._tenants.observe(now_s, {name: tenant_counters(standing) for name, standing in standings.items()})
            if not self._num_watching:
                return ()
            return (
                _event("fleet", fleet),
                _event("slo", self.slo(_EVENTS_WINDOW_S)),
                *(_event("decision", brief) for brief in await self._new_decisions()),
            )
        except RedisUnavailableError as error:
            return (_event("stale", {"message": str(error)}),)

    async def _new_decisions(self) -> list[Brief]:
        """Those not told yet, oldest first; of many the newest."""
        newest = await self._decisions.newest(_MOST_DECISIONS)
        new = [brief for brief in newest if brief.request_id not in self._told]
        self._told |= dict.fromkeys(brief.request_id for brief in reversed(new))
        while len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return new[::-1]


def _event(name: str, value: object) -> bytes:
    """JSON has no line breaks, so one `data:` line holds it."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"
