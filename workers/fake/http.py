"""The fake engine's HTTP: vLLM 0.32's routes, the scripted faults, and two routes of its own under /fake."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from workers.fake.core import FakeCore, GenerationFailedError
from workers.fake.events import BUFFER_STEPS, TOPIC
from workers.fake.handoff import PULL_ROUTE
from workers.fake.metrics import render_metrics
from workers.fake.model import detokenize
from workers.fake.openapi import VERSION, kv_event_sources, model_list, openapi
from workers.fake.plan import ENGINE_ACTIONS, GENERATION_ROUTES, Action, Fault, PlanError, load_plan
from workers.fake.reply import DONE_EVENT, ReplyWriter, Tally, sse_event
from workers.fake.request import (
    GenerationRequest,
    RefusedError,
    check_model,
    decode_object,
    parse_detokenize,
    parse_generation,
    parse_tokenize,
)
from workers.fake.settings import FakeSettings

PLAN_ROUTE = "/fake/plan"
_CHAT_ROUTE = "/v1/chat/completions"
_NEVER_WEDGED = ("/health", PLAN_ROUTE)
_BREAKS_OFF = (Action.DISCONNECT_AFTER_CHUNKS, Action.HANG_AFTER_CHUNKS)


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as it arrived."""

    method: str
    route: str
    headers: Mapping[str, str]
    body: bytes


class FakeHttp:
    """Answers requests to one engine. `seen` keeps the latest ones, for tests."""

    def __init__(self, settings: FakeSettings, core: FakeCore) -> None:
        self._settings = settings
        self._models = (settings.model, *settings.adapters)
        self._core = core
        self._created = int(time.time())
        self.seen: deque[SeenRequest] = deque(maxlen=settings.remembered_requests)
        self.requests_seen = 0
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._gets: dict[str, Callable[[], web.Response]] = {
            "/health": web.Response,
            "/version": lambda: web.json_response({"version": VERSION}),
            "/v1/models": lambda: web.json_response(model_list(settings, self._created)),
            "/metrics": self._metrics,
            "/openapi.json": lambda: web.json_response(openapi()),
            "/kv_event_sources": lambda: web.json_response(
                kv_event_sources(settings, topic=TOPIC, buffer_steps=BUFFER_STEPS)
            ),
        }
        self._posts: dict[str, Callable[[dict[str, Any]], web.Response]] = {
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
            PULL_ROUTE: self._give_up_lease,
            PLAN_ROUTE: self._change_plan,
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, or fail as scripted."""
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._handle(request)
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until no request is being answered, at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.requests_seen += 1
        self.seen.append(SeenRequest(request.method, request.path, request.headers.copy(), raw))
        if self._core.is_wedged and request.path not in _NEVER_WEDGED:
            await _hang()
        fault = self._core.script.on_request(request.path)
        try:
            if fault is not None:
                await self._fail_at_once(request, fault)
            if request.method == "POST" and request.path in GENERATION_ROUTES:
                response = await self._generate(request, raw, fault)
            else:
                response = self._answer(request, raw)
        except RefusedError as refused:
            response = web.json_response(refused.body, status=refused.status)
        return response if fault is None else await _break_off(request, fault, response)

    async def _fail_at_once(self, request: web.Request, fault: Fault) -> None:
        """Do what a fault does before anything is answered; return if it comes later."""
        if fault.action is Action.STATUS:
            raise RefusedError(fault.status, "InternalServerError", f"scripted failure with status {fault.status}")
        if fault.action in ENGINE_ACTIONS:
            self._core.strike(fault)
            await _hang()
        if fault.action is Action.HANG_BEFORE_HEADERS:
            await _hang()
        if fault.action is Action.DISCONNECT_BEFORE_HEADERS:
            await _disconnect(request)

    def _answer(self, request: web.Request, raw: bytes) -> web.Response:
        """The answer of a route that makes no tokens."""
        get, post = self._gets.get(request.path), self._posts.get(request.path)
        if get is not None and request.method == "GET":
            return get()
        if post is not None and request.method == "POST":
            return post(decode_object(raw, request.headers.get("Content-Type", "")))
        if get is not None or post is not None or request.path in GENERATION_ROUTES:
            return web.json_response({"detail": "Method Not Allowed"}, status=405)  # FastAPI's own form, not OpenAI's
        return web.json_response({"detail": "Not Found"}, status=404)

    def _metrics(self) -> web.Response:
        text = render_metrics(self._settings, self._core.counters, self._core.gauges)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    def _tokenize(self, body: dict[str, Any]) -> web.Response:
        tokens = parse_tokenize(body)
        check_model(body, self._models)
        strings = [detokenize((token,)) for token in tokens] if body.get("return_token_strs") else None
        counts = {"count": len(tokens), "max_model_len": self._settings.max_model_len_tokens}
        return web.json_response({**counts, "tokens": tokens, "token_strs": strings})

    def _detokenize(self, body: dict[str, Any]) -> web.Response:
        check_model(body, self._models)
        return web.json_response({"prompt": detokenize(parse_detokenize(body))})

    def _give_up_lease(self, body: dict[str, Any]) -> web.Response:
        spent = self._core.leases.spend(str(body.get("remote_request_id")), str(body.get("remote_engine_id")))
        if spent is None:
            raise RefusedError(404, "NotFoundError", "no such lease")
        return web.json_response({"token_ids": spent})

    def _change_plan(self, body: dict[str, Any]) -> web.Response:
        try:
            self._core.set_plan(load_plan(msgspec.json.encode(body)))
        except PlanError as error:
            raise RefusedError(400, "BadRequestError", str(error)) from error
        return web.Response()

    async def _generate(self, request: web.Request, raw: bytes, fault: Fault | None) -> web.StreamResponse:
        chat = request.path == _CHAT_ROUTE
        parsed = parse_generation(
            decode_object(raw, request.headers.get("Content-Type", "")),
            chat=chat,
            models=self._models,
            max_model_len=self._settings.max_model_len_tokens,
            session_id=request.headers.get("X-Session-ID"),
        )
        random_id = uuid.uuid4().hex
        request_id = f"{'chatcmpl' if chat else 'cmpl'}-{request.headers.get('X-Request-Id', random_id)}"
        model = parsed.lora_name or self._settings.model
        writer = ReplyWriter(parsed, request_id=request_id, model=model, created=int(time.time()))
        # Inside the engine ids are unique whatever the client sends.
        engine_request_id = f"{request_id}-{random_id[:8]}"
        if parsed.stream:
            return await self._stream(request, self._events(parsed, writer, engine_request_id, fault), fault)
        if fault is not None and fault.action is Action.SSE_ERROR_FIRST:
            raise _generation_error("scripted failure")
        tally = Tally()
        try:
            outputs = [output async for output in self._core.generate(parsed, engine_request_id, tally)]
        except GenerationFailedError as error:
            raise _generation_error(str(error)) from error
        return web.Response(body=writer.whole(outputs, tally), content_type="application/json")

    async def _events(
        self, parsed: GenerationRequest, writer: ReplyWriter, request_id: str, fault: Fault | None
    ) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        tally = Tally()
        opened = False
        if fault is not None and fault.action is Action.SSE_ERROR_FIRST:
            yield sse_event(_generation_error("scripted failure").body)
            yield DONE_EVENT
            return
        try:
            async with aclosing(self._core.generate(parsed, request_id, tally)) as outputs:
                async for output in outputs:
                    if not opened:
                        opened = True
                        for event in writer.opening():
                            yield event
                    yield writer.event(output)
        except GenerationFailedError as error:
            # The status is already on its way, so the error becomes an event.
            yield sse_event(_generation_error(str(error)).body)
            yield DONE_EVENT
            return
        for event in writer.closing(tally):
            yield event

    async def _stream(
        self, request: web.Request, events: AsyncGenerator[bytes, None], fault: Fault | None
    ) -> web.StreamResponse:
        """Send the events. Like vLLM the headers go out at once, before the first token is there."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        num_sent = 0
        with suppress(ConnectionError):  # the client left between two events
            await response.prepare(request)
            async with aclosing(events):
                async for event in events:
                    if fault is not None and fault.action in _BREAKS_OFF and num_sent == fault.chunks:
                        await _hang_or_disconnect(request, fault)
                    await response.write(event)
                    num_sent += 1
            await response.write_eof()
        return response


def _generation_error(message: str) -> RefusedError:
    return RefusedError(500, "InternalServerError", message)


async def _break_off(request: web.Request, fault: Fault, response: web.StreamResponse) -> web.StreamResponse:
    """Send half of a whole answer and fail, if that is what the fault does; a stream has seen to it by itself."""
    body = response.body if isinstance(response, web.Response) else None
    if fault.action not in _BREAKS_OFF or not isinstance(body, bytes):
        return response
    partial = web.StreamResponse(headers={"Content-Type": response.content_type, "Content-Length": str(len(body))})
    await partial.prepare(request)
    await partial.write(body[: len(body) // 2])
    await _hang_or_disconnect(request, fault)
    return partial


async def _hang_or_disconnect(request: web.Request, fault: Fault) -> None:
    await (_hang() if fault.action is Action.HANG_AFTER_CHUNKS else _disconnect(request))


async def _disconnect(request: web.Request) -> None:
    """Close the connection once what was written is sent; ends by cancellation."""
    if request.transport is not None:
        request.transport.close()
    await _hang()


async def _hang() -> None:
    """Never return; ends by cancellation, when the client goes away or the server stops."""
    await asyncio.get_running_loop().create_future()
