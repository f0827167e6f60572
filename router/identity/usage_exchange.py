"""Tells Redis and the other routers what tenants have used, a few times a second and never on the request path.

Redis away: requests go on by what was known last; totals are told when it is back (`router/identity/usage_ledger.py`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from kvstore.board import Board
from kvstore.errors import RedisUnavailableError
from kvstore.usage_store import UsageStore
from router.identity.caller import Allowance
from router.identity.usage_ledger import UsageLedger
from router.interval import wait_at_most

_log = logging.getLogger(__name__)
_MISSED_REPORTS = 8  # after as many a router has gone


class UsageExchange:
    """One router's side. Run `run()` as a task, end it with `stop()`; its last act is to charge what is left."""

    def __init__(
        self,
        board: Board,
        store: UsageStore,
        ledger: UsageLedger,
        replica_id: str,
        *,
        interval_s: float,
        limited: Callable[[], Mapping[str, Allowance]],
        is_active: Callable[[], bool],
    ) -> None:
        self._board = board
        self._store = store
        self._ledger = ledger
        self._replica_id = replica_id
        self._interval_s = interval_s
        self._limited = limited
        self._is_active = is_active
        self._reachable = True
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Exchange every interval until `stop`."""
        while not self._stopping.is_set():
            if self._is_active():
                await self.exchange()
            await wait_at_most(self._stopping, self._interval_s)
        if self._is_active():
            await self.exchange()

    def stop(self) -> None:
        """Let `run` end after a last exchange."""
        self._stopping.set()

    async def exchange(self) -> None:
        """Charge what has ended, tell the others, hear them."""
        try:
            owed = self._ledger.owed(self._limited(), time.time())
            self._ledger.on_charged(await self._store.charge_all(owed), time.time())
            report = self._ledger.report(time.time())
            await self._board.usage.put(self._replica_id, report, _MISSED_REPORTS * self._interval_s)
            self._ledger.on_told()
            self._ledger.on_reports(await self._board.usage.read_all(), time.time())
        except RedisUnavailableError as error:
            if self._reachable:
                _log.warning("what tenants use is known of this router only: %s", error)
            self._reachable = False
            return
        if not self._reachable:
            _log.warning("what tenants use is known of all routers again")
        self._reachable = True
