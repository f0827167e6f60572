"""The wire to one engine: its own HTTP, bytes in and bytes out. Failures come out as WorkerError and nothing else."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from kvstore.types import WorkerId
from workers.errors import WorkerUnreachableError
from workers.ranks import RANK_HEADER
from workers.types import WorkerState

_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineReply:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class EngineStream:
    """An answer whose head has arrived; the body is read as it comes."""

    def __init__(self, worker_id: WorkerId, response: aiohttp.ClientResponse) -> None:
        self._worker_id = worker_id
        self._response = response

    @property
    def status(self) -> int:
        """HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers, names in any case."""
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in the pieces in which it arrives; raises WorkerUnreachableError where it breaks off."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WorkerUnreachableError(self._worker_id, f"the answer broke off: {error!r}") from error


class EngineClient:
    """Connections to all engines, pooled by address. Closing an unfinished answer tells the engine to stop."""

    def __init__(self, *, idle_timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=idle_timeout_s),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )

    async def post(self, worker: WorkerState, route: str, body: bytes, headers: Mapping[str, str]) -> EngineReply:
        """POST and read the whole answer."""
        async with self.stream(worker, route, body, headers) as response:
            parts = [chunk async for chunk in response.chunks()]
            return EngineReply(response.status, response.headers, b"".join(parts))

    @asynccontextmanager
    async def stream(
        self, worker: WorkerState, route: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[EngineStream]:
        """POST and hand out the answer as soon as its head is there."""
        worker_id, rank = worker.spec.id, worker.spec.rank
        if rank is not None:
            headers = {**headers, RANK_HEADER: str(rank)}
        try:
            response = await self._session.post(f"{worker.spec.address}{route}", data=body, headers=headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WorkerUnreachableError(worker_id, f"no answer from {worker.spec.address}: {error!r}") from error
        try:
            yield EngineStream(worker_id, response)
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
