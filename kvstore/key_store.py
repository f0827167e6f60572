"""API keys and tenants that operators made at run time, and the secret behind the cache salts.

Keys of one cluster (the braces are part of the names, see `kvstore/connection.py`):
    {namespace}:keys              hash: SHA-256 of a key in hex to its record
    {namespace}:tenants           hash: tenant to its settings, as JSON
    {namespace}:salt              hash: `secret`
    {namespace}:identity:changed  channel; a message means "look now"

Invariants
 1. A key itself never gets here: only its SHA-256.
 2. A key that was revoked stays so: no write takes `revoked_at_s` from a record. Revoked and long expired records are
    forgotten `_FORGET_AFTER_S` later.
 3. Both hashes have the field `kept` from their first entry on. One without it is one that Redis has lost; followers
    then go on with what they know and write it again (`restore`).
 4. The secret is written once; who finds another one takes that.
"""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvstore.channel import Channel
from kvstore.connection import RedisLink, text_of
from kvstore.settings import RedisSettings

_KEPT = "kept"
_SECRET = "secret"
_SECRET_BYTES = 32
_FORGET_AFTER_S = 30 * 86_400.0
_ID_CHARS = 16

# KEYS[1]: the hash of keys. ARGV: a digest, a record, "1" if that is revoked. Writes it where there is none, or where
# it revokes one; invariant 2 for several who restore at once, one of whom has not heard of a revocation.
_RESTORE = """
if ARGV[3] == '1' or redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""
# KEYS[1]: the hash of keys. ARGV: a digest, the record that was read, the one to write. 1: written.
_REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key. Times are Unix seconds. JSON in Redis, readable in redis-cli."""

    tenant: str
    service_class: str | None = None
    expires_at_s: float | None = None
    created_at_s: float = 0.0
    created_by: str = ""
    note: str = ""
    revoked_at_s: float | None = None

    def holds(self, now_s: float) -> bool:
        """It opens something."""
        return self.revoked_at_s is None and (self.expires_at_s is None or now_s < self.expires_at_s)


@dataclass(frozen=True, slots=True)
class Kept:
    """All that is there. `lost_keys`, `lost_tenants`: by invariant 3."""

    keys: Mapping[str, KeyRecord] = field(default_factory=dict)  # by digest
    tenants: Mapping[str, bytes] = field(default_factory=dict)  # JSON by name
    secret: bytes | None = None
    lost_keys: bool = field(default=False, compare=False)
    lost_tenants: bool = field(default=False, compare=False)


class KeyStore:
    """Keys and tenants of one namespace. Every method raises RedisUnavailableError and nothing else.

    Raises RedisUrlError if `url` is none. Nothing is connected before the first call.
    """

    def __init__(self, url: str, namespace: str, settings: RedisSettings | None = None) -> None:
        self._link = RedisLink(url, settings)
        self._keys = f"{{{namespace}}}:keys"
        self._tenants = f"{{{namespace}}}:tenants"
        self._salt = f"{{{namespace}}}:salt"
        self._channel = Channel(self._link, f"{{{namespace}}}:identity:changed")

    async def add_key(self, digest: str, record: KeyRecord) -> None:
        """Take it in, and forget what invariant 2 says."""
        await self._forget_old(time.time())
        await self._restore_key(digest, record)
        await self._mark(self._keys)
        await self._channel.announce()

    async def end_key(self, digest: str, *, at_s: float, revoke: bool) -> KeyRecord | None:
        """Revoke it, or have it expire at `at_s` if it would hold longer; the record now. None: there is none."""
        while True:
            with self._link.translated():
                raw: Any = await self._link.client.hget(self._keys, digest)
            record = _decode(raw)
            if raw is None or record is None or record.revoked_at_s is not None:
                return record
            if revoke:
                changed = msgspec.structs.replace(record, revoked_at_s=at_s)
            else:
                changed = msgspec.structs.replace(record, expires_at_s=min(at_s, record.expires_at_s or at_s))
            with self._link.translated():
                written: Any = await self._link.client.eval(
                    _REPLACE, 1, self._keys, digest, raw, msgspec.json.encode(changed)
                )
            if written:
                await self._channel.announce()
                return changed

    async def put_tenant(self, name: str, settings: bytes) -> None:
        """Its settings from now on, as JSON."""
        with self._link.translated():
            await self._link.client.hset(self._tenants, name, settings)
        await self._mark(self._tenants)
        await self._channel.announce()

    async def remove_tenant(self, name: str) -> bool:
        """Back to what the configuration says of it. False: nothing was kept."""
        with self._link.translated():
            removed = await self._link.client.hdel(self._tenants, name)
        await self._channel.announce()
        return bool(removed)

    async def read_all(self) -> Kept:
        """As it is now. Records that another version wrote are left out."""
        with self._link.translated():
            client = self._link.client
            raw_keys: Mapping[Any, Any] = await client.hgetall(self._keys)
            raw_tenants: Mapping[Any, Any] = await client.hgetall(self._tenants)
            secret: Any = await client.hget(self._salt, _SECRET)
        keys = {text_of(name): _bytes(value) for name, value in raw_keys.items()}
        tenants = {text_of(name): _bytes(value) for name, value in raw_tenants.items()}
        lost_keys, lost_tenants = keys.pop(_KEPT, None) is None, tenants.pop(_KEPT, None) is None
        decoded = {digest: _decode(value) for digest, value in keys.items()}
        found = {digest: record for digest, record in decoded.items() if record is not None}
        known_secret = bytes.fromhex(text_of(secret)) if secret is not None else None
        return Kept(found, tenants, known_secret, lost_keys, lost_tenants)

    async def restore(self, known: Kept) -> None:
        """Write again what Redis has lost. Idempotent, also with several who do it at once (invariants 2 and 4)."""
        for digest, record in known.keys.items():
            await self._restore_key(digest, record)
        with self._link.translated():
            for name, settings in known.tenants.items():
                await self._link.client.hsetnx(self._tenants, name, settings)
        if known.keys:
            await self._mark(self._keys)
        if known.tenants:
            await self._mark(self._tenants)
        if known.secret is not None:
            await self.secret(known.secret)
        await self._channel.announce()

    async def secret(self, wanted: bytes | None = None) -> bytes:
        """The secret of this cluster; made now if there is none (invariant 4)."""
        made = (wanted or secrets.token_bytes(_SECRET_BYTES)).hex()
        with self._link.translated():
            await self._link.client.hsetnx(self._salt, _SECRET, made)
            found: Any = await self._link.client.hget(self._salt, _SECRET)
        return bytes.fromhex(text_of(found) if found is not None else made)

    def changes(self, poll_s: float) -> AsyncGenerator[None, None]:
        """Yield whenever it is time to look again: after a change, else every `poll_s`. Survives outages."""
        return self._channel.changes(poll_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    async def _restore_key(self, digest: str, record: KeyRecord) -> None:
        revoked = "1" if record.revoked_at_s is not None else "0"
        with self._link.translated():
            await self._link.client.eval(_RESTORE, 1, self._keys, digest, msgspec.json.encode(record), revoked)

    async def _forget_old(self, now_s: float) -> None:
        for digest, record in (await self.read_all()).keys.items():
            ends = [at_s for at_s in (record.revoked_at_s, record.expires_at_s) if at_s is not None]
            if ends and min(ends) < now_s - _FORGET_AFTER_S:
                with self._link.translated():
                    await self._link.client.hdel(self._keys, digest)

    async def _mark(self, key: str) -> None:
        with self._link.translated():
            await self._link.client.hset(key, _KEPT, "1")


@asynccontextmanager
async def open_keys(url: str, namespace: str, settings: RedisSettings | None = None) -> AsyncIterator[KeyStore]:
    """A store on a connection of its own, closed at the end."""
    store = KeyStore(url, namespace, settings)
    try:
        yield store
    finally:
        await store.close()


def key_id(digest: str) -> str:
    """How operators name a key: it says nothing of the key, and nobody can use it."""
    return digest[:_ID_CHARS]


def _decode(value: Any) -> KeyRecord | None:
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=KeyRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
