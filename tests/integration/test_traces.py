"""What a router tells a collector and its log, with fake engines: every step of a request, and nothing of its text."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from controlplane.app import worker_plan
from controlplane.config import Config
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from tests.fleet import MODEL, Fleet, fleet
from tests.grpc_door import make_request
from tests.otlp_receiver import Received, attributes_of, otlp_http_receiver, otlp_receiver
from workers.engine_command import EnginePorts
from workers.fake import Plan
from workers.fake.plan import Action, Fault, Match, Timing
from workers.types import Role
from workers.worker import vllm_command

RECEIVERS: dict[str, Callable[[], AbstractContextManager[Received]]] = {
    "grpc": otlp_receiver,
    "http": otlp_http_receiver,
}
CLASSES = {"classes": {"chat": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}}, "default_class": "chat"}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, UNSAMPLED = (f"00-{TRACE_ID}-00f067aa0ba902b7-{flags}" for flags in ("01", "00"))
# As Prometheus 3 asks.
OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.5"}


@asynccontextmanager
async def traced(folder: Path, received: Received, protocol: str = "grpc", **sections: Any) -> AsyncIterator[Fleet]:
    """A fleet whose router traces; nothing is lost once this has been left."""
    telemetry = {"otlp_endpoint": received.endpoint, "otlp_protocol": protocol, **sections.pop("telemetry", {})}
    async with fleet(folder, telemetry=telemetry, **{"slo": CLASSES, **sections}) as it:
        yield it


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(main())


async def stream(it: Fleet, prompt: str, headers: dict[str, str] | None = None, **fields: Any) -> tuple[int, str]:
    """Status and text of a streamed completion."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "stream": True, **fields}
    async with it.session.post(f"{it.url}/v1/completions", json=body, headers=headers) as response:
        return response.status, await response.text()


def named(spans: list[tuple[str, Span]], name: str) -> list[Span]:
    return [span for _, span in sorted(spans, key=lambda item: item[1].start_time_unix_nano) if span.name == name]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_step_of_a_request_is_a_span(tmp_path: Path, protocol: str) -> None:
    with RECEIVERS[protocol]() as received:

        async def test() -> None:
            async with traced(tmp_path, received, protocol, telemetry={"tenants": "hash"}) as it:
                await it.add(Role.PREFILL, "p1")
                await it.add(Role.DECODE, "d1")
                await it.start_router()
                await it.wait_for_workers(["d1", "p1"])
                status, _ = await stream(it, "hello", {"traceparent": SAMPLED, "x-request-id": "mine"})
                assert status == 200

        run(test)
        spans = received.of_trace(TRACE_ID)
        assert {service for service, _ in spans} == {"headrace-router"}
        one = {span.name: span for _, span in spans}
        assert len(one) == len(spans)
        root = one["POST /v1/completions"]
        parents = {
            name: "receive" if name == "tokenise" else "decode" if name == "transfer" else "attempt"
            for name in ("tokenise", "transfer", "prefill", "decode")
        } | dict.fromkeys(("receive", "decide", "attempt"), root.name)
        assert set(one) == {root.name, *parents}
        for name, parent in parents.items():
            assert one[name].parent_span_id == one[parent].span_id, name
        told = attributes_of(root)
        assert told.pop("headrace.ttft_s") <= told.pop("headrace.e2e_s")  # type: ignore[operator]
        assert told == {
            "headrace.request_id": "mine", "headrace.model": MODEL, "headrace.class": "chat", "headrace.status": 200,
            "headrace.outcome": "answered", "headrace.slo_met": True, "headrace.attempts": 1,
            "headrace.tenant_hash": "37a8eec1ce19687d",
        }  # fmt: skip
        decided = attributes_of(one["decide"])
        terms = ("queue_s", "fetch_s", "prefill_s", "transfer_s", "step_s", "harm_s")
        assert sum(float(decided[f"headrace.{term}"]) for term in terms) == pytest.approx(decided["headrace.cost_s"])
        assert (decided["headrace.prefill"], decided["headrace.decode"]) == ("p1", "d1")
        assert {"headrace.candidates", "headrace.near_equal", "headrace.predicted_ttft_s"} <= set(decided)

    run_again = attributes_of(one["tokenise"])
    assert run_again == {"headrace.counted": True, "headrace.prompt_tokens": 5}


def test_attempts_are_siblings_and_a_failed_one_says_how(tmp_path: Path) -> None:
    with otlp_receiver() as received:

        async def test() -> None:
            async with traced(tmp_path, received) as it:
                matches = [Match(route="/v1/completions", nth=nth) for nth in range(2, 8)]  # the first is a probe
                broken = Plan(faults=tuple(Fault(match=match, action=Action.STATUS) for match in matches))
                for name, plan in (("m1", broken), ("m2", Plan())):
                    await it.add(Role.MIXED, name, plan)
                await it.start_router()
                await it.wait_for_workers(["m1", "m2"])
                for _ in range(12):
                    assert (await stream(it, "hello"))[0] == 200

        run(test)
        roots = {span.trace_id: span for span in named(received.spans, "POST /v1/completions")}
        retried = [span for span in roots.values() if attributes_of(span)["headrace.attempts"] == 2]
        assert retried, "no request met the broken worker first"
        for root in retried:
            spans = received.of_trace(root.trace_id.hex())
            attempts, decisions = named(spans, "attempt"), named(spans, "decide")
            assert {span.parent_span_id for span in (*attempts, *decisions)} == {root.span_id}
            assert [attributes_of(span) for span in attempts] == [
                {"headrace.number": 1, "error.type": "WorkerFailedError"}, {"headrace.number": 2},
            ]  # fmt: skip
            assert [attributes_of(span)["headrace.decode"] for span in decisions] == ["m1", "m2"]
            assert attributes_of(root)["headrace.outcome"] == "answered"


def test_a_wait_is_a_span_that_says_what_for_and_a_rejection_says_why(tmp_path: Path) -> None:
    with otlp_receiver() as received:

        async def test() -> None:
            async with traced(tmp_path, received, router={"dispatch_ahead_s": 0.0}) as it:
                await it.add(Role.MIXED, "m1", Plan(timing=Timing(prefill_s_fixed=0.3)))
                await it.start_router()
                await it.wait_for_workers(["m1"])
                answers = await asyncio.gather(*(stream(it, f"{n} hello" * 200) for n in range(8)))
                assert {status for status, _ in answers} == {200}
                assert (await stream(it, "hello", model="nobody"))[0] == 404

        run(test)
        queues = named(received.spans, "queue")
        decisions = {span.span_id: span for span in named(received.spans, "decide")}
        assert queues
        for span in queues:
            assert attributes_of(span)["headrace.waits_for"]
            assert float(attributes_of(decisions[span.parent_span_id])["headrace.waited_s"]) > 0
        (rejected,) = [
            span
            for span in named(received.spans, "POST /v1/completions")
            if attributes_of(span)["headrace.outcome"] == "rejected"
        ]
        assert attributes_of(rejected)["headrace.status"] == 404
        assert "unknown_model" in [attributes_of(span).get("headrace.rejected") for span in decisions.values()]


def test_histograms_lead_to_the_traces_that_are_kept_and_to_no_other(tmp_path: Path) -> None:
    with otlp_receiver() as received:

        async def test() -> None:
            async with traced(tmp_path, received, telemetry={"sample_ratio": 0}) as it:
                await it.add(Role.MIXED, "m1")
                await it.start_router()
                await it.wait_for_workers(["m1"])

                async def exemplars() -> dict[str, set[str]]:
                    async with it.session.get(f"{it.url}/metrics", headers=OPENMETRICS) as response:
                        assert response.content_type == "application/openmetrics-text"
                        families = list(text_string_to_metric_families(await response.text()))
                    return {
                        family.name: {sample.exemplar.labels["trace_id"]}
                        for family in families
                        for sample in family.samples
                        if sample.exemplar is not None
                    }

                for headers in ({}, {"traceparent": UNSAMPLED}):
                    assert (await stream(it, "hello", headers))[0] == 200
                assert await exemplars() == {}
                assert (await stream(it, "hello", {"traceparent": SAMPLED}))[0] == 200
                expected = {"headrace_ttft_seconds": {TRACE_ID}, "headrace_e2e_seconds": {TRACE_ID}}
                assert await exemplars() == expected
                assert "trace_id" not in await it.metrics()

        run(test)
        assert {span.trace_id.hex() for _, span in received.spans} == {TRACE_ID}


_ENGINE = """
import sys
from vllm.tracing.otel import extract_trace_context, init_otel_tracer, manual_instrument_otel
init_otel_tracer("vllm.llm_engine", sys.argv[1])
for traceparent in sys.argv[2:]:
    manual_instrument_otel("llm_request", 1, context=extract_trace_context({"traceparent": traceparent}))
"""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_what_traces_in_vllm_takes_our_word_for_where_and_how_and_which(tmp_path: Path, protocol: str) -> None:
    """Its own code, without an engine around it."""
    with RECEIVERS[protocol]() as received:
        telemetry = {"otlp_endpoint": received.endpoint, "otlp_protocol": protocol, "sample_ratio": 0}
        plan = worker_plan(Config.model_validate({"telemetry": telemetry}), Role.DECODE, "redis://x", tmp_path)
        command = vllm_command(plan, EnginePorts(1, 2, 3, 4))
        url = command.argv[command.argv.index("--otlp-traces-endpoint") + 1]
        argv = [sys.executable, "-W", "ignore", "-c", _ENGINE, url, SAMPLED, UNSAMPLED, ""]
        done = subprocess.run(argv, env=dict(command.env), capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        ((service, span),) = received.spans
        assert (service, span.name, span.trace_id.hex()) == ("vllm", "llm_request", TRACE_ID)
        assert span.parent_span_id.hex() == "00f067aa0ba902b7"


MARKS = ("zebraprompt", "zebrasystem", "zebratool", "zebrakey", "zebrabad", "zebrauser", "zebraquery", "zebratenant")


async def ask_over_grpc(it: Fleet) -> None:
    """Well, and badly; marked."""
    async with grpc.aio.insecure_channel(it.grpc_target) as channel:
        generate = pb_grpc.InferenceStub(channel).Generate
        for fields in ({}, {"extra": {"zebrabad": 1}}, {"extra": {"prompt": "zebrabad"}}):
            request = make_request(**{"model": MODEL, "prompt": "zebraprompt", **fields})
            try:
                async for _ in generate(request, metadata=(("authorization", "Bearer zebrakey"),), timeout=20):
                    pass
            except grpc.aio.AioRpcError as error:
                assert fields, error


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_log_span_or_metric_has_prompts_answers_or_keys_in_it(tmp_path: Path, form: str) -> None:
    answers: list[str] = []
    with otlp_receiver() as received:

        async def test() -> None:
            telemetry = {"log_format": form, "log_level": "debug", "tenants": "hash"}
            router = {"explain": {"public": True, "headers": True, "record_dir": None}}
            async with traced(tmp_path, received, telemetry=telemetry, router=router) as it:
                breaks = Fault(
                    match=Match(route="/v1/completions", nth=2), action=Action.DISCONNECT_AFTER_CHUNKS, chunks=2
                )
                fails = Fault(match=Match(route="/v1/completions", nth=3), action=Action.STATUS)
                await it.add(Role.MIXED, "m1", Plan(faults=(breaks, fails)))
                await it.start_router()
                await it.wait_for_workers(["m1"])
                headers = {
                    "authorization": "Bearer zebrakey",
                    "traceparent": SAMPLED,
                    "x-headrace-tenant": "zebratenant",
                }
                for _ in range(5):
                    try:
                        answers.append((await stream(it, "zebraprompt " * 9, headers, user="zebrauser"))[1])
                    except Exception as error:
                        answers.append(type(error).__name__)
                for body in (
                    b"zebrabad", b'{"model": "zebrabad', b'{"model": "fake", "prompt": {"zebrabad": 1}}',
                    b'{"model": "fake", "messages": [{"role": "zebrasystem", "content": "zebraprompt"}]}',
                    b'{"model": "fake", "messages": [{"role": "user", "content": [{"type": "zebratool"}]}]}',
                    b'{"model": "fake", "prompt": "zebraprompt", "max_tokens": "zebrabad", "stream": "zebrabad"}',
                    b'{"model": "fake", "prompt": "zebraprompt \\ud800"}', b"\xff zebrabad",
                ):  # fmt: skip
                    for route in ("/v1/completions", "/v1/chat/completions?key=zebraquery"):
                        async with it.session.post(f"{it.url}{route}", data=body, headers=headers) as response:
                            await response.read()
                await ask_over_grpc(it)
                status, answer = await it.complete("zebraprompt")
                assert status == 200
                answers.append(answer["choices"][0]["text"])
                texts.append(await it.metrics())
                async with it.session.get(f"{it.url}/metrics", headers=OPENMETRICS) as response:
                    texts.append(await response.text())

        texts: list[str] = []
        run(test)
        logs = {path.name: path.read_text() for path in tmp_path.rglob("*.log")}
        router_log = next(text for name, text in logs.items() if name.startswith("router-"))
        assert "attempt" in router_log, "the failures above are in it"
        if form == "json":
            lines = [json.loads(line) for line in router_log.splitlines()]
            assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
            failed = [line for line in lines if "request_id" in line]
            assert failed
            assert {line["trace_id"] for line in failed} == {TRACE_ID}
        texts += [*logs.values(), *(str(span) for _, span in received.spans)]
        assert len(received.spans) > 20
        for mark in (*MARKS, answers[-1]):
            assert mark
            assert not any(mark in text for text in texts), mark
