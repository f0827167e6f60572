"""Traces that are not kept: nothing is recorded, and the engines are told so."""

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from controlplane.telemetry import OtelTracing

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def names_of(traceparent: str) -> tuple[list[str], dict[str, str]]:
    """Spans kept of a request with one step, and the headers of its call to an engine."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.0)))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing = OtelTracing(provider.get_tracer("test"))
    with tracing.request("root", {"traceparent": traceparent} if traceparent else {}) as trace:
        with trace.step("decode") as span:
            span.set(worker="w")
            headers = dict(span.headers())
        trace.event("first_token")
    provider.shutdown()
    return [span.name for span in kept.get_finished_spans()], headers


def is_sampled(headers: dict[str, str]) -> bool:
    """By the flags: W3C Trace Context, section 3.2.2.5."""
    return bool(int(headers["traceparent"][-2:], 16) & 1)


def test_a_sampled_parent_has_every_step_kept() -> None:
    kept, headers = names_of(f"00-{TRACE_ID}-{PARENT}-01")
    assert kept == ["decode", "root"]
    assert headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert is_sampled(headers)


def test_of_an_unsampled_one_nothing_is_kept_and_engines_keep_nothing_either() -> None:
    kept, headers = names_of(f"00-{TRACE_ID}-{PARENT}-00")
    assert kept == []
    assert headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert not is_sampled(headers)


def test_a_root_that_is_not_drawn_tells_engines_so() -> None:
    kept, headers = names_of("")
    assert kept == []
    assert not is_sampled(headers)
