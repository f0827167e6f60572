"""Follows the leases in Redis into local memory and reports who joined, changed and left."""

import logging
import time
from collections.abc import Callable

from kvstore.errors import RedisUnavailableError
from kvstore.leases import LeaseStore
from kvstore.settings import RedisSettings
from kvstore.types import WorkerId
from workers import lease_record
from workers.lease_record import LeaseRecord, LeaseRecordError
from workers.membership import Joined, Left, Membership

_log = logging.getLogger(__name__)


class LeaseFollower:
    """Run `run()` as a task; `on_change` is called for every change, in order."""

    def __init__(self, store: LeaseStore, settings: RedisSettings, on_change: Callable[[Joined | Left], None]) -> None:
        self._store = store
        self._settings = settings
        self._on_change = on_change
        self._membership = Membership(settings.lease_s)
        self._refused: set[WorkerId] = set()
        self._stopping = False
        self.redis_up = True  # the last look worked

    async def run(self) -> None:
        """Look whenever there is news, at the latest every heartbeat, until `stop` and a cancellation."""
        await self.look()
        async for _ in self._store.changes(self._settings.heartbeat_s):
            if self._stopping:
                return
            await self.look()

    def stop(self) -> None:
        """Let `run` end at its next step, also when redis-py swallows the cancellation that was to end it now."""
        self._stopping = True

    async def look(self) -> None:
        """One look at all leases."""
        try:
            raw = await self._store.read_all()
        except RedisUnavailableError as error:
            if self.redis_up:
                _log.warning("following leases: %s; going on with the %s known", error, len(self._membership.states()))
            self.redis_up = False
            self._membership.observe_outage()
            return
        if not self.redis_up:
            _log.warning("following leases: Redis is back")
        self.redis_up = True
        for change in self._membership.observe(self._decode(raw), time.monotonic()):
            self._on_change(change)

    def _decode(self, raw: dict[WorkerId, bytes]) -> dict[WorkerId, LeaseRecord]:
        records = {}
        for worker_id, data in raw.items():
            try:
                records[worker_id] = lease_record.decode(data)
            except LeaseRecordError as error:
                if worker_id not in self._refused:
                    _log.warning("ignoring worker %s: %s", worker_id, error)
                self._refused.add(worker_id)
        return records
