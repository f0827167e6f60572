"""The admin API: what the fleet is, and where its experts are. Serve's ingress hands requests here.

Its address is loopback by default: whoever reaches it may change engines.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from controlplane.config import Config
from controlplane.expert_metrics import ExpertMetrics
from controlplane.expert_placer import ExpertPlacer
from controlplane.fleet_status import read_fleet
from controlplane.placement.loads import ExpertLoadWindow, encode
from controlplane.placement.plan_file import decode_plan
from controlplane.placement.types import PlacementError
from kvstore.board import Board
from kvstore.connection import RedisLink
from kvstore.errors import RedisUnavailableError
from kvstore.leases import LeaseStore
from kvstore.types import WorkerId
from workers.errors import WorkerError
from workers.expert_client import ExpertClient, PlacementBusyError, PlacementRefusedError
from workers.lease_follower import LeaseFollower
from workers.membership import Joined, Left
from workers.types import WorkerState

ROUTES = (
    "GET /healthz, GET /status, GET /metrics, GET /experts, GET /experts/WORKER/loads, GET /experts/WORKER/class-loads"
    " and POST /experts/WORKER/placement"
)
_ENGINE = re.compile(r"/experts/([A-Za-z0-9._-]+)/(loads|class-loads|placement)")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one request."""

    status: int
    body: bytes
    media_type: str = "application/json"


class AdminApi:
    """One control plane's. `start` before the first request."""

    def __init__(self, config: Config, redis_url: str) -> None:
        self._config = config
        self._store = LeaseStore(redis_url, config.redis.namespace, config.redis)
        self._fleet: dict[WorkerId, WorkerState] = {}
        self._follower = LeaseFollower(self._store, config.redis, self._on_change)
        self._session = aiohttp.ClientSession()
        self._board = Board(RedisLink(redis_url, config.redis), config.redis.namespace)
        self._placer = ExpertPlacer(
            ExpertClient(self._session), config.experts, self._fleet.values, self._board.classes.read_all
        )
        self._metrics = ExpertMetrics(self._placer.status)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow the fleet, and look after its experts unless that is switched off."""
        if self._config.experts.mode != "off":
            self._tasks = [asyncio.create_task(self._follower.run()), asyncio.create_task(self._placer.run())]

    async def close(self) -> None:
        """End everything."""
        self._follower.stop()
        self._placer.stop()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        await self._board.close()
        await self._store.close()

    async def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Never raises."""
        match method, path:
            case "GET", "/healthz":
                return _json({"status": "ok"})
            case "GET", "/status":
                try:
                    return _json(await read_fleet(self._store))
                except RedisUnavailableError as error:
                    return _error(503, "redis_unavailable", str(error))
            case "GET", "/metrics":
                return Answer(200, self._metrics.exposition(), "text/plain; version=0.0.4")
            case "GET", "/experts":
                return _json({"mode": self._config.experts.mode, "engines": self._placer.status()})
        if found := _ENGINE.fullmatch(path):
            worker_id = WorkerId(found[1])
            match method, found[2]:
                case "POST", "placement":
                    return await self._place(worker_id, body)
                case "GET", "loads":
                    return self._loads(worker_id, self._placer.loads)
                case "GET", "class-loads":
                    return self._loads(worker_id, self._placer.class_loads)
        return _error(404, "unknown_route", f"there is no {method} {path} here; the admin API has {ROUTES}")

    def _loads(self, worker_id: WorkerId, of: Callable[[WorkerId], list[ExpertLoadWindow]]) -> Answer:
        try:
            return Answer(200, encode(of(worker_id)))
        except KeyError:
            return _unknown(worker_id)

    async def _place(self, worker_id: WorkerId, body: bytes) -> Answer:
        try:
            return _json(await self._placer.place(worker_id, decode_plan(body, "plan")))
        except KeyError:
            return _unknown(worker_id)
        except (PlacementError, PlacementRefusedError) as error:
            return _error(400, "bad_plan", str(error))
        except PlacementBusyError as error:
            return _error(409, "busy", str(error))
        except WorkerError as error:
            return _error(502, "worker_failed", str(error))

    def _on_change(self, change: Joined | Left) -> None:
        match change:
            case Joined(state):
                self._fleet[state.spec.id] = state
            case Left(worker_id, _):
                self._fleet.pop(worker_id, None)


def _unknown(worker_id: WorkerId) -> Answer:
    return _error(404, "unknown_worker", f"no expert-parallel worker {worker_id!r} is in the fleet")


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(value))


def _error(status: int, code: str, message: str) -> Answer:
    return _json({"error": {"message": message, "code": code}}, status)
