"""The fake engine's NIXL: a prefill leaves blocks under a lease, a decode pulls them over HTTP.

What travels is the prompt's tokens, standing for its KV: a decode goes on from what it pulled and not from its own
prompt, so a handle that went to the wrong request shows in the answer as it would in reality. Unlike NIXL the fake
does not renew a lease while the decode waits for its turn.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from workers.fake.blocks import HeldBlocks
from workers.fake.settings import FakeSettings

PULL_ROUTE = "/fake/pull"


class PullFailedError(Exception):
    """The blocks of a hand-off could not be had."""


@dataclass(frozen=True, slots=True)
class _Lease:
    held: HeldBlocks
    num_tokens: int
    expiry: asyncio.TimerHandle


class LeaseBook:
    """Prefilled blocks that wait for their decode. `release` gives blocks back, `expired` counts."""

    def __init__(
        self, settings: FakeSettings, engine_id: str, release: Callable[[HeldBlocks], None], expired: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._engine_id = engine_id
        self._release = release
        self._expired = expired
        self._leases: dict[str, _Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def grant(self, request_id: str, held: HeldBlocks, num_tokens: int, port: int) -> dict[str, Any]:
        """Keep `held` until it is pulled or the lease ends; return the handle that a prefill answers with."""
        timer = asyncio.get_running_loop().call_later(self._settings.kv_lease_s, self._expire, request_id)
        self._leases[request_id] = _Lease(held, num_tokens, timer)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, held.num_blocks + 1))],
            "remote_engine_id": self._engine_id,
            "remote_request_id": request_id,
            "remote_host": self._settings.host,
            "remote_port": port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": num_tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": held.cached_tokens,
        }

    def spend(self, request_id: str, engine_id: str) -> list[int] | None:
        """The tokens whose blocks were kept, whose lease ends with this; None if there is no such lease."""
        if engine_id != self._engine_id or request_id not in self._leases:
            return None
        lease = self._leases.pop(request_id)
        lease.expiry.cancel()
        tokens = lease.held.tokens[: lease.num_tokens]
        self._release(lease.held)
        return tokens

    def close(self) -> None:
        """Forget all leases."""
        for lease in self._leases.values():
            lease.expiry.cancel()
            self._release(lease.held)
        self._leases.clear()

    def _expire(self, request_id: str) -> None:
        self._expired()
        self._release(self._leases.pop(request_id).held)


class HandoffClient:
    """Pulls blocks from other fakes."""

    def __init__(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def pull(self, params: Mapping[str, Any]) -> list[int]:
        """The tokens behind a handle, which is spent with this; raises PullFailedError."""
        body = {name: params.get(name) for name in ("remote_request_id", "remote_engine_id")}
        url = f"http://{params.get('remote_host')}:{params.get('remote_port')}{PULL_ROUTE}"
        try:
            async with self._session.post(url, json=body, timeout=self._timeout) as response:
                if response.status != 200:
                    raise PullFailedError(f"{url} answered {response.status}")
                return msgspec.json.decode(await response.read(), type=_Pulled).token_ids
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise PullFailedError(f"{url}: {error!r}") from error


class _Pulled(msgspec.Struct):
    token_ids: list[int]
