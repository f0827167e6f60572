"""HTTP listeners of processes that Ray does not run: the admin API, and health for whoever supervises a process."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from controlplane.admin import Answer
from router.http.message import HttpRequest
from router.http.reply import Reply
from router.http.server import HttpServer
from router.http.settings import HttpSettings
from router.http_listener import bind
from router.settings import ListenSettings
from router.tls_settings import TlsSettings

HEALTH_PATHS = frozenset(("/healthz", "/readyz", "/metrics"))
_MAX_BODY_BYTES = 64 << 20  # a placement of some ten thousand experts
_DRAIN_S = 2.0

# answer(method, target, headers, body)
Answering = Callable[[str, str, Mapping[str, str], bytes], Awaitable[Answer]]


@asynccontextmanager
async def http_port(
    answer: Answering, listen: ListenSettings, setting: str, tls: TlsSettings | None = None
) -> AsyncIterator[int]:
    """Serve `answer` on `listen`; yields the port. Raises PortTakenError, which names `setting`, or TlsError."""

    async def handle(http: HttpRequest, reply: Reply) -> None:
        target = f"{http.path}?{http.query}" if http.query else http.path
        answered = await answer(http.method, target, http.headers, http.body)
        headers = {"content-type": answered.media_type, **answered.headers}
        if answered.stream is None:
            reply.send(answered.status, headers, answered.body)
            return
        reply.start(answered.status, headers)
        async for piece in answered.stream:
            reply.write(piece)
        reply.finish()

    settings = HttpSettings(host=listen.host, port=listen.port, tls=tls)
    server = HttpServer(handle, settings, max_body_bytes=_MAX_BODY_BYTES, drain_s=_DRAIN_S, never_shed=HEALTH_PATHS)
    sock = bind(listen.host, listen.port, f"{setting}.port")
    port: int = sock.getsockname()[1]
    await server.start(sock)
    try:
        yield port
    finally:
        await server.stop()


def health(
    state: Callable[[], tuple[bool, Mapping[str, Any]]], metrics: Callable[[], Awaitable[Answer]] | None = None
) -> Answering:
    """Answers /healthz: the process runs; /readyz: what `state` says, 200 or 503; /metrics, where there are any."""

    async def answer(method: str, target: str, _: Mapping[str, str], __: bytes) -> Answer:
        path = target.partition("?")[0]
        if method not in ("GET", "HEAD"):
            return Answer(
                405, _said({"error": {"message": f"{method} is not for health", "code": "method_not_allowed"}})
            )
        if path == "/healthz":
            return Answer(200, _said({"status": "ok"}))
        if path == "/readyz":
            is_ready, facts = state()
            return Answer(200 if is_ready else 503, _said({"status": "ready" if is_ready else "not ready", **facts}))
        if path == "/metrics" and metrics is not None:
            return await metrics()
        return Answer(404, _said({"error": {"message": f"there is no {path[:256]} here", "code": "unknown_route"}}))

    return answer


def _said(value: object) -> bytes:
    return msgspec.json.encode(value)
