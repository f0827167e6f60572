"""What operators want of the whole cluster: workers that get nothing new, classes that nobody may use for now.

Keys of one cluster (the braces are part of the names, see `kvstore/connection.py`):
    {namespace}:intents          hash: `drain:WORKER` and `paused:CLASS` to who wanted it, since when and why
    {namespace}:intents:changed  channel; a message means "look now"

Invariants
 1. An intent that is there is not replaced: the first one's name and time stay until it is taken back.
 2. The hash has the field `kept` from its first intent on, also when all have been taken back. A hash without it is one
    that Redis has lost; followers then go on with what they know and write it again (`restore`).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from kvstore.channel import Channel
from kvstore.connection import RedisLink, text_of
from kvstore.settings import RedisSettings

_KEPT = "kept"


class Kind(StrEnum):
    """What an intent is about."""

    DRAIN = "drain"  # a worker, by its engine's id
    PAUSED = "paused"  # a class


class Intent(msgspec.Struct, frozen=True):
    """One operator's wish. JSON in Redis, readable in redis-cli."""

    by: str
    at_s: float  # Unix time
    reason: str = ""
    retry_after_s: float = 30.0  # of a paused class: what its clients are told


@dataclass(frozen=True, slots=True)
class Intents:
    """All of them. `is_kept`: by invariant 2, that nothing was lost."""

    drained: Mapping[str, Intent] = field(default_factory=dict)  # by engine
    paused: Mapping[str, Intent] = field(default_factory=dict)  # by class
    is_kept: bool = field(default=True, compare=False)

    def __len__(self) -> int:
        return len(self.drained) + len(self.paused)


class IntentStore:
    """Intents of one namespace. Every method raises RedisUnavailableError and nothing else.

    Raises RedisUrlError if `url` is none. Nothing is connected before the first call.
    """

    def __init__(self, url: str, namespace: str, settings: RedisSettings | None = None) -> None:
        self._link = RedisLink(url, settings)
        self._key = f"{{{namespace}}}:intents"
        self._channel = Channel(self._link, f"{{{namespace}}}:intents:changed")

    async def put(self, kind: Kind, name: str, intent: Intent) -> Intent:
        """Want this, unless it is wanted already; the intent in force (invariant 1)."""
        found = await self._add(kind, name, intent)
        await self._mark()
        await self._channel.announce()
        return found

    async def remove(self, kind: Kind, name: str) -> bool:
        """Take it back; False: nobody wanted it."""
        with self._link.translated():
            removed = await self._link.client.hdel(self._key, _field(kind, name))
        await self._mark()
        await self._channel.announce()
        return bool(removed)

    async def read_all(self) -> Intents:
        """As they are now. Fields that another version wrote are left out."""
        with self._link.translated():
            raw: Mapping[bytes | str, bytes | str] = await self._link.client.hgetall(self._key)
        fields = {text_of(name): value for name, value in raw.items()}
        return Intents(_of(Kind.DRAIN, fields), _of(Kind.PAUSED, fields), is_kept=_KEPT in fields)

    async def restore(self, known: Intents) -> None:
        """Write again what Redis has lost. Idempotent, also with several who do it at once."""
        for kind, intents in ((Kind.DRAIN, known.drained), (Kind.PAUSED, known.paused)):
            for name, intent in intents.items():
                await self._add(kind, name, intent)
        await self._mark()
        await self._channel.announce()

    def changes(self, poll_s: float) -> AsyncGenerator[None, None]:
        """Yield whenever it is time to look again: after a change, else every `poll_s`. Survives outages."""
        return self._channel.changes(poll_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    async def _add(self, kind: Kind, name: str, intent: Intent) -> Intent:
        with self._link.translated():
            client, at = self._link.client, _field(kind, name)
            if await client.hsetnx(self._key, at, msgspec.json.encode(intent)):
                return intent
            found = await client.hget(self._key, at)
        return (_decode(found) if found is not None else None) or intent

    async def _mark(self) -> None:
        with self._link.translated():
            await self._link.client.hset(self._key, _KEPT, "1")


@asynccontextmanager
async def open_intents(url: str, namespace: str, settings: RedisSettings | None = None) -> AsyncIterator[IntentStore]:
    """A store on a connection of its own, closed at the end."""
    store = IntentStore(url, namespace, settings)
    try:
        yield store
    finally:
        await store.close()


def _field(kind: Kind, name: str) -> str:
    return f"{kind.value}:{name}"


def _of(kind: Kind, fields: Mapping[str, bytes | str]) -> dict[str, Intent]:
    prefix = f"{kind.value}:"
    decoded = {name[len(prefix) :]: _decode(value) for name, value in fields.items() if name.startswith(prefix)}
    return {name: intent for name, intent in sorted(decoded.items()) if intent is not None}


def _decode(value: bytes | str) -> Intent | None:
    try:
        return msgspec.json.decode(value, type=Intent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
