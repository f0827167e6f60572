"""What tenants have used, durably: a counter for each tenant, period and router that only rises.

Keys of one cluster (see `kvstore/connection.py`):
    namespace:usage:PERIOD:TENANT   hash: `FIELD:ROUTER` to a number; expires with its history

Invariants
 1. A number never falls. `charge` writes a router's own total, not a difference: said twice, late, out of order or by
    somebody else, it counts once.
 2. A tenant's use is the sum over routers, also of those that have gone: a router that starts again is another one.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from kvstore.connection import RedisLink, text_of
from kvstore.settings import RedisSettings

_HISTORY_S = 100 * 86_400
_AT_ONCE = 32

# KEYS[1]: the hash. ARGV: its time to live in seconds, then field and total again and again.
# Raises each field to the total, never lowers it; returns the whole hash.
_CHARGE = """
for i = 2, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1')
  if tonumber(ARGV[i + 1]) > known then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
if #ARGV > 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return redis.call('HGETALL', KEYS[1])
"""


class Used(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Totals of one router, for one tenant and period, of requests that have ended."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts'
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """What budgets count."""
        return self.prompt_tokens + self.output_tokens

    def most(self, other: "Used") -> "Used":
        """Field by field the larger."""
        return Used(*(max(pair) for pair in zip(_row(self), _row(other), strict=True)))

    def plus(self, other: "Used") -> "Used":
        """Field by field the sum."""
        return Used(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )


_NAMES = Used.__struct_fields__
ByRouter = dict[str, Used]


class UsageStore:
    """Usage of one namespace. Every method raises RedisUnavailableError and nothing else."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._prefix = f"{namespace}:usage"

    async def charge(self, period: str, tenant: str, totals: Mapping[str, Used]) -> ByRouter:
        """Raise the totals of these routers, if they are lower; what all routers have used then. May be empty."""
        arguments: list[str | int] = [_HISTORY_S]
        for router, used in totals.items():
            for name, total in zip(_NAMES, _row(used), strict=True):
                arguments += (f"{name}:{router}", total)
        key = f"{self._prefix}:{period}:{tenant}"
        with self._link.translated():
            found: Any = await self._link.client.eval(_CHARGE, 1, key, *arguments)
        return _by_router(found)

    async def charge_all(self, wanted: Mapping[tuple[str, str], Mapping[str, Used]]) -> dict[tuple[str, str], ByRouter]:
        """`charge` of many, by period and tenant."""
        found: dict[tuple[str, str], ByRouter] = {}
        pairs = list(wanted.items())
        for start in range(0, len(pairs), _AT_ONCE):
            lot = pairs[start : start + _AT_ONCE]
            # All of a lot end before an error of one is raised: nothing is left running.
            results = await asyncio.gather(
                *(self.charge(period, tenant, totals) for (period, tenant), totals in lot), return_exceptions=True
            )
            for (name, _), result in zip(lot, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                found[name] = result
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()


def total(by_router: Mapping[str, Used]) -> Used:
    """Over all routers (invariant 2)."""
    summed = Used()
    for used in by_router.values():
        summed = summed.plus(used)
    return summed


@asynccontextmanager
async def open_usage(url: str, namespace: str, settings: RedisSettings | None = None) -> AsyncIterator[UsageStore]:
    """A store on a connection of its own, closed at the end. Nothing is connected before the first call."""
    store = UsageStore(RedisLink(url, settings), namespace)
    try:
        yield store
    finally:
        await store.close()


def _row(used: Used) -> tuple[int, int, int, int]:
    return used.requests, used.prompt_tokens, used.cached_tokens, used.output_tokens


def _by_router(found: Any) -> ByRouter:
    """A script's HGETALL is a flat list, or a map with some servers and protocols."""
    flat = [item for pair in found.items() for item in pair] if isinstance(found, dict) else list(found)
    rows: dict[str, dict[str, int]] = {}
    for at in range(0, len(flat) - 1, 2):
        name, _, router = text_of(flat[at]).partition(":")
        value = text_of(flat[at + 1])
        if name in _NAMES and value.isdecimal():
            rows.setdefault(router, {})[name] = int(value)
    return {router: Used(**row) for router, row in rows.items()}
