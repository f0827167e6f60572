"""Membership leases in Redis: who is alive, as opaque records keyed by worker.

Keys of one cluster:
    {namespace}:worker:{worker_id}   the record, expiring with the lease
    {namespace}:workers              set of worker ids, so that nobody scans the key space
    {namespace}:changed              channel; a message means "look now instead of at the next heartbeat"

Invariants
 1. A record never outlives its lease: it is only ever written with an expiry.
 2. `read_all` returns a record or nothing for each id, and forgets ids whose record has expired.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import redis.asyncio
from redis.exceptions import RedisError

from kvstore.errors import RedisUnavailableError
from kvstore.types import WorkerId

# Everything that a dead, restarting or unreachable server makes redis-py raise.
_REDIS_FAILURES = (RedisError, OSError, asyncio.TimeoutError)


def without_password(url: str) -> str:
    """The URL as it may be logged: the password replaced by `***`."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


class LeaseStore:
    """Leases of one namespace. Every method raises RedisUnavailableError and nothing else."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = without_password(url)
        self._redis = redis.asyncio.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=3.0)
        self._namespace = namespace

    async def ping(self) -> None:
        """Raise unless the server answers."""
        with _translated(self._url):
            await self._redis.ping()

    async def renew(self, worker_id: WorkerId, record: bytes, lease_s: float) -> None:
        """Write the record for another `lease_s`. Idempotent."""
        with _translated(self._url):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(self._key(worker_id), record, px=max(1, int(lease_s * 1000)))
                pipe.sadd(self._members, worker_id)
                await pipe.execute()

    async def announce(self) -> None:
        """Tell followers to look now: a worker joined, left or changed its phase."""
        with _translated(self._url):
            await self._redis.publish(self._channel, b"")

    async def read_all(self) -> dict[WorkerId, bytes]:
        """Every live record. Ids whose record has expired are dropped from the set."""
        with _translated(self._url):
            members = await self._redis.smembers(self._members)
            ids = sorted(WorkerId(_as_bytes(member).decode()) for member in members)
            if not ids:
                return {}
            records = await self._redis.mget([self._key(worker_id) for worker_id in ids])
            expired = [worker_id for worker_id, record in zip(ids, records, strict=True) if record is None]
            if expired:
                await self._redis.srem(self._members, *expired)
            found = zip(ids, records, strict=True)
            return {worker_id: _as_bytes(record) for worker_id, record in found if record is not None}

    async def remaining_s(self, worker_ids: Iterable[WorkerId]) -> dict[WorkerId, float]:
        """How long each lease still runs, in seconds; ids without a lease are left out."""
        with _translated(self._url):
            left = {worker_id: await self._redis.pttl(self._key(worker_id)) for worker_id in worker_ids}
            return {worker_id: milliseconds / 1000 for worker_id, milliseconds in left.items() if milliseconds >= 0}

    async def changes(self, poll_s: float) -> AsyncIterator[None]:
        """Yield whenever it is time to look again: after an announcement, else every `poll_s`. Survives outages."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        await pubsub.get_message(timeout=poll_s)
                        yield
            except _REDIS_FAILURES:
                yield
                await asyncio.sleep(poll_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _key(self, worker_id: WorkerId) -> str:
        return f"{self._namespace}:worker:{worker_id}"

    @property
    def _members(self) -> str:
        return f"{self._namespace}:workers"

    @property
    def _channel(self) -> str:
        return f"{self._namespace}:changed"


def _as_bytes(value: bytes | str) -> bytes:
    """The client library answers with bytes or text, as it was made to decode or not."""
    return value if isinstance(value, bytes) else value.encode()


class _translated:  # noqa: N801  reads as a verb at the call site
    """Turn any failure of the client library into RedisUnavailableError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        if isinstance(error, _REDIS_FAILURES):
            raise RedisUnavailableError(self._url, str(error) or type(error).__name__) from error


@asynccontextmanager
async def open_leases(url: str, namespace: str) -> AsyncIterator[LeaseStore]:
    """A store that has answered a ping; raises RedisUnavailableError if it does not."""
    store = LeaseStore(url, namespace)
    try:
        await store.ping()
        yield store
    finally:
        await store.close()
