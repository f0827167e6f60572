"""The gRPC front door of one router process: headrace.v1.Inference, health, reflection. The same path as over HTTP.

Only the RPC's own task touches its context, and only the client's end or ours cancels that task: gRPC does not take a
second operation while a cancelled one is under way. The work runs in a task beside it, which the service may cancel
when a worker is lost.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import Any, Never

import grpc
import grpc.aio

from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from router.errors import ApiError, bad_request, broken_stream, grpc_code, internal
from router.fleet import eligibility
from router.grpc_messages import SseReader, engine_error, to_openai, to_response
from router.grpc_port import Health, build_server, start_server
from router.intake import FrontDesk
from router.interfaces import Flow, Tracing
from router.openai import usable_request_id
from router.service import RouterService
from router.settings import RouterSettings

_log = logging.getLogger(__name__)
_SERVICE = "headrace.v1.Inference"
_MOST_WAITING = 16  # responses of one call that its client has not taken
_MAX_DETAILS_BYTES = 2000  # percent-encoded up to three times as long; clients refuse more than 8 KiB of metadata
_MOST_REFUSAL_BYTES = 64 << 10  # read of an engine's error
_Context = grpc.aio.ServicerContext[Any, Any]


class GrpcServer:
    """Serves one port, which this node's router processes share."""

    def __init__(self, service: RouterService, desk: FrontDesk, settings: RouterSettings, tracing: Tracing) -> None:
        self._settings = settings
        self._inference = _Inference(service, desk, settings, tracing)
        self._health = Health((_SERVICE,), lambda: bool(service.routable_models()))
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Accept calls from now on; return the bound port. Raises PortTakenError or TlsError."""
        server = build_server(self._settings.max_body_bytes)
        pb_grpc.add_InferenceServicer_to_server(self._inference, server)
        tls = self._settings.grpc.tls
        bound = await start_server(server, _SERVICE, self._health, host, port, tls=tls, setting="router.grpc")
        self._server = server
        return bound

    async def stop(self) -> None:
        """Take no more calls, let those under way finish for `drain_s`, then cut them."""
        self._health.stop()
        if self._server is not None:
            await self._server.stop(self._settings.drain_s)
            await self._inference.join()


class _Inference:
    """headrace.v1.Inference."""

    def __init__(self, service: RouterService, desk: FrontDesk, settings: RouterSettings, tracing: Tracing) -> None:
        self._service = service
        self._desk = desk
        self._settings = settings
        self._tracing = tracing
        self._work: set[asyncio.Task[ApiError | None]] = set()

    async def join(self) -> None:
        """Wait for the work of calls that have been cut: gRPC does not."""
        if self._work:
            await asyncio.wait(self._work)

    async def Generate(self, request: pb.GenerateRequest, context: _Context) -> None:  # noqa: N802  as in the .proto
        """Stream the answer of an engine."""
        sink = _GrpcSink(_headers(context))
        work = asyncio.create_task(self._work_on(request, sink, context.time_remaining()))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        work.add_done_callback(sink.end)
        try:
            await sink.relay(context)
        except grpc.aio.InternalError as gone:
            # Writing failed because the client is gone; gRPC's own cancellation is a moment behind.
            raise asyncio.CancelledError from gone
        finally:
            work.cancel()
        error = await work
        if error is not None:
            await _abort(context, error, sink.public_id)

    async def GetModel(self, request: pb.GetModelRequest, context: _Context) -> pb.Model:  # noqa: N802  as in the .proto
        """One routable model."""
        model = (await self._models(context)).get(request.name)
        if model is None:
            message = f"the model {request.name!r} does not exist here"
            error = bad_request(message, code="model_not_found", param="name", status=404)
            await _abort(context, error, _public_id(_headers(context)))
        return model

    async def ListModels(self, _: pb.ListModelsRequest, context: _Context) -> pb.ListModelsResponse:  # noqa: N802  as in the .proto
        """All routable models."""
        return pb.ListModelsResponse(models=list((await self._models(context)).values()))

    async def _work_on(self, request: pb.GenerateRequest, sink: "_GrpcSink", time_s: float | None) -> ApiError | None:
        """Serve the request into `sink`; return what went wrong. gRPC's own watch on the deadline is not relied on."""
        late = ApiError(504, "timeout_error", "deadline_exceeded", "the deadline of the call has passed")
        if time_s is not None and time_s <= 0.0:
            return late
        try:
            async with asyncio.timeout(time_s) as deadline:
                await self._serve(request, sink)
            sink.check()  # outside the span: an engine's refusal may quote the prompt
        except ApiError as error:
            return error
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                return late
            _log.exception("request %s failed", sink.public_id, extra={"request_id": sink.public_id})
            return internal()
        return None

    async def _serve(self, request: pb.GenerateRequest, sink: "_GrpcSink") -> None:
        with self._tracing.request(f"{_SERVICE}/Generate", sink.headers) as trace:
            with trace.step("receive") as span:
                route, raw_body = to_openai(request)
                facts = self._service.facts(route)
                intake = await self._desk.take_in(route, raw_body, sink.headers, facts, trace)
                sink.public_id = intake.public_id
                span.set(request_id=intake.public_id, model=intake.request.model, stream=intake.call.stream)
            await self._service.serve(intake, sink, trace)

    async def _models(self, context: _Context) -> dict[str, pb.Model]:
        """By name, those that the caller may see; of workers that differ, the length that each of them can do."""
        headers = _headers(context)
        try:
            caller = self._desk.door.ask(headers)
        except ApiError as error:
            await _abort(context, error, _public_id(headers))
        lengths: dict[str, int] = {}
        for worker in self._service.fleet():
            if eligibility.can_decode(worker):
                length = worker.spec.max_model_len_tokens
                for name in (worker.spec.model, *worker.spec.adapters):
                    lengths[name] = min(length, lengths.get(name, length))
        seen = [name for name in sorted(lengths) if caller.may_see(name)]
        return {name: pb.Model(name=name, max_model_len_tokens=lengths[name]) for name in seen}


class _GrpcSink:
    """Takes an engine's bytes, gives the call's responses.

    Invariant: while more than `_MOST_WAITING` responses wait for the client the engine is paused. So what waits is
    bounded by that, and by what one read of the engine's socket holds.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.public_id = _public_id(headers)
        self._responses: asyncio.Queue[pb.GenerateResponse | None] = asyncio.Queue()
        self._reader = SseReader()
        self._status = 0
        self._retry_after: str | None = None
        self._refusal = b""
        self._error: ApiError | None = None
        self._flow: Flow | None = None
        self._is_paused = False

    @property
    def started(self) -> bool:
        """An answer of some kind has begun."""
        return self._status != 0

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """The engine's status."""
        self._status = status
        self._retry_after = headers.get("retry-after")

    def write(self, chunk: bytes) -> None:
        """Pass on what this piece completes."""
        if self._status != 200:
            self._refusal += chunk[: _MOST_REFUSAL_BYTES - len(self._refusal)]
        elif self._error is None:
            try:
                for event in self._reader.feed(chunk):
                    self._responses.put_nowait(to_response(event))
            except ApiError as error:
                self._error = error  # for `check`: the service takes an ApiError from a sink for one of its own
            if not self._is_paused and self._flow is not None and self._responses.qsize() > _MOST_WAITING:
                self._is_paused = True
                self._flow.pause()

    def attach_flow(self, flow: Flow | None) -> None:
        """Whom to pause while the client takes no more."""
        self._flow, self._is_paused = flow, False

    def check(self) -> None:
        """Raise ApiError where the answer was not a whole one."""
        if self._status != 200:
            raise engine_error(self._status, self._refusal, self._retry_after)
        if self._error is not None:
            raise self._error
        if not self._reader.done:
            raise broken_stream("the engine ended it before it was complete")

    def end(self, _: object) -> None:
        """No more responses will come."""
        self._responses.put_nowait(None)

    async def relay(self, context: _Context) -> None:
        """Send responses until the end."""
        metadata_sent = False
        while (response := await self._responses.get()) is not None:
            if not metadata_sent:
                await context.send_initial_metadata((("x-request-id", self.public_id),))
                metadata_sent = True
            await context.write(response)
            if self._is_paused and self._flow is not None and self._responses.empty():
                self._is_paused = False
                self._flow.resume()


def _headers(context: _Context) -> dict[str, str]:
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


def _public_id(headers: Mapping[str, str]) -> str:
    return usable_request_id(headers.get("x-request-id")) or uuid.uuid4().hex


async def _abort(context: _Context, error: ApiError, public_id: str) -> Never:
    trailing = [("x-request-id", public_id), ("x-headrace-error-code", error.code)]
    trailing += [(name.lower(), value) for name, value in error.headers().items()]
    details = error.message.encode()[:_MAX_DETAILS_BYTES].decode(errors="ignore")
    await context.abort(grpc.StatusCode[grpc_code(error.status)], details, tuple(trailing))
