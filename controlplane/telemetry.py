"""OpenTelemetry: the only module that knows it. Turns the router's steps into spans.

One trace a request: receive, route, prefill, decode with transfer inside, and the instant of the first token. The
W3C context of the client is continued, and each engine call carries the context of its own step, so that spans of
the engine hang below it. Prompts and completions are never attributes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from controlplane.config import TelemetrySettings
from router.interfaces import RequestTrace, Span, Tracing
from router.tracing import NoTracing

_W3C = TraceContextTextMapPropagator()


def build_tracing(settings: TelemetrySettings) -> tuple[Tracing, Callable[[], None]]:
    """Tracing as configured, and what flushes and ends it."""
    if settings.otlp_endpoint is None:
        return NoTracing(), lambda: None
    provider = TracerProvider(
        resource=Resource.create({"service.name": "headrace-router"}),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
    )
    provider.add_span_processor(BatchSpanProcessor(_exporter(settings), schedule_delay_millis=1000))
    return OtelTracing(provider.get_tracer("headrace")), provider.shutdown


def _exporter(settings: TelemetrySettings) -> SpanExporter:
    assert settings.otlp_endpoint is not None
    if settings.otlp_protocol == "grpc":
        return GrpcExporter(endpoint=settings.otlp_endpoint, insecure=settings.otlp_endpoint.startswith("http://"))
    return HttpExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces")


class OtelTracing:
    """router.interfaces.Tracing over an OpenTelemetry tracer."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[RequestTrace]:
        """The root span of one request."""
        carrier = {key: headers[key] for key in ("traceparent", "tracestate") if key in headers}
        context = _W3C.extract(carrier)
        with _span(self._tracer, name, context, SpanKind.SERVER) as span:
            yield _OtelRequestTrace(self._tracer, span) if span.is_recording() else _Unsampled(span)


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
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


class _OtelRequestTrace:
    def __init__(self, tracer: trace.Tracer, root: trace.Span) -> None:
        self._tracer = tracer
        self._root = root

    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        with _span(self._tracer, name) as span:
            yield _OtelSpan(span)

    def event(self, name: str) -> None:
        self._root.add_event(name)


class _Unsampled:
    """A trace that is not kept: one span of nothing stands for all its steps. Engines are told not to keep theirs."""

    is_recorded = False

    def __init__(self, root: trace.Span) -> None:
        self._root = root

    def step(self, name: str) -> "_Unsampled":
        return self

    def event(self, name: str) -> None:
        return None

    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def headers(self) -> Mapping[str, str]:
        return _headers_of(self._root)

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


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
