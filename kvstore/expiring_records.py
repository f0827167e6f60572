"""Opaque records that expire, and a set of their ids so that nobody scans the key space. All in one hash slot.

Invariants
 1. A record never outlives its time: it is only ever written with an expiry.
 2. `read_all` returns a record or nothing for each id, and forgets ids whose record has expired.
"""

from collections.abc import Iterable

from kvstore.connection import RedisLink


class ExpiringRecords:
    """Records `{prefix}:{id}` and their ids in `members_key`. Every method raises RedisUnavailableError and no other.

    Both keys carry the same hash tag (`kvstore/connection.py`).
    """

    def __init__(self, link: RedisLink, members_key: str, prefix: str) -> None:
        self._link = link
        self._members_key = members_key
        self._prefix = prefix

    async def put(self, record_id: str, record: bytes, ttl_s: float) -> None:
        """Write the record for another `ttl_s`. Idempotent."""
        with self._link.translated():
            pipe = self._link.client.pipeline(transaction=False)
            pipe.set(self._key(record_id), record, px=max(1, int(ttl_s * 1000)))
            pipe.sadd(self._members_key, record_id)
            await pipe.execute()

    async def read_all(self) -> dict[str, bytes]:
        """Every live record by id."""
        with self._link.translated():
            client = self._link.client
            members = await client.smembers(self._members_key)
            ids = sorted(_as_bytes(member).decode(errors="replace") for member in members)
            if not ids:
                return {}
            records = await client.mget([self._key(record_id) for record_id in ids])
            found = dict(zip(ids, records, strict=True))
            expired = [record_id for record_id, record in found.items() if record is None]
            if expired:
                await client.srem(self._members_key, *expired)
            return {record_id: _as_bytes(record) for record_id, record in found.items() if record is not None}

    async def remaining_s(self, record_ids: Iterable[str]) -> dict[str, float]:
        """How long each record still lives, in seconds; ids without a record are left out."""
        with self._link.translated():
            left = {record_id: await self._link.client.pttl(self._key(record_id)) for record_id in record_ids}
            return {record_id: milliseconds / 1000 for record_id, milliseconds in left.items() if milliseconds >= 0}

    def _key(self, record_id: str) -> str:
        return f"{self._prefix}:{record_id}"


def _as_bytes(value: bytes | str) -> bytes:
    """The client library answers with bytes or text, as it was made to decode or not."""
    return value if isinstance(value, bytes) else value.encode()
