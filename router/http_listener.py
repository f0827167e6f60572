"""The HTTP front door of one router process: OpenAI routes, health, metrics.

`/healthz`: the process runs. `/readyz`: a request would be served, and where its prefix is: a router that is put behind
a balancer too early scatters everybody's prefixes. Requests that come before are served all the same.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from router.admin_tokens import AdminTokens
from router.errors import ApiError, bad_request, method_not_allowed, unknown_route
from router.http.message import HttpRequest
from router.http.reply import Reply
from router.http.server import HttpServer
from router.identity.caller import ANYBODY, Caller
from router.intake import FrontDesk
from router.interfaces import Tracing
from router.model_cards import model_cards
from router.openapi.describe import describe
from router.service import RouterService
from router.settings import RouterSettings
from workers.engine_metrics import FORWARDED_ROUTES

_log = logging.getLogger(__name__)
_NEVER_SHED = frozenset(("/healthz", "/health", "/readyz", "/metrics"))
_READING = ("GET", "HEAD")
_JSON = {"content-type": "application/json"}
_DECISIONS = "/headrace/decisions/"
_MAX_QUOTED_CHARS = 256  # of a path or a name, in an error message


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

    def __init__(
        self,
        service: RouterService,
        desk: FrontDesk,
        settings: RouterSettings,
        tracing: Tracing,
        admins: AdminTokens | None = None,
    ) -> None:
        """`admins` may read decisions and closed metrics. Raises TlsError for certificates that cannot be used."""
        self._service = service
        self._desk = desk
        self._settings = settings
        self._tracing = tracing
        self._admins = admins or AdminTokens(None)
        self._server = HttpServer(
            self._handle,
            settings.http,
            max_body_bytes=settings.max_body_bytes,
            drain_s=settings.drain_s,
            retry_after_s=settings.retry_after_s,
            never_shed=_NEVER_SHED,
        )
        service.metrics.watch_listener(self._server)
        self._routes: dict[str, _Route] = {
            "/healthz": self._healthz,
            "/health": self._healthz,  # vLLM's name for it: its clients ask before they begin
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
            "/v1/models": self._list_models,
        }
        self._prefixes: dict[str, _Route] = {
            _DECISIONS: self._decision,
            "/v1/models/": self._get_model,
        }

    async def start(self, sock: socket.socket) -> None:
        """Accept connections from now on."""
        await self._server.start(sock)

    async def stop(self) -> None:
        """Stop accepting, let requests finish for `drain_s`, then cut them."""
        await self._server.stop()

    async def reload_certificates(self) -> bool:
        """Read the files of `router.http.tls` again, now. False: nothing that can be used."""
        return await self._server.reload_certificates()

    async def _handle(self, http: HttpRequest, reply: Reply) -> None:
        if http.method == "POST" and http.path in FORWARDED_ROUTES:
            try:
                await self._infer(http, reply)
            except ApiError as error:
                reply.send(*_error_answer(error))
            return
        reply.send(*self._answer_or_error(http))

    def _answer_or_error(self, http: HttpRequest) -> "_Answer":
        try:
            return self._answer(http)
        except ApiError as error:
            return _error_answer(error)

    def _answer(self, http: HttpRequest) -> "_Answer":
        """Everything that no engine is asked for. Raises ApiError 404 or 405."""
        if http.path in FORWARDED_ROUTES:
            raise method_not_allowed(http.method, http.path, ("POST",))
        route = self._routes.get(http.path)
        argument = ""
        if route is None:
            for prefix, prefixed in self._prefixes.items():
                if http.path.startswith(prefix) and len(http.path) > len(prefix):
                    route, argument = prefixed, unquote(http.path[len(prefix) :])
        if route is None:
            raise unknown_route(http.path[:_MAX_QUOTED_CHARS])
        if http.method not in _READING:
            raise method_not_allowed(http.method, http.path[:_MAX_QUOTED_CHARS], _READING)
        if http.path.startswith(_DECISIONS):
            if not (self._settings.explain.public or self._is_operator(http)):
                raise _decisions_closed()
            return route(argument, ANYBODY)  # an operator's token is no API key
        if http.path == "/metrics":
            if not (self._settings.public_metrics or self._is_operator(http)):
                raise _metrics_closed()
            argument = http.headers.get("accept", "")
        caller = ANYBODY if http.path in _NEVER_SHED else self._desk.door.ask(http.headers)
        return route(argument, caller)

    async def _infer(self, http: HttpRequest, reply: Reply) -> None:
        """Serve a request that goes to an engine. Raises ApiError for one that is not understood."""
        route = http.path
        with self._tracing.request(f"POST {route}", http.headers) as trace:
            with trace.step("receive") as span:
                facts = self._service.facts(route)
                intake = await self._desk.take_in(route, http.body, http.headers, facts, trace)
                if span.is_recorded:
                    span.set(request_id=intake.public_id, model=intake.request.model, stream=intake.call.stream)
            http.body = b""  # it is the call's from here on, which lets go of it when the answer begins
            reply.extra_headers = {"x-request-id": intake.public_id}
            try:
                await self._service.serve(intake, reply, trace)
            except ApiError as error:
                if not reply.started:
                    explained = self._service.history.headers(intake.request.id) if intake.wants_explanation else {}
                    reply.send(*_error_answer(error, explained))
                    return
                # Part of the answer is out. Closing without the final chunk is the only truthful end of it.
                _log.warning("request %s: %s", intake.public_id, error, extra={"request_id": intake.public_id})
                reply.cut()
            reply.finish()

    def _healthz(self, _: str, __: Caller) -> "_Answer":
        return _json_answer({"status": "ok"})

    def _readyz(self, _: str, __: Caller) -> "_Answer":
        models = self._service.routable_models()
        if models and self._service.is_warm():
            return _json_answer({"status": "ready", "models": models})
        state = {
            "status": "not ready",
            "workers": {worker.spec.id: worker.phase for worker in self._service.fleet()},
            "warm": self._service.is_warm(),
        }
        retry_after = {"Retry-After": str(max(1, round(self._settings.retry_after_s)))}
        return _json_answer(state, 503, retry_after)

    def _metrics(self, accept: str, _: Caller) -> "_Answer":
        content_type, text = self._service.metrics.exposition_for(accept)
        return _Answer(200, {"content-type": content_type}, text)

    def _is_operator(self, http: HttpRequest) -> bool:
        """Decisions and metrics name tenants, workers and loads: not every client's business."""
        return self._admins.find_bearer(http.headers.get("authorization")) is not None

    def _decision(self, request_id: str, _: Caller) -> "_Answer":
        """Why a request ran where it did. Neither prompts nor answers are in it."""
        record = self._service.history.get(request_id)
        if record is None:
            message = f"this router has no record of the request {request_id[:64]!r}: unknown here, or too long ago"
            raise bad_request(message, code="decision_not_found", status=404)
        return _Answer(200, _JSON, record)

    def _list_models(self, _: str, caller: Caller) -> "_Answer":
        return _json_answer({"object": "list", "data": list(self._models(caller).values())})

    def _get_model(self, name: str, caller: Caller) -> "_Answer":
        model = self._models(caller).get(name)
        if model is None:
            message = f"the model {name[:_MAX_QUOTED_CHARS]!r} does not exist here"
            raise bad_request(message, code="model_not_found", status=404)
        return _json_answer(model)

    def _models(self, caller: Caller) -> dict[str, dict[str, object]]:
        return model_cards(self._service.fleet(), self._service.routable_models(), caller)

    def _openapi(self, _: str, caller: Caller) -> "_Answer":
        """What is served, as OpenAPI 3.1."""
        fields = {route: self._service.facts(route).fields for route in FORWARDED_ROUTES}
        return _json_answer(describe(self._desk.settings, self._desk.slo, list(self._models(caller)), fields))


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


_Route = Callable[[str, Caller], _Answer]


def _decisions_closed() -> ApiError:
    message = (
        "decisions are for operators: with a token of admin.tokens_file, or through `headrace explain`, which asks "
        "the admin API; router.explain.public opens this to everybody"
    )
    return bad_request(message, code="decisions_closed", status=403)


def _metrics_closed() -> ApiError:
    message = "metrics are for operators, with a token of admin.tokens_file: router.public_metrics is false"
    return bad_request(message, code="metrics_closed", status=403)


def _error_answer(error: ApiError, explained: Mapping[str, str] | None = None) -> _Answer:
    return _Answer(error.status, {**_JSON, **error.headers(), **(explained or {})}, error.body())


def _json_answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> _Answer:
    return _Answer(status, {**_JSON, **(headers or {})}, msgspec.json.encode(value))
