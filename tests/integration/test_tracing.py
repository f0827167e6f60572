"""One trace a request, from the client's context through the router into both engines."""

import httpx
import pytest

from tests.engine_counters import wait_until
from tests.otlp_receiver import Received, attributes_of
from tests.stack import Stack

pytestmark = pytest.mark.cluster

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN_ID = "00f067aa0ba902b7"
SECRET = "a secret word: zebrafish"


def test_one_trace_shows_router_and_engines(cluster: Stack, traces: Received) -> None:
    body = {"model": cluster.model, "prompt": f"{SECRET} " * 12, "max_tokens": 3, "stream": True}
    headers = {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN_ID}-01"}
    response = httpx.post(f"{cluster.http_url}/v1/completions", json=body, headers=headers, timeout=120)
    assert response.status_code == 200

    def engine_spans() -> int:
        return sum(service != "headrace-router" for service, _ in traces.of_trace(TRACE_ID))

    wait_until(lambda: engine_spans() >= 2, "both engines have sent their spans", timeout_s=60)
    root_name = "POST /v1/completions"
    wait_until(lambda: root_name in {s.name for _, s in traces.of_trace(TRACE_ID)}, "the router has", timeout_s=30)
    spans = {span.name: span for service, span in traces.of_trace(TRACE_ID) if service == "headrace-router"}
    assert {"receive", "decide", "attempt", "prefill", "decode", "transfer", root_name} <= set(spans)

    root = spans[root_name]
    assert root.parent_span_id.hex() == CLIENT_SPAN_ID
    assert [event.name for event in root.events] == ["first_token"]
    for name in ("receive", "decide", "attempt"):
        assert spans[name].parent_span_id == root.span_id
    for name in ("prefill", "decode"):
        assert spans[name].parent_span_id == spans["attempt"].span_id
    assert spans["transfer"].parent_span_id == spans["decode"].span_id
    assert spans["prefill"].end_time_unix_nano <= spans["decode"].start_time_unix_nano

    parents = {span.parent_span_id for service, span in traces.of_trace(TRACE_ID) if service != "headrace-router"}
    assert parents == {spans["prefill"].span_id, spans["decode"].span_id}
    assert {service for service, _ in traces.of_trace(TRACE_ID)} == {"headrace-router", "vllm"}
    decided = attributes_of(spans["decide"])
    assert decided["headrace.hand_off"]
    assert float(decided["headrace.predicted_ttft_s"]) > 0
    assert attributes_of(root)["headrace.outcome"] == "answered"


def test_no_span_carries_a_prompt(cluster: Stack, traces: Received) -> None:
    """Runs after the request above; engines and router alike."""
    assert traces.spans
    assert not any("zebrafish" in str(span) for _, span in traces.spans)
