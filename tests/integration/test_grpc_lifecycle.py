"""Deadlines, cancellation, health and shutdown of the gRPC front door."""

import asyncio
import socket
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore.types import WorkerId
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from router.grpc_server import GrpcServer
from router.http_listener import PortTakenError
from router.settings import RouterSettings
from router.tracing import NoTracing
from tests.grpc_door import (
    SERVICE,
    chunk,
    eventually,
    failure,
    make_request,
    make_worker_at,
    mutable_proxy,
    open_door,
    open_door_to_fake,
    open_door_to_script,
    run,
    sse,
)
from workers.membership import Joined, Left


def test_the_deadline_stops_the_engine() -> None:
    async def test() -> None:
        async with open_door_to_fake(decode_s_per_token=0.05) as (door, engine):
            call = door.stub.Generate(make_request(sampling={"maxTokens": 1000}), timeout=0.5)
            await eventually(lambda: engine.running_seqs == 1)
            error = await failure(call)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: engine.running_seqs == 0, timeout_s=2.0)

    run(test())


def test_cancelling_stops_the_engine() -> None:
    async def test() -> None:
        async with open_door_to_fake(decode_s_per_token=0.05) as (door, engine):
            call = door.stub.Generate(make_request(sampling={"maxTokens": 1000}))
            await anext(aiter(call))
            assert engine.running_seqs == 1
            call.cancel()
            await eventually(lambda: engine.running_seqs == 0, timeout_s=2.0)
            await door.settle()
            assert b"headrace_requests_cancelled_total 1.0" in door.service.metrics.exposition()

    run(test())


def test_the_deadline_of_a_client_that_fell_silent_is_kept() -> None:
    """Only the router's side can end this one: the client's own reset never arrives."""

    async def test() -> None:
        async with (
            open_door_to_fake(decode_s_per_token=0.05) as (door, engine),
            mutable_proxy(door.port) as (port, mute),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            stub = pb_grpc.InferenceStub(channel)
            call = stub.Generate(make_request(sampling={"maxTokens": 1000}), timeout=0.5)
            await anext(aiter(call))
            mute()
            await eventually(lambda: engine.running_seqs == 0, timeout_s=3.0)
            await door.settle()

    run(test())


def test_a_client_that_does_not_read_holds_the_engine_back_and_learns_of_a_lost_worker() -> None:
    async def test() -> None:
        pieces = sse(*[chunk("x" * 20_000)] * 2000)
        async with open_door_to_script(*pieces) as (door, engine):
            call = door.stub.Generate(make_request())
            await eventually(lambda: engine.num_sent > 0)
            num_sent = 0
            while engine.num_sent > num_sent:  # until the buffers on the way are full
                num_sent = engine.num_sent
                await asyncio.sleep(0.3)
            assert num_sent < len(pieces)
            door.service.on_membership(Left(WorkerId("w1"), "test"))
            await eventually(lambda: engine.num_running == 0)
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "gone while it worked" in (error.details() or "")

    run(test())


def test_health_follows_the_fleet() -> None:
    async def test() -> None:
        async with open_door() as door:
            stub = health_pb2_grpc.HealthStub(door.channel)
            serving, not_serving = (health_pb2.HealthCheckResponse(status=name) for name in ("SERVING", "NOT_SERVING"))

            async def check(name: str) -> Any:
                return await stub.Check(health_pb2.HealthCheckRequest(service=name))

            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert await watch.read() == not_serving
            assert [await check(""), await check(SERVICE)] == [not_serving] * 2
            door.service.on_membership(Joined(make_worker_at("http://127.0.0.1:1")))
            assert [await check(""), await check(SERVICE)] == [serving] * 2
            assert await watch.read() == serving
            listed = await stub.List(health_pb2.HealthListRequest())
            assert dict(listed.statuses) == {"": serving, SERVICE: serving}
            door.service.on_membership(Left(WorkerId("w1"), "test"))
            assert await check("") == not_serving
            assert (await failure(check("other"))).code() is grpc.StatusCode.NOT_FOUND
            door.service.on_membership(Joined(make_worker_at("http://127.0.0.1:1")))
            stopping_at_s = time.monotonic()
            await door.server.stop()
            assert time.monotonic() - stopping_at_s < 3.0  # a watcher does not use up drain_s
            assert await watch.read() == not_serving
            assert await watch.read() is grpc.aio.EOF

    run(test())


def test_reflection_lists_the_services() -> None:
    async def test() -> None:
        async with open_door() as door:
            stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([asked]))]
            names = {service.name for service in answer.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
            asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
            (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([asked]))]
            assert answer.file_descriptor_response.file_descriptor_proto

    run(test())


def test_a_stop_lets_calls_finish() -> None:
    async def test() -> None:
        async with open_door_to_fake(decode_s_per_token=0.02) as (door, _):
            call = door.stub.Generate(make_request(sampling={"maxTokens": 20}))
            await anext(aiter(call))
            stop = asyncio.create_task(door.server.stop())
            responses = [response async for response in call]
            assert responses[-1].usage.completion_tokens == 20
            await stop

    run(test())


def test_a_stop_cuts_what_does_not_finish() -> None:
    async def test() -> None:
        async with open_door_to_fake(decode_s_per_token=0.05) as (door, engine):
            door.server = GrpcServer(door.service, door.desk, RouterSettings(drain_s=0.3), NoTracing())
            port = await door.server.start("127.0.0.1", 0)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = pb_grpc.InferenceStub(channel).Generate(make_request(sampling={"maxTokens": 1000}))
                await anext(aiter(call))
                await door.server.stop()
                assert door.service.num_in_flight == 0
                await eventually(lambda: engine.running_seqs == 0, timeout_s=2.0)
                assert (await failure(call)).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

    run(test())


def test_a_port_that_is_taken_names_its_setting_and_routers_share_one() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with open_door() as door:
                settings = RouterSettings()
                with pytest.raises(PortTakenError, match=r"router\.grpc\.port"):
                    await GrpcServer(door.service, door.desk, settings, NoTracing()).start(
                        "127.0.0.1", taken.getsockname()[1]
                    )
                second = GrpcServer(door.service, door.desk, settings, NoTracing())
                assert await second.start("127.0.0.1", door.port) == door.port
                await second.stop()

    run(test())
