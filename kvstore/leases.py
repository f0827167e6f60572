"""Membership leases in Redis: who is alive, as opaque records keyed by worker.

Keys of one cluster (the braces are part of the names, see `kvstore/connection.py`):
    {namespace}:worker:WORKER_ID   the record, expiring with the lease (`kvstore/expiring_records.py`)
    {namespace}:workers            set of worker ids
    {namespace}:changed            channel; a message means "look now instead of at the next heartbeat"
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager

from kvstore.channel import Channel
from kvstore.connection import RedisLink
from kvstore.expiring_records import ExpiringRecords
from kvstore.settings import RedisSettings
from kvstore.types import WorkerId


class LeaseStore:
    """Leases of one namespace. Every method raises RedisUnavailableError and nothing else.

    `settings` adds what a URL cannot say (TLS, password file); its own url and namespace are not looked at. Raises
    RedisUrlError if `url` is none.
    """

    def __init__(self, url: str, namespace: str, settings: RedisSettings | None = None) -> None:
        self._link = RedisLink(url, settings)
        self._records = ExpiringRecords(self._link, f"{{{namespace}}}:workers", f"{{{namespace}}}:worker")
        self._channel = Channel(self._link, f"{{{namespace}}}:changed")

    async def ping(self) -> None:
        """Raise unless the server answers."""
        await self._link.ping()

    async def renew(self, worker_id: WorkerId, record: bytes, lease_s: float) -> None:
        """Write the record for another `lease_s`. Idempotent."""
        await self._records.put(worker_id, record, lease_s)

    async def announce(self) -> None:
        """Tell followers to look now: a worker joined, left or changed its phase."""
        await self._channel.announce()

    async def read_all(self) -> dict[WorkerId, bytes]:
        """Every live record. Ids whose record has expired are dropped from the set."""
        return {WorkerId(worker_id): record for worker_id, record in (await self._records.read_all()).items()}

    async def remaining_s(self, worker_ids: Iterable[WorkerId]) -> dict[WorkerId, float]:
        """How long each lease still runs, in seconds; ids without a lease are left out."""
        left_s = await self._records.remaining_s(worker_ids)
        return {WorkerId(worker_id): seconds for worker_id, seconds in left_s.items()}

    def changes(self, poll_s: float) -> AsyncGenerator[None, None]:
        """Yield whenever it is time to look again: after an announcement, else every `poll_s`. Survives outages."""
        return self._channel.changes(poll_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()


@asynccontextmanager
async def open_leases(url: str, namespace: str, settings: RedisSettings | None = None) -> AsyncIterator[LeaseStore]:
    """A store that has answered a ping; raises RedisUnavailableError if it does not, RedisUrlError if `url` is none."""
    store = LeaseStore(url, namespace, settings)
    try:
        await store.ping()
        yield store
    finally:
        await store.close()
