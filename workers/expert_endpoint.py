"""In the engine's API server: the routes that report expert loads and change the placement of experts.

An ASGI middleware, because vLLM takes one by its name alone (--middleware); its routes are not in /openapi.json, so
routers never pass clients on to them. Like the engine's other routes they have no authentication: `engine.host`
decides who reaches them, by default only this machine.

Invariants
 1. A placement is checked here before any rank hears of it, and by every rank before it changes anything.
 2. No forward pass runs while weights move: the engine is paused, requests wait and then go on.
 3. One placement at a time; reports wait for it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import msgspec

from workers.expert_placement import (
    EXPERTS_PATH,
    PLACEMENT_PATH,
    ExpertReport,
    PlacementReply,
    RankReport,
    SlotPlan,
    SlotPlanError,
    check_slot_plan,
    merge_reports,
)

_log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 64 << 20
_REPORT_TIMEOUT_S = 60.0
_ALIVE_CHECK_S = 0.5

_T = TypeVar("_T")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _AnswerError(Exception):
    """Becomes an answer with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ExpertEndpoint:
    """The middleware. vLLM makes one for its app."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._epoch = time.time_ns() // 1_000_000
        self._turn = asyncio.Lock()
        self._placing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer our routes, pass on the others."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path not in (EXPERTS_PATH, PLACEMENT_PATH):
            await self._app(scope, receive, send)
            return
        try:
            status, answer = 200, await self._answer(scope, path, receive)
        except _AnswerError as error:
            status, answer = error.status, {"error": str(error)}
        except Exception as error:  # the engine is dead or dying; whoever asks has to be told why
            _log.exception("the question %s failed", path)
            status, answer = 503, {"error": f"the engine does not answer: {error!r}"}
        body = msgspec.json.encode(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, path: str, receive: Receive) -> Any:
        expected = "GET" if path == EXPERTS_PATH else "POST"
        if scope["method"] != expected:
            raise _AnswerError(405, f"{path} knows {expected}, not {scope['method']}")
        engine = getattr(scope["app"].state, "engine_client", None)
        if engine is None:
            raise _AnswerError(503, "the engine is starting")
        if expected == "GET":
            async with self._turn:
                return await _while_alive(engine, self._report(engine))
        plan = decode_plan(await _body(receive))
        if self._placing:
            raise _AnswerError(409, "another placement is being applied")
        self._placing = True
        try:
            async with self._turn:
                return await _while_alive(engine, self._place(engine, plan))
        finally:
            self._placing = False

    async def _report(self, engine: Any) -> ExpertReport:
        try:
            async with asyncio.timeout(_REPORT_TIMEOUT_S):
                return merge_reports(self._epoch, await _ask_ranks(engine, "headrace_experts"))
        except TimeoutError:
            raise _AnswerError(504, f"the engine's ranks did not answer within {_REPORT_TIMEOUT_S:g} s") from None

    async def _place(self, engine: Any, plan: SlotPlan) -> PlacementReply:
        now = await self._report(engine)
        try:
            check_slot_plan(
                plan, layers=len(now.slots), experts=now.experts, ranks=now.ranks, slots_per_rank=now.slots_per_rank
            )
        except SlotPlanError as error:
            raise _AnswerError(400, str(error)) from None
        was_paused = await engine.is_paused()
        if not was_paused:
            # Ranks of a data-parallel engine take questions at different moments; paused, they all stand still.
            await engine.pause_generation(mode="keep", clear_cache=False)
        try:
            # No timeout: what has begun must end, or the engine with it (the supervisor's probe sees to that).
            reports = await _ask_ranks(engine, "headrace_place_experts", plan.slots, plan.parts)
        finally:
            if not was_paused and not engine.errored:
                await engine.resume_generation()
        done = merge_reports(self._epoch, reports)
        return PlacementReply(epoch=done.epoch, placements=done.placements, slots=done.slots, parts=done.parts)


def decode_plan(body: bytes) -> SlotPlan:
    """The placement in a request; raises the answer with status 400."""
    try:
        return msgspec.json.decode(body, type=SlotPlan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _AnswerError(400, f"not a placement, {{slots: [layer][slot], parts: [layer][slot]}}: {error}") from None


async def _while_alive(engine: Any, question: Coroutine[Any, Any, _T]) -> _T:
    """Await it; raises the engine's error where the engine dies meanwhile: vLLM would never answer the question."""
    task = asyncio.create_task(question)
    try:
        while not (await asyncio.wait({task}, timeout=_ALIVE_CHECK_S))[0]:
            if engine.errored:
                raise engine.dead_error
        return task.result()
    finally:
        task.cancel()


async def _ask_ranks(engine: Any, method: str, *args: Any) -> list[RankReport]:
    """Call a method of every rank. collective_rpc itself answers for the first data-parallel engine only."""
    ask_all = engine.engine_core.call_utility_all_async
    replies = await ask_all("collective_rpc", method, None, args, None)
    return [msgspec.convert(rank, RankReport) for ranks in replies for rank in ranks]


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    total_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _AnswerError(400, "the request broke off")
        parts.append(message.get("body", b""))
        total_bytes += len(parts[-1])
        if total_bytes > _MAX_BODY_BYTES:
            raise _AnswerError(413, f"more than {_MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return b"".join(parts)
