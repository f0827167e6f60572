"""The HTTP front door of one router process: OpenAI routes, health, metrics.

`/healthz`: the process runs. `/readyz`: a request would be served, and where its prefix is: a router that is put behind
a balancer too early scatters everybody's prefixes. Requests that come before are served all the same.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from router.errors import ApiError, bad_request, internal, method_not_allowed, too_large, unknown_route
from router.intake import FrontDesk
from router.interfaces import Flow, Tracing
from router.model_cards import model_cards
from router.openapi import describe
from router.service import RouterService
from router.settings import RouterSettings
from workers.engine_metrics import FORWARDED_ROUTES

_log = logging.getLogger(__name__)
_MOST_WAITING_CHUNKS = 16
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PortTakenError(Exception):
    """A listening port is in use; says which setting chooses it."""


def bind(host: str, port: int, setting: str) -> socket.socket:
    """A socket that this node's router processes share; raises PortTakenError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise PortTakenError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with {setting}"
        ) from error
    return sock


class HttpListener:
    """Serves one bound socket."""

    def __init__(self, service: RouterService, desk: FrontDesk, settings: RouterSettings, tracing: Tracing) -> None:
        self._service = service
        self._desk = desk
        self._settings = settings
        self._tracing = tracing
        self._runner: web.AppRunner | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept connections from now on."""
        app = web.Application(middlewares=[_errors_as_json], client_max_size=self._settings.max_body_bytes)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/health", self._healthz)  # vLLM's name for it: its clients ask before they begin
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_get("/headrace/decisions/{id}", self._decision)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{model:.+}", self._get_model)
        for route in sorted(FORWARDED_ROUTES):
            app.router.add_post(route, self._infer)
        # handler_cancellation: a client that goes away cancels its request, all the way to the engine.
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=self._settings.drain_s,
        )
        await self._runner.setup()
        await web.SockSite(self._runner, sock, backlog=1024).start()

    async def stop(self) -> None:
        """Stop accepting, let requests finish for `drain_s`, then cut them."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _infer(self, http: web.Request) -> web.StreamResponse:
        route = http.path
        with self._tracing.request(f"POST {route}", http.headers) as trace:
            with trace.step("receive") as span:
                raw_body = await self._read_body(http)
                intake = await self._desk.take_in(route, raw_body, http.headers, self._service.facts(route))
                span.set(request_id=intake.public_id, model=intake.request.model, stream=intake.call.stream)
            sink = _HttpSink(http, intake.public_id)
            try:
                await self._service.serve(intake, sink, trace)
            except ApiError as error:
                if not sink.started:
                    explained = self._service.history.headers(intake.request.id) if intake.wants_explanation else {}
                    return _error_response(error, intake.public_id, explained)
                # Part of the answer is out. Closing without the final chunk is the only truthful end of it.
                _log.warning("request %s: %s", intake.public_id, error)
                sink.cut()
            except BaseException:
                sink.cut()
                raise
            return await sink.finish()

    async def _read_body(self, http: web.Request) -> bytes:
        if (http.content_length or 0) > self._settings.max_body_bytes:
            raise too_large(self._settings.max_body_bytes)
        try:
            return await http.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise too_large(self._settings.max_body_bytes) from error

    async def _healthz(self, _: web.Request) -> web.Response:
        return _json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        models = self._service.routable_models()
        if models and self._service.is_warm():
            return _json_response({"status": "ready", "models": models})
        state = {
            "status": "not ready",
            "workers": {worker.spec.id: worker.phase for worker in self._service.fleet()},
            "warm": self._service.is_warm(),
        }
        return _json_response(state, status=503, headers=self._retry_after())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._service.metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    async def _openapi(self, _: web.Request) -> web.Response:
        fields = {route: self._service.facts(route).fields for route in FORWARDED_ROUTES}
        return _json_response(describe(self._desk.settings, self._desk.slo, list(self._models()), fields))

    async def _decision(self, http: web.Request) -> web.Response:
        """Why a request ran where it did: `headrace explain` reads this. Neither prompts nor answers are in it."""
        request_id = http.match_info["id"]
        record = self._service.history.get(request_id)
        if record is None:
            message = f"this router has no record of the request {request_id[:64]!r}: unknown here, or too long ago"
            raise bad_request(message, code="decision_not_found", status=404)
        return web.Response(body=record, content_type="application/json")

    async def _list_models(self, _: web.Request) -> web.Response:
        return _json_response({"object": "list", "data": list(self._models().values())})

    async def _get_model(self, http: web.Request) -> web.Response:
        name = http.match_info["model"]
        model = self._models().get(name)
        if model is None:
            raise bad_request(f"the model {name!r} does not exist here", code="model_not_found", status=404)
        return _json_response(model)

    def _models(self) -> dict[str, dict[str, object]]:
        return model_cards(self._service.fleet(), self._service.routable_models())

    def _retry_after(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, round(self._settings.retry_after_s)))}


class _HttpSink:
    """The client's side of one answer. What is written waits in a queue that a task of its own sends."""

    def __init__(self, http: web.Request, public_id: str) -> None:
        self._http = http
        self._public_id = public_id
        self._response: web.StreamResponse | None = None
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._sender: asyncio.Task[None] | None = None
        self._flow: Flow | None = None
        self._is_paused = False

    @property
    def started(self) -> bool:
        """The client will get a status line, if it gets anything."""
        return self._response is not None

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""
        self._response = web.StreamResponse(status=status, headers={**headers, "x-request-id": self._public_id})
        self._sender = asyncio.create_task(self._send(self._response))

    def write(self, chunk: bytes) -> None:
        """Send bytes."""
        self._queue.put_nowait(chunk)
        if self._flow is not None and not self._is_paused and self._queue.qsize() > _MOST_WAITING_CHUNKS:
            self._is_paused = True
            self._flow.pause()

    def attach_flow(self, flow: Flow | None) -> None:
        """Whom to pause while the client's buffer is full."""
        self._flow, self._is_paused = flow, False

    async def finish(self) -> web.StreamResponse:
        """End the answer."""
        assert self._response is not None
        assert self._sender is not None
        self._queue.put_nowait(None)
        await asyncio.wait((self._sender,))
        return self._response

    def cut(self) -> None:
        """Break the connection in the middle of the answer."""
        if self._http.transport is not None:
            self._http.transport.abort()
        if self._sender is not None:
            self._sender.cancel()

    async def _send(self, response: web.StreamResponse) -> None:
        try:
            await response.prepare(self._http)
            while (chunk := await self._queue.get()) is not None:
                await response.write(chunk)
                if self._is_paused and self._flow is not None and self._queue.empty():
                    self._is_paused = False
                    self._flow.resume()
            if self._http.transport is not None:
                await response.write_eof()
        except ConnectionResetError:
            pass  # the handler's task is being cancelled for it


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _error_response(error)
    except web.HTTPNotFound:
        return _error_response(unknown_route(request.path))
    except web.HTTPMethodNotAllowed as error:
        return _error_response(method_not_allowed(request.method, request.path, error.allowed_methods))
    except (web.HTTPException, asyncio.CancelledError, ConnectionResetError):
        raise
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        return _error_response(internal())


def _error_response(
    error: ApiError, public_id: str | None = None, explained: Mapping[str, str] | None = None
) -> web.Response:
    headers = error.headers() | ({"x-request-id": public_id} if public_id else {}) | dict(explained or {})
    return web.Response(status=error.status, body=error.body(), content_type="application/json", headers=headers)


def _json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json", headers=headers
    )
