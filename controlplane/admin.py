"""The admin API: one table of routes, one way in. Serve's ingress, or a process of its own, hands requests here.

Closed by default: without `admin.tokens_file` it reads, on loopback, and changes nothing (`admin_routes/access.py`).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from controlplane.admin_routes import classes, decisions, experts, fleet, pools, session
from controlplane.admin_routes.access import Access
from controlplane.admin_routes.audit import audit
from controlplane.admin_routes.dashboard import dashboard_routes
from controlplane.admin_routes.intents import IntentRoutes
from controlplane.admin_routes.keys import KeyRoutes
from controlplane.admin_routes.openapi import describe
from controlplane.admin_routes.pools import Pools
from controlplane.admin_routes.route import Answer, Call, RefusedError, Route, RouteTable, json_answer
from controlplane.admin_routes.tenants import TenantRoutes, UsageReader
from controlplane.config import Config
from controlplane.decision_list import DecisionList
from controlplane.expert_metrics import ExpertMetrics
from controlplane.expert_placer import ExpertPlacer
from controlplane.fleet_status import FleetReader
from controlplane.watch import Watch
from kvstore.board import Board
from kvstore.connection import RedisLink
from kvstore.errors import RedisUnavailableError
from kvstore.intents import IntentStore
from kvstore.key_store import KeyStore
from kvstore.leases import LeaseStore
from kvstore.types import WorkerId
from kvstore.usage_store import UsageStore
from router.admin_tokens import AdminTokens
from router.intent_follower import IntentFollower
from workers.engine_probe import engine_session
from workers.expert_client import ExpertClient
from workers.lease_follower import LeaseFollower
from workers.membership import Joined, Left
from workers.types import WorkerState

__all__ = ["AdminApi", "Answer"]

_log = logging.getLogger(__name__)
_ACCESS = (401, 403)
_CLIENT_GONE = 499  # nginx's word for it
_MAX_BODY_BYTES = 8 << 20  # an expert placement of the largest models is under one


class AdminApi:
    """One control plane's. `start` before the first request.

    `pools`: what can change the sizes of the pools, if anything here can. Raises AdminTokensError for a file of tokens
    that cannot be used.
    """

    def __init__(self, config: Config, redis_url: str, pools: Pools | None = None) -> None:
        namespace = config.redis.namespace
        self._config = config
        self._access = Access(config.admin, AdminTokens(config.admin.tokens_file), time.monotonic)
        self._leases = LeaseStore(redis_url, namespace, config.redis)
        self._board = Board(RedisLink(redis_url, config.redis), namespace)
        self._intents = IntentStore(redis_url, namespace, config.redis)
        self._keys = KeyStore(redis_url, namespace, config.redis)
        self._usage = UsageStore(RedisLink(redis_url, config.redis), namespace)
        self._wishes = IntentFollower(self._intents, config.redis.heartbeat_s, lambda _: None)
        self._fleet: dict[WorkerId, WorkerState] = {}
        self._follower = LeaseFollower(self._leases, config.redis, self._on_change)
        self._session = engine_session(config.engine)
        self._placer = ExpertPlacer(
            ExpertClient(self._session), config.experts, self._fleet.values, self._board.classes.read_all
        )
        self._reader = FleetReader(self._leases, self._board, config.redis.lease_s)
        self._decisions = DecisionList(self._board)
        self._watch = Watch(self._reader, self._decisions, lambda: self._wishes.known)
        self._table = RouteTable(self._routes(pools))
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow the fleet and the operators, and look after experts unless that is switched off."""
        running = [self._wishes.run(), self._watch.run()]
        if self._config.experts.mode != "off":
            running += [self._follower.run(), self._placer.run()]
        self._tasks = [asyncio.create_task(one) for one in running]

    async def close(self) -> None:
        """End everything, open streams too."""
        for one in (self._wishes, self._watch, self._follower, self._placer):
            one.stop()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        for store in (self._leases, self._board, self._intents, self._keys, self._usage):
            await store.close()

    async def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The only way in; raises nothing but cancellation. `target`: path and query. `headers`: names in any case."""
        path, _, query = target.partition("?")
        lower = {name.lower(): value for name, value in headers.items()}
        try:
            route, parameters = self._table.find(method, path)
        except RefusedError as refused:
            return refused.answer()
        who: str | None = None
        try:
            operator = self._access.check(route, lower)
            who = operator.name if route.role is not None else None
            answer = await _carried_out(route, Call(operator, parameters, _query(query), lower, body))
        except RefusedError as refused:
            if route.is_change or refused.status in _ACCESS:
                audit(refused.who or who, method, path, refused.status, refused.code)
            return refused.answer()
        except asyncio.CancelledError:
            if route.is_change:  # the client went away; the change may be made all the same
                audit(who, method, path, _CLIENT_GONE, "cancelled")
            raise
        if route.is_change:
            audit(answer.who or who, method, path, answer.status, about=answer.about)
        return answer

    def _routes(self, resizable: Pools | None) -> Sequence[Route]:
        """The whole API. A new subject is a module of `admin_routes` and a line here."""
        config = self._config
        metrics, refused = ExpertMetrics(self._placer.status), self._watch.refused_tenants

        async def alive(_: Call) -> Answer:
            return json_answer({"status": "ok"})

        async def exposition(_: Call) -> Answer:
            return Answer(200, metrics.exposition(), "text/plain; version=0.0.4")

        async def openapi(_: Call) -> Answer:
            return json_answer(describe(self._table.routes))

        return (
            Route("GET", "/healthz", alive, "The process runs.", None),
            Route("GET", "/metrics", exposition, "Prometheus metrics.", None, media_type="text/plain"),
            Route("GET", "/openapi.json", openapi, "This document.", None),
            *dashboard_routes(),
            *session.routes(self._access),
            *fleet.fleet_routes(self._reader, lambda: self._wishes.known),
            *fleet.slo_routes(self._watch),
            *classes.routes(config.slo),
            *decisions.decision_routes(self._decisions, config.board.decision_ttl_s),
            *decisions.event_routes(self._watch),
            *IntentRoutes(self._intents, self._wishes, self._reader, config.slo).routes(),
            *KeyRoutes(self._keys, config.identity, config.slo).routes(),
            *TenantRoutes(self._keys, config.identity, config.slo, UsageReader(self._usage), refused).routes(),
            *pools.routes(config.pools, resizable),
            *experts.routes(self._placer, config.experts.mode),
        )

    def _on_change(self, change: Joined | Left) -> None:
        match change:
            case Joined(state):
                self._fleet[state.spec.id] = state
            case Left(worker_id, _):
                self._fleet.pop(worker_id, None)


async def _carried_out(route: Route, call: Call) -> Answer:
    """Raises RefusedError and nothing else."""
    if len(call.body) > _MAX_BODY_BYTES:
        raise RefusedError(413, "body_too_large", f"the body is larger than {_MAX_BODY_BYTES} bytes")
    try:
        return await route.handle(call)
    except RefusedError:
        raise
    except RedisUnavailableError as error:
        raise RefusedError(503, "redis_unavailable", str(error)) from error
    except Exception as error:
        _log.exception("%s %s", route.method, route.path)
        raise RefusedError(500, "internal", "internal error; the control plane's log has it") from error


def _query(text: str) -> dict[str, str]:
    """Raises RefusedError 400."""
    try:
        return dict(parse_qsl(text, max_num_fields=32))
    except ValueError:
        raise RefusedError(400, "bad_query", "the query cannot be read") from None
