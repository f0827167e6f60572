"""Behind a real Envoy: where requests go, what clients see, and that whatever was reserved is released."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from grpc.aio import insecure_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvstore.types import WorkerId
from router.admin_tokens import digest_of
from router.identity_settings import IdentitySettings
from router.latency import LatencyPrior
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from tests.builders import make_core
from tests.certificates import make_certificates
from tests.envoy_proxy import endpoint
from tests.gateway import Gateway, open_gateway
from tests.grpc_door import MODEL, ScriptedEngine, chunk, eventually, make_worker_at, reference, run, sse
from workers.fake import FakeEngine, FakeSettings, Plan
from workers.fake.plan import Timing
from workers.membership import Joined, Left
from workers.ports import free_ports
from workers.types import Role

MODES = [
    ("FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED"),
    ("FULL_DUPLEX_STREAMED", "NONE"),
    ("BUFFERED", "STREAMED"),
    ("BUFFERED", "BUFFERED"),
    ("BUFFERED", "NONE"),
]
SLOW_DECODE = Plan(timing=Timing(decode_s_per_token=0.02))


async def fake(stack: AsyncExitStack, plan: Plan | None = None) -> FakeEngine:
    return await stack.enter_async_context(FakeEngine(FakeSettings(model=MODEL, plan=plan or Plan())).serving())


def served(engine: FakeEngine) -> int:
    return sum(request.route in (COMPLETION_ROUTE, CHAT_ROUTE) for request in engine.requests)


@pytest.mark.parametrize(("request_body", "response_body"), MODES)
def test_answers_are_the_engines_own(tmp_path: Path, request_body: str, response_body: str) -> None:
    async def test() -> None:
        modes: dict[str, Any] = {"request_body": request_body, "response_body": response_body}
        async with AsyncExitStack() as stack:
            engine = await fake(stack)
            gateway = await stack.enter_async_context(open_gateway(tmp_path, make_worker_at(engine.address), **modes))
            expected = await reference(engine, COMPLETION_ROUTE, model=MODEL, prompt="hello", max_tokens=6)
            status, answer, headers = await gateway.ask()
            assert (status, answer["choices"]) == (200, expected["choices"])
            assert answer["usage"]["completion_tokens"] == 6
            assert len(headers["x-request-id"]) == 36, "Envoy's own"
            async with gateway.stream(stream_options={"include_usage": True}) as response:
                events = (await response.text()).split("\n\n")
            texts = [json.loads(event[6:])["choices"] for event in events[:-2]]
            assert "".join(choice[0]["text"] for choice in texts if choice) == expected["choices"][0]["text"]
            assert events[-2:] == ["data: [DONE]", ""]
            await gateway.door.settle()
            requests = f'headrace_requests_total{{route="{COMPLETION_ROUTE}",status="200"}}'
            assert gateway.metric(requests) == 2
            # What the body of the answer says is known where the gateway shows it.
            assert gateway.metric("headrace_ttft_seconds_count") == (response_body != "NONE")

    run(test())


def test_what_the_client_sent_is_what_the_engine_gets(tmp_path: Path) -> None:
    async def test() -> None:
        engine = ScriptedEngine([b'{"choices": []}'], headers={"content-type": "application/json"})
        async with engine.serving(), open_gateway(tmp_path, make_worker_at(engine.address)) as gateway:
            prompt = "x" * 3_000_000
            body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 6}).encode()

            async def in_pieces() -> AsyncIterator[bytes]:
                for start in range(0, len(body), 1000):
                    yield body[start : start + 1000]

            headers = {"x-data-parallel-rank": "3", "x-gateway-destination-endpoint": "127.0.0.1:1", "x-own": "kept"}
            for data in (io.BytesIO(body), in_pieces()):
                url = f"{gateway.envoy.url}{COMPLETION_ROUTE}"
                async with gateway.session.post(url, data=data, headers=headers) as response:
                    assert response.status == 200
            assert [sent["prompt"] == prompt for sent in engine.bodies] == [True, True]
            for seen in engine.seen_headers:
                assert seen["x-own"] == "kept"
                assert "x-data-parallel-rank" not in seen, "clients do not choose the rank"
                assert seen["x-gateway-destination-endpoint"] == endpoint(engine.address)

    run(test())


def test_over_tls(tmp_path: Path) -> None:
    async def test() -> None:
        certificates = make_certificates(tmp_path / "made")
        async with AsyncExitStack() as stack:
            engine = await fake(stack)
            router = {"endpoint_picker": {"tls": certificates.install(tmp_path / "used")}}
            worker = make_worker_at(engine.address)
            gateway = await stack.enter_async_context(
                open_gateway(tmp_path, worker, router=router, picker_ca=certificates.ca_path)
            )
            assert [(await gateway.ask())[0] for _ in range(3)] == [200, 200, 200]

    run(test())


@pytest.mark.parametrize("request_body", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
def test_bad_requests_are_answered_without_an_engine(tmp_path: Path, request_body: str) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await fake(stack)
            options: dict[str, Any] = {"request_body": request_body, "router": {"max_body_bytes": 100_000}}
            gateway = await stack.enter_async_context(open_gateway(tmp_path, make_worker_at(engine.address), **options))
            long = json.dumps({"model": MODEL, "prompt": "x" * 200_000})

            async def in_pieces() -> AsyncIterator[bytes]:
                yield long.encode()

            cases: list[tuple[dict[str, Any], int, str]] = [
                ({"model": "none"}, 404, "model_not_found"),
                ({"raw": b'{"model": '}, 400, "invalid_json"),
                ({"raw": b"\xff"}, 400, "invalid_json"),
                ({"stream": "yes"}, 400, "invalid_type"),
                ({"kv_transfer_params": {}}, 400, "reserved_field"),
                ({"route": "/scale_elastic_ep"}, 404, "unknown_route"),
                ({"route": "/v1/modelsx"}, 404, "unknown_route"),
                ({"route": "/v1/models"}, 405, "method_not_allowed"),
                ({"raw": long}, 413, "body_too_large"),
                ({"raw": in_pieces()}, 413, "body_too_large"),
            ]
            for fields, status, code in cases:
                answered, answer, headers = await gateway.ask(**fields)
                assert (answered, answer["error"]["code"]) == (status, code)
                assert headers["content-type"] == "application/json"
            assert served(engine) == 0

    run(test())


def test_clients_find_the_models(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_gateway(tmp_path, make_worker_at("http://127.0.0.1:1")) as gateway:
            for path, status in (("/v1/models", 200), (f"/v1/models/{MODEL}", 200), ("/v1/models/none", 404)):
                async with gateway.session.get(f"{gateway.envoy.url}{path}") as response:
                    assert response.status == status
                    answer = await response.json()
                if path == "/v1/models":
                    assert [card["id"] for card in answer["data"]] == [MODEL]

    run(test())


@pytest.mark.parametrize("request_body", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
def test_keys_and_limits_hold_and_bodies_stay_as_they_are(tmp_path: Path, request_body: str) -> None:
    async def test() -> None:
        tenants = {"acme": {"requests_per_min": 2}}
        keys = {digest_of("hr-acme"): {"tenant": "acme"}, digest_of("hr-other"): {"tenant": "other"}}
        identity = IdentitySettings.model_validate({"required": True, "keys": keys, "tenants": tenants})
        async with AsyncExitStack() as stack:
            engine = await fake(stack)
            worker = make_worker_at(engine.address)
            opened = open_gateway(tmp_path, worker, identity=identity, request_body=request_body)
            gateway = await stack.enter_async_context(opened)
            for headers in ({}, {"authorization": "Bearer hr-wrong"}):
                status, answer, _ = await gateway.ask(headers=headers)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                async with gateway.session.get(f"{gateway.envoy.url}/v1/models", headers=headers) as response:
                    assert response.status == 401
            statuses = [(await gateway.ask(headers={"authorization": "Bearer hr-acme"}))[0] for _ in range(3)]
            assert statuses == [200, 200, 429]
            sent = [json.loads(seen.body) for seen in engine.requests if seen.route == COMPLETION_ROUTE]
            assert len(sent) == 2 and not any("cache_salt" in body for body in sent)

    run(test())


def test_a_client_that_goes_away_gives_back_what_was_reserved(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await fake(stack, SLOW_DECODE)
            gateway = await stack.enter_async_context(open_gateway(tmp_path, make_worker_at(engine.address)))
            async with gateway.stream(max_tokens=1000) as response:
                await response.content.readany()
                assert gateway.reserved() == {"w1": 1}
            await gateway.door.settle()
            assert gateway.metric("headrace_requests_cancelled_total") == 1
            await eventually(lambda: engine.aborted == 1)

    run(test())


def test_a_request_waits_its_turn_on_the_stream(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await fake(stack, Plan(timing=Timing(prefill_s_fixed=1.0)))
            core = make_core(prior=LatencyPrior(prefill_tokens_per_s=100.0))
            worker = make_worker_at(engine.address)
            # Envoy has no timer in this mode, whatever its configuration says.
            gateway = await stack.enter_async_context(open_gateway(tmp_path, worker, core=core, message_timeout_s=0.1))
            first = asyncio.create_task(gateway.ask(prompt="x" * 1200, headers={"x-headrace-ttft-s": "60"}))
            await eventually(lambda: gateway.reserved() == {"w1": 1})
            patient = asyncio.create_task(gateway.ask(headers={"x-headrace-ttft-s": "60"}))
            await eventually(lambda: core.num_waiting == 1)
            leaving = asyncio.create_task(gateway.ask(headers={"x-headrace-ttft-s": "60"}))
            await eventually(lambda: core.num_waiting == 2)
            leaving.cancel()
            await eventually(lambda: core.num_waiting == 1)

            status, answer, headers = await gateway.ask(headers={"x-headrace-ttft-s": "1"})
            assert (status, answer["error"]["code"]) == (429, "ttft_infeasible")
            assert int(headers["retry-after"]) >= 1
            assert (await first)[0] == 200
            assert (await patient)[0] == 200
            assert served(engine) == 2

    run(test())


def test_nobody_to_serve_is_said_with_a_time_to_come_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_gateway(tmp_path) as gateway:
            status, answer, headers = await gateway.ask()
            assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "no_worker", "2")

    run(test())


def test_an_engine_that_cannot_be_reached(tmp_path: Path) -> None:
    async def test() -> None:
        (closed,) = free_ports("127.0.0.1", 1)
        async with open_gateway(tmp_path, make_worker_at(f"http://127.0.0.1:{closed}")) as gateway:
            async with gateway.stream() as response:
                assert response.status == 503, "Envoy's own"
            await gateway.door.settle()
            assert gateway.metric('headrace_failed_attempts_total{worker="w1"}') == 1

    run(test())


def test_an_engine_that_has_no_ip_address_is_not_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with open_gateway(tmp_path, make_worker_at("http://engine.local:8000")) as gateway:
            status, answer, _ = await gateway.ask()
            assert (status, answer["error"]["code"]) == (502, "attempts_exhausted")

    run(test())


def test_an_engine_that_breaks_off(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await fake(stack, SLOW_DECODE)
            gateway = await stack.enter_async_context(open_gateway(tmp_path, make_worker_at(engine.address)))
            async with gateway.stream(max_tokens=1000) as response:
                await response.content.readany()
                engine.die()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()

    run(test())


def test_a_worker_that_leaves_is_released_while_its_answer_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await fake(stack, SLOW_DECODE)
            gateway = await stack.enter_async_context(open_gateway(tmp_path, make_worker_at(engine.address)))
            async with gateway.stream(max_tokens=30) as response:
                await response.content.readany()
                gateway.door.service.on_membership(Left(WorkerId("w1"), "its lease ran out"))
                await gateway.door.settle()
                assert gateway.metric('headrace_failed_attempts_total{worker="w1"}') == 1
                assert (await response.text()).endswith("data: [DONE]\n\n")

    run(test())


@pytest.mark.parametrize(
    ("pieces", "status", "failures"),
    [
        ([b'{"error": {"message": "no", "code": 400}}'], 400, 0),
        ([b'{"error": {"message": "oh", "code": 500}}'], 500, 1),
        (sse({"error": {"message": "out of memory", "code": 500}}), 200, 1),
        (sse(chunk("a")), 200, 0),
    ],
)
def test_what_an_engine_says_is_passed_on_and_counted(
    tmp_path: Path, pieces: list[bytes], status: int, failures: int
) -> None:
    async def test() -> None:
        engine = ScriptedEngine(pieces, status=status)
        async with engine.serving(), open_gateway(tmp_path, make_worker_at(engine.address)) as gateway:
            async with gateway.stream() as response:
                assert (response.status, await response.read()) == (status, b"".join(pieces))
            await gateway.door.settle()
            assert gateway.metric('headrace_failed_attempts_total{worker="w1"}') == failures

    run(test())


def test_a_gateway_sends_a_request_to_one_worker_so_nothing_is_handed_off(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            prefill, decode = await fake(stack), await fake(stack)
            fleet = (
                make_worker_at(prefill.address, "p1", role=Role.PREFILL),
                make_worker_at(decode.address, "d1", role=Role.DECODE),
            )
            gateway = await stack.enter_async_context(open_gateway(tmp_path, *fleet))
            for _ in range(3):
                assert (await gateway.ask(prompt="a prompt of more than one block " * 20))[0] == 200
            assert (served(prefill), served(decode)) == (0, 3)

    run(test())


@pytest.mark.parametrize("allowed", [["b"], ["a", "b"], []])
def test_only_endpoints_that_the_gateway_allows_are_chosen(tmp_path: Path, allowed: list[str]) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engines = {name: await fake(stack) for name in ("a", "b", "c")}
            fleet = [make_worker_at(engine.address, name) for name, engine in engines.items()]
            subset = [endpoint(engines[name].address) for name in allowed] + ["127.0.0.9:1"]
            gateway = await stack.enter_async_context(open_gateway(tmp_path, *fleet, subset=subset))
            answers = await asyncio.gather(*(gateway.ask(prompt=f"question {number}") for number in range(12)))
            assert {status for status, _, _ in answers} == ({200} if allowed else {503})
            if not allowed:
                assert "gateway allows" in answers[0][1]["error"]["message"]
                assert answers[0][2]["retry-after"] == "2"
            assert {name for name, engine in engines.items() if served(engine)} == set(allowed)

    run(test())


def test_a_gateway_with_a_pool_tries_the_endpoints_in_order(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            alive = await fake(stack)
            (closed,) = free_ports("127.0.0.1", 1)
            # The closed one looks cheaper: nothing runs there.
            fleet = (make_worker_at(f"http://127.0.0.1:{closed}", "a"), make_worker_at(alive.address, "b"))
            options: dict[str, Any] = {"router": {"endpoint_picker": {"fallbacks": 2}}, "knows_pool": True}
            gateway = await stack.enter_async_context(open_gateway(tmp_path, *fleet, **options))
            seen = set()
            for number in range(8):
                async with gateway.stream(prompt=f"question {number}") as response:
                    assert response.status == 200
                    assert (await response.text()).endswith("data: [DONE]\n\n")
                await gateway.door.settle()
                seen |= {gateway.metric(f'headrace_failed_attempts_total{{worker="{name}"}}') for name in "ab"}
            assert served(alive) == 8
            async with gateway.session.get(f"{gateway.envoy.admin_url}/stats?filter=engines.upstream_cx_conn") as stats:
                failed = [line for line in (await stats.text()).splitlines() if "connect_fail:" in line]
            assert int(failed[0].split()[-1]) > 0, "the closed one was named first, sometimes"
            assert seen == {0.0}, "the gateway does not say that an endpoint failed"

    run(test())


@pytest.mark.parametrize(
    ("request_body", "fail_open", "status"),
    [("BUFFERED", True, 200), ("BUFFERED", False, 500), ("FULL_DUPLEX_STREAMED", True, 500)],
)
def test_without_a_picker_only_a_gateway_that_has_kept_the_body_can_go_on(
    tmp_path: Path, request_body: str, fail_open: bool, status: int
) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            engine = await fake(stack)
            options: dict[str, Any] = {"knows_pool": True, "fail_open": fail_open, "request_body": request_body}
            gateway = await stack.enter_async_context(open_gateway(tmp_path, make_worker_at(engine.address), **options))
            assert (await gateway.ask())[0] == 200
            await gateway.picker.stop()
            headers = {"content-type": "application/json"}
            body = json.dumps({"model": MODEL, "prompt": "hello", "max_tokens": 6})
            url = f"{gateway.envoy.url}{COMPLETION_ROUTE}"
            async with gateway.session.post(url, data=body, headers=headers) as response:
                assert response.status == status

    run(test())


def test_health_has_the_names_of_the_protocol(tmp_path: Path) -> None:
    async def health(gateway: Gateway) -> dict[str, str]:
        async with insecure_channel(f"127.0.0.1:{gateway.picker_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            statuses = (await stub.List(health_pb2.HealthListRequest())).statuses
            return {name: health_pb2.HealthCheckResponse.ServingStatus.Name(s.status) for name, s in statuses.items()}

    async def test() -> None:
        names = {"", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"}
        async with open_gateway(tmp_path) as gateway:
            assert await health(gateway) == {name: "NOT_SERVING" for name in names} | {"liveness": "SERVING"}
            gateway.door.service.on_membership(Joined(make_worker_at("http://127.0.0.1:1")))
            assert await health(gateway) == {name: "SERVING" for name in (*names, "liveness")}

    run(test())
