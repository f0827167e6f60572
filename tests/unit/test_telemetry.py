"""Which traces are kept, and what their spans say. Of those that are not, nothing is recorded, and engines hear it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from controlplane.config import TelemetrySettings
from controlplane.telemetry import OtelTracing, log_ids
from kvstore.types import WorkerId
from router.errors import bad_request, internal
from workers.errors import WorkerUnreachableError

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@contextmanager
def keeping(**settings: object) -> Iterator[tuple[OtelTracing, InMemorySpanExporter]]:
    """Tracing, and what it kept."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    yield OtelTracing(provider.get_tracer("test"), TelemetrySettings.model_validate(settings), Random(7)), kept
    provider.shutdown()


def names_of(traceparent: str, sample_ratio: float = 0.0) -> tuple[list[str], dict[str, str]]:
    """Spans kept of a request with one step, and the headers of its call to an engine."""
    with keeping(sample_ratio=sample_ratio) as (tracing, kept):
        with tracing.request("root", {"traceparent": traceparent} if traceparent else {}) as trace:
            with trace.step("decode") as span:
                span.set(worker="w")
                headers = dict(span.headers())
            trace.event("first_token")
            trace.ended(200, "t", outcome="answered")
            assert trace.is_recorded == bool(kept.get_finished_spans())
        return [span.name for span in kept.get_finished_spans()], headers


def root_of(kept: InMemorySpanExporter) -> ReadableSpan:
    return next(span for span in kept.get_finished_spans() if span.name == "root")


def is_sampled(headers: dict[str, str]) -> bool:
    """By the flags: W3C Trace Context, section 3.2.2.5."""
    return bool(int(headers["traceparent"][-2:], 16) & 1)


def test_a_sampled_parent_has_every_step_kept_whatever_the_ratio() -> None:
    kept, headers = names_of(f"00-{TRACE_ID}-{PARENT}-01")
    assert kept == ["decode", "root"]
    assert headers["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert is_sampled(headers)


def test_of_an_unsampled_one_nothing_is_kept_and_its_context_is_passed_on_as_it_is() -> None:
    """The router forwards the client's own header where a span has none to add."""
    assert names_of(f"00-{TRACE_ID}-{PARENT}-00", sample_ratio=1.0) == ([], {})


@pytest.mark.parametrize(
    "traceparent",
    [
        "", "nonsense", f"00-{TRACE_ID}-01", f"00-{TRACE_ID}-{PARENT}-0x", f"ff-{TRACE_ID}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE_ID}-{'0' * 16}-01",
    ],
)  # fmt: skip
def test_a_root_that_is_not_drawn_tells_engines_so(traceparent: str) -> None:
    kept, headers = names_of(traceparent)
    assert kept == []
    assert not is_sampled(headers)
    assert len(headers["traceparent"]) == 55


def test_a_root_that_is_drawn_begins_a_trace() -> None:
    kept, headers = names_of("nonsense", sample_ratio=1.0)
    assert kept == ["decode", "root"]
    assert is_sampled(headers)


def test_as_many_are_drawn_as_the_operator_says() -> None:
    with keeping(sample_ratio=0.25) as (tracing, kept):
        for _ in range(1000):
            with tracing.request("root", {}):
                pass
        assert len(kept.get_finished_spans()) == pytest.approx(250, abs=60)


def test_the_root_says_what_a_tail_sampler_asks_for() -> None:
    with keeping() as (tracing, kept):
        with tracing.request("root", {}) as trace:
            trace.ended(503, "acme", outcome="rejected", slo_met=False)
        root = root_of(kept)
        assert dict(root.attributes or {}) == {
            "headrace.status": 503, "headrace.outcome": "rejected", "headrace.slo_met": False,
        }  # fmt: skip
        assert root.status.status_code is StatusCode.ERROR


def test_a_tenant_is_a_hash_and_only_where_that_is_allowed() -> None:
    with keeping(tenants="hash") as (tracing, kept):
        with tracing.request("root", {}) as trace:
            trace.ended(200, "acme")
        root = root_of(kept)
        # printf acme | sha256sum
        assert (root.attributes or {})["headrace.tenant_hash"] == "822b33ad87c148a0"
        assert root.status.status_code is StatusCode.UNSET


def test_what_is_refused_before_it_is_a_request_is_no_error_of_ours() -> None:
    with keeping() as (tracing, kept):
        with pytest.raises(Exception, match="secret"), tracing.request("root", {}):
            raise bad_request("your secret", code="invalid_json")
        root = root_of(kept)
        assert dict(root.attributes or {}) == {
            "headrace.status": 400, "headrace.outcome": "refused", "error.type": "invalid_json",
        }  # fmt: skip
        assert root.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("error", "kind", "is_error"),
    [
        (internal(), "internal", True),
        (ValueError("secret"), "ValueError", True),
        (WorkerUnreachableError(WorkerId("w"), "secret"), "WorkerUnreachableError", True),
        (asyncio.CancelledError(), "CancelledError", False),  # the client left, or another attempt follows
    ],
)
def test_a_failed_step_says_of_which_kind_and_nothing_else(error: BaseException, kind: str, is_error: bool) -> None:
    with keeping() as (tracing, kept):
        with pytest.raises(type(error)), tracing.request("root", {}) as trace, trace.step("attempt"):
            raise error
        step = kept.get_finished_spans()[0]
        assert (step.attributes or {})["error.type"] == kind
        assert (step.status.status_code is StatusCode.ERROR) == is_error
        assert "secret" not in step.to_json()


def test_log_lines_know_the_span_they_are_written_in() -> None:
    with keeping() as (tracing, _):
        assert log_ids() == {}
        with tracing.request("root", {"traceparent": f"00-{TRACE_ID}-{PARENT}-01"}) as trace:
            assert log_ids()["trace_id"] == TRACE_ID == trace.trace_id
            outside = log_ids()["span_id"]
            with trace.step("decode"):
                assert log_ids()["span_id"] not in ("", outside)
