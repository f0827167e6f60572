"""What every gRPC port of a router process has: a shared listening socket, grpc.health.v1.Health, and reflection."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from router.grpc_tls import build_credentials
from router.http_listener import PortTakenError
from router.tls_settings import TlsSettings

_WATCH_PERIOD_S = 1.0
_Context = grpc.aio.ServicerContext[Any, Any]


def build_server(max_message_bytes: int) -> grpc.aio.Server:
    """A server whose port this node's router processes share."""
    options = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A long prefill sends nothing: clients that keep such a call alive with pings are not cut off for it.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    return grpc.aio.server(options=options)


class Health:
    """grpc.health.v1.Health, answered from the router as it is at that moment."""

    def __init__(self, names: Collection[str], is_serving: Callable[[], bool], always: Collection[str] = ()) -> None:
        self._names = ("", *names, *always)
        self._is_serving = is_serving
        self._always = always  # names that say only that the process runs
        self._stopping = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there too."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def stop(self) -> None:
        """Say so to watchers and let go of them; they would hold up a graceful stop."""
        self._stopping.set()

    async def Check(self, request: Any, context: _Context) -> Any:  # noqa: N802  as in the .proto
        """Whether requests would be served now."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return self._now(request.service)

    async def List(self, _: Any, __: _Context) -> Any:  # noqa: N802  as in the .proto
        """The services that `Check` knows."""
        return health_pb2.HealthListResponse(statuses={name: self._now(name) for name in self._names})

    async def Watch(self, request: Any, context: _Context) -> None:  # noqa: N802  as in the .proto
        """The same, now and at every change."""
        last = None
        while True:
            stopping = self._stopping.is_set()
            known = request.service in self._names
            now = self._now(request.service) if known else _health_response("SERVICE_UNKNOWN")
            if now != last:
                await context.write(now)
                last = now
            if stopping:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_PERIOD_S):
                    await self._stopping.wait()

    def _now(self, name: str) -> Any:
        serving = not self._stopping.is_set() and (name in self._always or self._is_serving())
        return _health_response("SERVING" if serving else "NOT_SERVING")


async def start_server(
    server: grpc.aio.Server,
    service: str,
    health: Health,
    host: str,
    port: int,
    *,
    tls: TlsSettings | None,
    setting: str,
) -> int:
    """Serve it with health and reflection; return the bound port. `setting` names its section of the configuration.

    Raises PortTakenError, and TlsError for certificates that cannot be used.
    """
    health.add_to(server)
    names = (service, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound: int
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, build_credentials(tls, f"{setting}.tls"))
    except RuntimeError as error:
        raise PortTakenError(f"cannot listen on {address}; choose another with {setting}.port") from error
    await server.start()
    return bound


def _health_response(status: str) -> Any:
    return health_pb2.HealthCheckResponse(status=status)
