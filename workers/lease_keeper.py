"""Keeps one worker's lease in Redis: renews it with the newest state, and at once when its phase changes.

Redis away is survivable: the worker goes on serving, and says so in its log; its lease is written again as soon as
Redis answers.
"""

import asyncio
import contextlib
import logging

from kvstore.errors import RedisUnavailableError
from kvstore.leases import LeaseStore
from kvstore.settings import RedisSettings
from workers import lease_record
from workers.types import Phase, WorkerState

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """Publishes what `update` last said. Run `run()` as a task."""

    def __init__(self, store: LeaseStore, settings: RedisSettings, state: WorkerState) -> None:
        self._store = store
        self._settings = settings
        self._state = state
        self._beat = 0
        self._changed = asyncio.Event()
        self._announce = True
        self._reachable = True
        self._stopping = False

    @property
    def state(self) -> WorkerState:
        """The newest state."""
        return self._state

    def update(self, state: WorkerState) -> None:
        """Publish this from now on; a new phase, epoch or address is written at once, a new load with the next beat."""
        urgent = state.phase is not self._state.phase or state.spec != self._state.spec
        self._state = state
        if urgent:
            self._announce = True
            self._changed.set()

    async def run(self) -> None:
        """Renew until `stop` is called. Ended that way and not by cancellation: redis-py swallows some of those."""
        while not self._stopping:
            await self._renew()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.heartbeat_s):
                    await self._changed.wait()
            self._changed.clear()

    def stop(self) -> None:
        """Let `run` end after the renewal under way."""
        self._stopping = True
        self._changed.set()

    async def leave(self) -> None:
        """Say goodbye: routers drop the worker now instead of after the lease. Call when `run` has ended."""
        self._state = WorkerState(self._state.spec, Phase.LOST, self._state.load)
        self._announce = True
        await self._renew()

    async def _renew(self) -> None:
        self._beat += 1
        announce, self._announce = self._announce, False
        try:
            record = lease_record.encode(self._state, self._beat)
            await self._store.renew(self._state.spec.id, record, self._settings.lease_s)
            if announce:
                await self._store.announce()
        except RedisUnavailableError as error:
            self._announce = announce
            if self._reachable:
                _log.warning("worker %s cannot renew its lease, goes on serving: %s", self._state.spec.id, error)
            self._reachable = False
        else:
            if not self._reachable:
                _log.warning("worker %s: Redis is back, lease renewed", self._state.spec.id)
            self._reachable = True
