"""The control plane's questions to one expert-parallel engine: how loaded are its experts, and put them there."""

from collections.abc import Sequence
from typing import TypeVar

import aiohttp
import msgspec

from kvstore.types import WorkerId
from workers.errors import WorkerError, WorkerFailedError, WorkerUnreachableError
from workers.expert_placement import EXPERTS_PATH, PLACEMENT_PATH, ExpertReport, PlacementReply, SlotPlan
from workers.types import WorkerState

_Answer = TypeVar("_Answer")


class NoExpertsError(WorkerError):
    """The engine is not expert-parallel (engine.experts)."""


class PlacementRefusedError(WorkerError):
    """The engine cannot apply this placement; nothing has changed. The detail says what is wrong with it."""


class PlacementBusyError(WorkerError):
    """The engine is applying another placement; nothing has changed because of this one."""


class ExpertClient:
    """Asks engines over HTTP. Errors are WorkerErrors; after a timeout of `place`, `report` tells what is in force."""

    def __init__(
        self, session: aiohttp.ClientSession, *, report_timeout_s: float = 10.0, place_timeout_s: float = 300.0
    ) -> None:
        self._session = session
        self._report_timeout_s = report_timeout_s
        self._place_timeout_s = place_timeout_s

    async def report(self, worker: WorkerState) -> ExpertReport:
        """Token counts and placement now; raises NoExpertsError where there are none."""
        status, body = await self._ask(worker, "GET", EXPERTS_PATH, None, self._report_timeout_s)
        return _decoded(worker.spec.id, status, body, ExpertReport)

    async def place(
        self, worker: WorkerState, slots: Sequence[Sequence[int]], parts: Sequence[Sequence[int]] | None = None
    ) -> PlacementReply:
        """Put experts into slots, [layer][slot]; returns when all ranks have. Raises PlacementRefusedError."""
        plan = msgspec.convert({"slots": slots, "parts": parts}, SlotPlan)
        status, body = await self._ask(worker, "POST", PLACEMENT_PATH, msgspec.json.encode(plan), self._place_timeout_s)
        return _decoded(worker.spec.id, status, body, PlacementReply)

    async def _ask(
        self, worker: WorkerState, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        url = f"{worker.spec.address}{path}"
        headers = {"content-type": "application/json"} if body is not None else {}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, url, data=body, headers=headers, timeout=timeout) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WorkerUnreachableError(worker.spec.id, f"{method} {path}: {error!r}") from error


_ERRORS: dict[int, type[WorkerError]] = {400: PlacementRefusedError, 409: PlacementBusyError}


def _decoded(worker_id: WorkerId, status: int, body: bytes, kind: type[_Answer]) -> _Answer:
    if status == 404:
        raise NoExpertsError(worker_id, "its engine is not expert-parallel (engine.experts)")
    if status != 200:
        raise _ERRORS.get(status, WorkerFailedError)(worker_id, _reason(status, body))
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise WorkerFailedError(worker_id, f"not a {kind.__name__}: {error}") from error


def _reason(status: int, body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"status {status}: {body[:200]!r}"
