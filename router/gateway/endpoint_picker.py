"""The Endpoint Picker of one router process: decides for gateways of the Kubernetes Gateway API Inference Extension.

envoy.service.ext_proc.v3.ExternalProcessor over gRPC, one stream a request; docs/endpoint-picker.md says how a gateway
is set up for it. Only the RPC's own task reads; one task at a time writes, and it is never cancelled: gRPC does not
take a second operation while a cancelled one is under way.
"""

import asyncio
from collections import deque
from typing import Any

import grpc
import grpc.aio

from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2_grpc as pb_grpc
from router.gateway.exchange import Exchange, Picking
from router.grpc_port import Health, build_server, start_server

_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
_FRAMING_BYTES = 1 << 20  # of a message around a body that comes whole, headers included
_Context = grpc.aio.ServicerContext[Any, Any]


class EndpointPicker:
    """Serves one port, which this node's router processes share."""

    def __init__(self, picking: Picking) -> None:
        self._picking = picking
        self._processor = _Processor(picking)
        service = picking.service
        self._health = Health(
            (_SERVICE, "readiness"), lambda: bool(service.routable_models()) and service.is_warm(), ("liveness",)
        )
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Accept streams from now on; return the bound port. Raises PortTakenError or TlsError."""
        server = build_server(self._picking.settings.max_body_bytes + _FRAMING_BYTES)
        pb_grpc.add_ExternalProcessorServicer_to_server(self._processor, server)
        setting, tls = "router.endpoint_picker", self._picking.settings.endpoint_picker.tls
        bound = await start_server(server, _SERVICE, self._health, host, port, tls=tls, setting=setting)
        self._server = server
        return bound

    async def stop(self) -> None:
        """Take no more requests, let those under way finish for `drain_s`, then cut them."""
        self._health.stop()
        if self._server is not None:
            await self._server.stop(self._picking.settings.drain_s)
            await self._processor.join()


class _Processor:
    """envoy.service.ext_proc.v3.ExternalProcessor."""

    def __init__(self, picking: Picking) -> None:
        self._picking = picking
        self._work: set[asyncio.Task[None]] = set()

    async def Process(self, _: Any, context: _Context) -> None:  # noqa: N802  as in the .proto
        """Follow one HTTP request."""
        stream = _Stream(context)
        exchange = Exchange(self._picking, stream.outbox, stream.wake)
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                exchange.take(message)
                await stream.write()
        finally:
            exchange.hang_up()
            if exchange.work is not None:
                self._work.add(exchange.work)
                exchange.work.add_done_callback(self._work.discard)
                await asyncio.wait((exchange.work,))

    async def join(self) -> None:
        """Wait until the core knows of the end of every request: gRPC does not wait for what it cuts."""
        if self._work:
            await asyncio.wait(self._work)


class _Stream:
    """The way back to the gateway."""

    def __init__(self, context: _Context) -> None:
        self.outbox: deque[pb.ProcessingResponse] = deque()
        self._context = context
        self._is_writing = False
        self._writing: asyncio.Task[None] | None = None  # the loop itself keeps tasks by weak references

    def wake(self) -> None:
        """Send what the outbox holds, soon."""
        if not self._is_writing:
            self._writing = asyncio.create_task(self.write())

    async def write(self) -> None:
        """Send what the outbox holds; returns at once where another is at it."""
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while self.outbox:
                await self._context.write(self.outbox.popleft())
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            self.outbox.clear()  # the gateway is gone; the reading task learns of it by itself
        finally:
            self._is_writing = False
