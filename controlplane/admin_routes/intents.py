"""What operators want of workers and classes: drain, undrain, pause, resume. Each is idempotent."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from controlplane.admin_routes.route import NAME, Answer, Call, Handle, RefusedError, Route, json_answer
from controlplane.fleet_status import FleetReader
from kvstore.intents import Intent, IntentStore, Kind
from router.admin_tokens import AdminRole
from router.intent_follower import IntentFollower
from router.slo_settings import SloSettings
from workers.ranks import engine_of

_NAME = re.compile(NAME)
_FORGET_AFTER_S = 7 * 86_400.0
_Reason = Annotated[str, msgspec.Meta(max_length=256)]


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a drain; none is needed."""

    reason: _Reason = ""


class WhyPaused(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a pause; none is needed."""

    reason: _Reason = ""
    retry_after_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0


class Wish(msgspec.Struct, frozen=True):
    """What is in force now. None: nobody wants it any more."""

    name: str
    intent: Intent | None


@dataclass(frozen=True, slots=True)
class IntentRoutes:
    """Needs the store to write, the follower so that what was written is known here at once."""

    store: IntentStore
    follower: IntentFollower
    reader: FleetReader
    slo: SloSettings

    def routes(self) -> Sequence[Route]:
        """POST /workers/{id}/drain and undrain, /classes/{name}/pause and resume."""
        worker = {400: "a_rank", 404: "unknown_worker"}
        name = {404: "unknown_class", 409: "no_classes"}
        return (
            _change(
                "/workers/{id}/drain", self._drain, "Give a worker nothing new; it finishes what it has.", worker, Why
            ),
            _change("/workers/{id}/undrain", self._undrain, "Give a drained worker requests again.", worker),
            _change("/classes/{name}/pause", self._pause, "Turn new requests of a class away.", name, WhyPaused),
            _change("/classes/{name}/resume", self._resume, "Take requests of a paused class again.", name),
        )

    async def _drain(self, call: Call) -> Answer:
        worker_id, why = _engine(call.path["id"]), call.read(Why)
        present = {worker.id for worker in (await self.reader.read(self.follower.known)).workers}
        if worker_id not in present:
            raise _unknown_worker(worker_id)
        await self._forget_absent(present)
        intent = await self.store.put(Kind.DRAIN, worker_id, Intent(call.who.name, time.time(), why.reason))
        return await self._answer(worker_id, intent)

    async def _undrain(self, call: Call) -> Answer:
        worker_id = _engine(call.path["id"])
        if not await self.store.remove(Kind.DRAIN, worker_id):
            present = {worker.id for worker in (await self.reader.read(self.follower.known)).workers}
            if worker_id not in present:
                raise _unknown_worker(worker_id)
        return await self._answer(worker_id, None)

    async def _pause(self, call: Call) -> Answer:
        name, why = self._class(call.path["name"]), call.read(WhyPaused)
        wish = Intent(call.who.name, time.time(), why.reason, why.retry_after_s)
        return await self._answer(name, await self.store.put(Kind.PAUSED, name, wish))

    async def _resume(self, call: Call) -> Answer:
        name = call.path["name"]
        if not await self.store.remove(Kind.PAUSED, name):  # a class that was configured once may be paused still
            self._class(name)
        return await self._answer(name, None)

    def _class(self, name: str) -> str:
        if not self.slo.enabled:
            raise RefusedError(409, "no_classes", "slo.enabled is false: requests have no class that could be paused")
        if name not in self.slo.classes:
            allowed = ", ".join(self.slo.classes)
            raise RefusedError(
                404, "unknown_class", f"there is no class {name[:64]!r}; there are {allowed} (slo.classes)"
            )
        return name

    async def _answer(self, name: str, intent: Intent | None) -> Answer:
        await self.follower.look()
        return json_answer(Wish(name, intent))

    async def _forget_absent(self, present: set[str]) -> None:
        """Workers on Ray have new ids each time: what was wanted of those that are long gone is dropped."""
        for worker_id, intent in self.follower.known.drained.items():
            if worker_id not in present and intent.at_s < time.time() - _FORGET_AFTER_S:
                await self.store.remove(Kind.DRAIN, worker_id)


def _change(path: str, handle: Handle, summary: str, errors: Mapping[int, str], takes: type | None = None) -> Route:
    return Route("POST", path, handle, summary, AdminRole.OPERATOR, takes=takes, gives=Wish, errors=errors)


def _engine(worker_id: str) -> str:
    engine = engine_of(worker_id)  # type: ignore[arg-type]
    if engine != worker_id:
        raise RefusedError(400, "a_rank", f"{worker_id[:64]!r} is a rank: the engine {engine[:64]!r} drains as a whole")
    if not _NAME.fullmatch(worker_id):
        raise _unknown_worker(worker_id)
    return worker_id


def _unknown_worker(worker_id: str) -> RefusedError:
    return RefusedError(404, "unknown_worker", f"no worker {worker_id[:64]!r} is in the fleet; GET /fleet names them")
