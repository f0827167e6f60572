"""What routers decided and why, for a while, by request id, so that any replica and the command line can explain it.

Keys of one cluster (the braces are part of the names, see `kvstore/connection.py`):
    namespace:decision:REQUEST_ID   the record, expiring
    {namespace:decisions}:order     sorted set of request ids, oldest first

Memory in Redis is bounded: at most MAX_RECORDS records of at most MAX_RECORD_BYTES, the oldest making room.
"""

import time
from collections.abc import Sequence
from typing import Any

from kvstore.connection import RedisLink, text_of

MAX_RECORDS = 20_000
MAX_RECORD_BYTES = 16_384


class DecisionRecords:
    """Bounded records of decisions. Every method raises RedisUnavailableError and nothing else."""

    def __init__(self, link: RedisLink, namespace: str, max_records: int = MAX_RECORDS) -> None:
        self._link = link
        self._prefix = f"{namespace}:decision"
        self._order_key = f"{{{namespace}:decisions}}:order"
        self._max_records = max_records

    async def put(self, records: Sequence[tuple[str, bytes]], ttl_s: float) -> int:
        """Keep these for `ttl_s`, newest last; a later one of the same request replaces an earlier one.

        Returns how many were kept: those larger than MAX_RECORD_BYTES are not.
        """
        fitting = dict((request_id, record) for request_id, record in records if len(record) <= MAX_RECORD_BYTES)
        if not fitting:
            return 0
        now_s = time.time()  # orders records of several routers well enough
        with self._link.translated():
            client = self._link.client
            pipe = client.pipeline(transaction=False)
            pipe.zadd(self._order_key, {request_id: now_s for request_id in fitting})
            for request_id, record in fitting.items():
                pipe.set(self._key(request_id), record, px=max(1, int(ttl_s * 1000)))
            pipe.pexpire(self._order_key, max(1, int(ttl_s * 1000)))
            pipe.zcard(self._order_key)
            excess = (await pipe.execute())[-1] - self._max_records
            if excess > 0:
                await self._make_room(excess)
        return len(fitting)

    async def get(self, request_id: str) -> bytes | None:
        """The decision about a request, if it is still kept."""
        with self._link.translated():
            record = await self._link.client.get(self._key(request_id))
            return record.encode() if isinstance(record, str) else record

    async def newest(self, skip: int, limit: int) -> list[tuple[str, bytes | None]]:
        """Request ids and their decisions, the newest first, `skip` of them left out; None: expired meanwhile."""
        with self._link.translated():
            client = self._link.client
            ids: Any = await client.zrevrange(self._order_key, skip, skip + limit - 1)
            names = [text_of(request_id) for request_id in ids]
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.get(self._key(name))
            records = await pipe.execute() if names else []
        found = [record.encode() if isinstance(record, str) else record for record in records]
        return list(zip(names, found, strict=True))

    async def _make_room(self, excess: int) -> None:
        oldest: Any = await self._link.client.zpopmin(self._order_key, excess)
        pipe = self._link.client.pipeline(transaction=False)
        for request_id, _ in oldest:
            pipe.delete(self._key(request_id.decode()))
        await pipe.execute()

    def _key(self, request_id: str) -> str:
        return f"{self._prefix}:{request_id}"
