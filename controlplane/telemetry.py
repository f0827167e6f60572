"""OpenTelemetry: the only module that knows it. Turns the router's steps into spans.

One trace a request, below the client's own W3C context:

    POST /v1/completions     class, outcome, slo_met, attempts, ...: what a tail sampler asks for; event first_token
      receive                  tokenise within it
      decide                   one for each attempt, with the terms of the cost; queue within it, and what it waited for
      attempt                  one for each attempt; of a failed one the kind of error
        prefill                spans of the engine hang below these two
        decode                 transfer within it: until the first token

Prompts and completions are never attributes. Of an error a span has the kind: messages may quote what a client sent.

Which traces are kept is drawn here and not in the SDK, so that a request that is not kept costs one draw.
"""

import hashlib
import re
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from random import Random
from types import MappingProxyType, TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from controlplane.config import TelemetrySettings
from router.errors import ApiError
from router.interfaces import RequestTrace, Span, Tracing
from router.tracing import NoTracing

_W3C = TraceContextTextMapPropagator()
# W3C Trace Context, section 3.2: no version ff, no ids of zeros.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
_NO_IDS: Mapping[str, str] = MappingProxyType({})
_PARENTS = ("traceparent", "tracestate")
_MOST_ATTRIBUTE_CHARS = 256  # clients invent names of models
_TENANT_CHARS = 16  # of its SHA-256 in hex


def build_tracing(settings: TelemetrySettings) -> tuple[Tracing, Callable[[], None]]:
    """Tracing as configured, and what flushes and ends it."""
    if settings.otlp_endpoint is None:
        return NoTracing(), lambda: None
    resource = Resource.create({"service.name": "headrace-router"})
    limits = SpanLimits(max_attribute_length=_MOST_ATTRIBUTE_CHARS)
    provider = TracerProvider(resource=resource, sampler=ALWAYS_ON, span_limits=limits)
    provider.add_span_processor(BatchSpanProcessor(_exporter(settings), schedule_delay_millis=1000))
    return OtelTracing(provider.get_tracer("headrace"), settings), provider.shutdown


def log_ids() -> Mapping[str, str]:
    """The trace and span that a log line belongs to."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return _NO_IDS
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _exporter(settings: TelemetrySettings) -> SpanExporter:
    url = settings.traces_url
    assert url is not None
    if settings.otlp_protocol == "grpc":
        return GrpcExporter(endpoint=url, insecure=url.startswith("http://"))
    return HttpExporter(endpoint=url)


class OtelTracing:
    """router.interfaces.Tracing over an OpenTelemetry tracer."""

    def __init__(self, tracer: trace.Tracer, settings: TelemetrySettings, random: Random | None = None) -> None:
        """`tracer` keeps every span that it is given."""
        self._tracer = tracer
        self._sample_ratio = settings.sample_ratio
        self._hashes_tenants = settings.tenants == "hash"
        random = random or Random()
        self._draw = random.random
        # One for all requests that are not drawn: nothing is ever kept under it. Engines draw for themselves those that
        # come without a context.
        flags = f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-00"
        self._not_drawn = _Unsampled({"traceparent": flags})

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestTrace]:
        """The root span of one request."""
        parent = headers.get("traceparent")
        match = None if parent is None else _TRACEPARENT.fullmatch(parent)
        if match is None:
            return self._root(name, Context()) if self._draw() < self._sample_ratio else self._not_drawn
        if not int(match[1], 16) & 1:
            return _UNSAMPLED
        return self._root(name, _W3C.extract({key: headers[key] for key in _PARENTS if key in headers}))

    @contextmanager
    def _root(self, name: str, context: Context) -> Iterator[RequestTrace]:
        with _span(self._tracer, name, context, SpanKind.SERVER) as span:
            request = _OtelRequestTrace(self._tracer, span, hashes_tenants=self._hashes_tenants)
            try:
                yield request
            except ApiError as error:
                request.refused(error)
                raise


@contextmanager
def _span(
    tracer: trace.Tracer, name: str, context: Context | None = None, kind: SpanKind = SpanKind.INTERNAL
) -> Iterator[trace.Span]:
    """A current span. Of an error it keeps the type only: messages may quote what a client sent."""
    with tracer.start_as_current_span(
        name, context=context, kind=kind, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except BaseException as error:
            problem = error.code if isinstance(error, ApiError) else type(error).__name__
            span.set_attribute("error.type", problem)
            is_clients = isinstance(error, CancelledError) or (isinstance(error, ApiError) and error.status < 500)
            if not is_clients:
                span.set_status(Status(StatusCode.ERROR, problem))
            raise


class _OtelRequestTrace:
    is_recorded = True

    def __init__(self, tracer: trace.Tracer, root: trace.Span, *, hashes_tenants: bool) -> None:
        self._tracer = tracer
        self._root = root
        self._hashes_tenants = hashes_tenants
        self.trace_id = f"{root.get_span_context().trace_id:032x}"
        self._has_ended = False

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        with _span(self._tracer, name) as span:
            yield _OtelSpan(span)

    def event(self, name: str) -> None:
        self._root.add_event(name)

    def ended(self, status: int, tenant: str, **attributes: str | int | float | bool) -> None:
        self._has_ended = True
        _OtelSpan(self._root).set(status=status, **attributes)
        if self._hashes_tenants:
            digest = hashlib.sha256(tenant.encode()).hexdigest()
            self._root.set_attribute("headrace.tenant_hash", digest[:_TENANT_CHARS])
        if status >= 500:
            self._root.set_status(Status(StatusCode.ERROR))

    def refused(self, error: ApiError) -> None:
        """It ended before it was anybody's: not understood, or not let in."""
        if not self._has_ended:
            _OtelSpan(self._root).set(status=error.status, outcome="refused")


class _Unsampled:
    """Stands for a trace that is not kept and for all its steps. Engines are told not to keep theirs."""

    is_recorded = False
    trace_id = ""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def step(self, name: str) -> "_Unsampled":
        return self

    def event(self, name: str) -> None:
        return None

    def ended(self, status: int, tenant: str, **attributes: str | int | float | bool) -> None:
        return None

    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def __enter__(self) -> "_Unsampled":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


_UNSAMPLED = _Unsampled({})  # the client's own context says so, and is passed on as it is


class _OtelSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def is_recorded(self) -> bool:
        return self._span.is_recording()

    def set(self, **attributes: str | int | float | bool) -> None:
        self._span.set_attributes({f"headrace.{name}": value for name, value in attributes.items()})

    def headers(self) -> Mapping[str, str]:
        return _headers_of(self._span)


def _headers_of(span: trace.Span) -> Mapping[str, str]:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span))
    return carrier
