"""One HTTP request that a gateway asks about, from its headers to the end of its answer.

The gateway keeps the bytes: the body is read, and given back as it was where it has to be. No await in what takes the
gateway's messages; the decision is made in a task beside it, because a request may have to wait for its turn, and the
gateway may hang up meanwhile.

Invariants
 1. The request is answered once: with a destination, or with an answer of our own.
 2. After `hang_up` the core learns of the end of the request before `work` is done.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec import structs
from msgspec.structs import replace

from router._generated.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from router.errors import ApiError, internal, too_large
from router.gateway.ext_proc import (
    Endpoints,
    destination,
    mutation,
    piece,
    read_headers,
    refusal,
    served_by,
    subset_hint,
)
from router.gateway.passage import Passage
from router.gateway.routes import check_mode, check_route, is_about_models, models_answer
from router.intake import FrontDesk, Intake
from router.interfaces import Tracing
from router.service import RouterService
from router.settings import RouterSettings
from router.types import RoutingDecision
from workers.ranks import RANK_HEADER, engine_of

_log = logging.getLogger(__name__)
_RANK_HEADER = RANK_HEADER.lower()
_CONTINUE_HEADERS = pb.ProcessingResponse(request_headers=pb.HeadersResponse())
_CONTINUE_RESPONSE_BODY = pb.ProcessingResponse(response_body=pb.BodyResponse())
_CONTINUE_TRAILERS = pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
_CONTINUE_RESPONSE_TRAILERS = pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


@dataclass(frozen=True, slots=True)
class Picking:
    """What deciding for gateways takes."""

    service: RouterService
    desk: FrontDesk
    settings: RouterSettings
    tracing: Tracing
    endpoints: Endpoints = field(default_factory=Endpoints)


class Exchange:
    """One request. What the gateway is to be told goes into `outbox`, in order; `wake`: not only from within `take`."""

    def __init__(self, picking: Picking, outbox: deque[pb.ProcessingResponse], wake: Callable[[], None]) -> None:
        self.work: asyncio.Task[None] | None = None  # once there is something to decide; runs until the request's end
        self._picking = picking
        self._outbox = outbox
        self._wake = wake
        self._headers: Mapping[str, str] = {}
        self._route = ""
        self._allowed: frozenset[str] | None = None
        self._chunks: list[bytes] = []
        self._num_bytes = 0
        self._request_mode = self._response_mode = pb.FULL_DUPLEX_STREAMED  # unless it says otherwise
        self._has_trailers = False
        self._is_answered = False
        self._intake: Intake | None = None
        self._passage: Passage | None = None
        self._reply_headers: Mapping[str, str] = {}

    def take(self, message: pb.ProcessingRequest) -> None:
        """The gateway says something."""
        try:
            self._take(message)
        except ApiError as error:
            self._refuse(error)

    def _take(self, message: pb.ProcessingRequest) -> None:
        if message.HasField("protocol_config"):
            self._request_mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        match message.WhichOneof("request"):
            case "request_headers":
                self._on_request_headers(message)
            case "request_body" if not self._is_answered:
                self._on_request_body(message.request_body)
            case "request_trailers" if self._request_mode == pb.FULL_DUPLEX_STREAMED and not self._is_answered:
                self._has_trailers = True
                self._begin()
            case "request_trailers":
                self._outbox.append(_CONTINUE_TRAILERS)
            case "response_headers":
                self._on_response_headers(message)
            case "response_body":
                self._on_response_body(message.response_body)
            case "response_trailers":
                if self._passage is not None:
                    self._passage.on_body(b"", is_last=True)
                self._outbox.append(_CONTINUE_RESPONSE_TRAILERS)

    def hang_up(self) -> None:
        """The gateway says no more. An answer that is not complete is one that nobody wants any more."""
        self._is_answered = True
        if self._passage is not None:
            self._passage.on_end()
        if self.work is not None and (self._passage is None or not self._passage.is_over):
            self.work.cancel()

    def _on_request_headers(self, message: pb.ProcessingRequest) -> None:
        headers = self._headers = read_headers(message.request_headers.headers)
        self._allowed = subset_hint(message.metadata_context)
        self._route = headers.get(":path", "").partition("?")[0]
        check_route(headers.get(":method", ""), self._route)
        check_mode(self._request_mode)
        if is_about_models(self._route):
            service, caller = self._picking.service, self._picking.desk.door.ask(headers)
            answer = models_answer(self._route, service.fleet(), service.routable_models(), caller)
            self._outbox.append(answer)
            self._is_answered = True
        elif message.request_headers.end_of_stream:
            self._begin()
        elif self._request_mode == pb.BUFFERED:
            self._outbox.append(_CONTINUE_HEADERS)

    def _on_request_body(self, body: pb.HttpBody) -> None:
        self._chunks.append(body.body)
        self._num_bytes += len(body.body)
        if self._num_bytes > self._picking.settings.max_body_bytes:
            raise too_large(self._picking.settings.max_body_bytes)
        if body.end_of_stream or self._request_mode == pb.BUFFERED:
            self._begin()

    def _begin(self) -> None:
        if self.work is None:
            self.work = asyncio.create_task(self._decide())

    async def _decide(self) -> None:
        """Runs until the request has ended."""
        picking, headers, route = self._picking, self._headers, self._route
        try:
            with picking.tracing.request(f"ext_proc {route}", headers) as trace:
                with trace.step("receive") as span:
                    facts = picking.service.facts(route)
                    body = b"".join(self._chunks)
                    intake = await picking.desk.take_in(route, body, headers, facts, trace, may_change_body=False)
                    self._intake = intake = self._restricted(intake)
                    span.set(request_id=intake.public_id, model=intake.request.model, stream=intake.call.stream)
                shows_body = self._response_mode != pb.NONE
                self._passage = Passage(intake.call, picking.endpoints, self._tell, shows_body=shows_body)
                await picking.service.serve_by(self._passage, intake, trace)
        except ApiError as error:
            self._refuse(error)
        except Exception:
            request_id = self._intake.public_id if self._intake else "that a gateway asks about"
            _log.exception("request %s failed", request_id, extra={"request_id": request_id})
            self._refuse(internal())

    def _restricted(self, intake: Intake) -> Intake:
        """A gateway sends a request to one worker, and says among which to choose."""
        only = None
        if self._allowed is not None:
            fleet, endpoints = self._picking.service.fleet(), self._picking.endpoints
            only = frozenset(w.spec.id for w in fleet if endpoints.of(w.spec.address) in self._allowed)
        return replace(intake, request=structs.replace(intake.request, can_hand_off=False, only=only))

    def _tell(
        self,
        decision: RoutingDecision,
        endpoint: str,
        trace_headers: Mapping[str, str],
        reply_headers: Mapping[str, str],
    ) -> None:
        """The destination, and the body back where the gateway gave it away."""
        assert self._intake is not None and not self._is_answered, "invariant 1: answered twice"
        self._is_answered = True
        self._reply_headers = {"x-request-id": self._intake.public_id, **reply_headers}
        headers = {**trace_headers, "x-request-id": self._intake.public_id}
        removed: tuple[str, ...] = ()
        if decision.decode.spec.rank is not None:
            headers[_RANK_HEADER] = str(decision.decode.spec.rank)
        elif _RANK_HEADER in self._headers:
            removed = (_RANK_HEADER,)
        if not self._headers.get("content-type", "").startswith("application/json"):
            headers["content-type"] = "application/json"  # it was read as such; engines refuse other names for it
        is_buffered = self._request_mode == pb.BUFFERED
        endpoints = [endpoint, *self._fallbacks(decision, endpoint)]
        self._outbox.append(destination(endpoints, headers, removed, for_body=is_buffered))
        if not is_buffered:
            self._give_back()
        self._chunks = []
        self._wake()

    def _give_back(self) -> None:
        last = len(self._chunks) - 1
        for at, chunk in enumerate(self._chunks):
            is_last = at == last and not self._has_trailers
            self._outbox.append(pb.ProcessingResponse(request_body=piece(chunk, is_last=is_last)))
        if self._has_trailers:
            self._outbox.append(_CONTINUE_TRAILERS)

    def _fallbacks(self, decision: RoutingDecision, endpoint: str) -> list[str]:
        """The next cheapest, of other engines. None where a rank is named: it would be told to them too."""
        if not self._picking.settings.endpoint_picker.fallbacks or decision.decode.spec.rank is not None:
            return []
        found: dict[str, None] = {}
        for other in decision.considered:
            worker = self._picking.service.core.worker(other.decode)
            if worker is not None and worker.spec.rank is None and engine_of(other.decode) != decision.decode.spec.id:
                found[self._picking.endpoints.of(worker.spec.address) or endpoint] = None
        found.pop(endpoint, None)
        return list(found)[: self._picking.settings.endpoint_picker.fallbacks]

    def _on_response_headers(self, message: pb.ProcessingRequest) -> None:
        if self._passage is not None and self._passage.started:
            head = read_headers(message.response_headers.headers)
            status = int(head.get(":status") or 502)
            served = served_by(message.metadata_context)
            self._passage.on_headers(status, served, is_last=message.response_headers.end_of_stream)
        elif self.work is not None:
            self.work.cancel()  # the gateway has answered by itself
        common = pb.CommonResponse(header_mutation=mutation(self._reply_headers))
        self._outbox.append(pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common)))

    def _on_response_body(self, body: pb.HttpBody) -> None:
        if self._passage is not None and self._passage.started:
            self._passage.on_body(body.body, is_last=body.end_of_stream)
        if self._response_mode == pb.FULL_DUPLEX_STREAMED:
            given_back = piece(body.body, is_last=body.end_of_stream)
            self._outbox.append(pb.ProcessingResponse(response_body=given_back))
        else:
            self._outbox.append(_CONTINUE_RESPONSE_BODY)

    def _refuse(self, error: ApiError) -> None:
        """Answer the client with an error, unless the request is on its way."""
        if self._is_answered:
            return
        self._is_answered = True
        self._chunks = []
        headers: dict[str, str] = {}
        if self._intake is not None:
            headers["x-request-id"] = self._intake.public_id
            if self._intake.wants_explanation:
                headers |= self._picking.service.history.headers(self._intake.request.id)
        self._outbox.append(refusal(error, headers))
        self._wake()
