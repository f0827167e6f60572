"""TLS of the gRPC port: who may connect, and certificates that change while it runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from router.grpc_server import GrpcServer
from router.settings import GrpcSettings, RouterSettings
from router.tls import TlsError
from router.tls_settings import TlsSettings
from router.tracing import NoTracing
from tests.certificates import Certificates, make_certificates
from tests.grpc_door import Door, failure, make_request, open_door_to_fake, run


@dataclass
class Port:
    """A gRPC port with certificates."""

    number: int

    @asynccontextmanager
    async def client(
        self, trusted: Certificates, shown: Certificates | None = None
    ) -> AsyncIterator[pb_grpc.InferenceStub]:
        """One connection of its own."""
        credentials = grpc.ssl_channel_credentials(
            trusted.ca_path.read_bytes(),
            shown.client_key_path.read_bytes() if shown else None,
            shown.client_cert_path.read_bytes() if shown else None,
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.number}", credentials, options) as channel:
            yield pb_grpc.InferenceStub(channel)

    async def answers(self, trusted: Certificates, shown: Certificates | None = None) -> bool:
        """Whether a new connection is served."""
        async with self.client(trusted, shown) as stub:
            try:
                return await tokens_of(stub) == 3
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return False


async def tokens_of(stub: pb_grpc.InferenceStub) -> int:
    responses = [response async for response in stub.Generate(make_request(sampling={"maxTokens": 3}))]
    return int(responses[-1].usage.completion_tokens)


@asynccontextmanager
async def open_port(door: Door, tls: dict[str, str]) -> AsyncIterator[Port]:
    settings = TlsSettings(**{"reload_check_s": 0.1, **tls})
    server = GrpcServer(
        door.service, door.desk, RouterSettings(grpc=GrpcSettings(port=0, tls=settings), drain_s=1.0), NoTracing()
    )
    port = await server.start("127.0.0.1", 0)
    try:
        yield Port(port)
    finally:
        await server.stop()


def test_calls_over_tls(tmp_path: Path) -> None:
    async def test() -> None:
        ours, others = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
        async with (
            open_door_to_fake() as (door, _),
            open_port(door, ours.install(tmp_path / "used")) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port.number}") as plain,
        ):
            assert await port.answers(ours)
            assert not await port.answers(others)
            error = await failure(pb_grpc.InferenceStub(plain).Generate(make_request()))
            assert error.code() is grpc.StatusCode.UNAVAILABLE

    run(test())


def test_clients_may_have_to_show_a_certificate(tmp_path: Path) -> None:
    async def test() -> None:
        ours, others = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
        tls = {**ours.install(tmp_path / "used"), "client_ca_file": str(ours.ca_path)}
        async with open_door_to_fake() as (door, _), open_port(door, tls) as port:
            assert await port.answers(ours, shown=ours)
            assert not await port.answers(ours)
            assert not await port.answers(ours, shown=others)

    run(test())


def test_new_connections_get_the_new_certificate_and_old_ones_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        first, second = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
        async with (
            open_door_to_fake() as (door, _),
            open_port(door, first.install(tmp_path / "used")) as port,
            port.client(first) as old,
        ):
            assert await tokens_of(old) == 3
            second.install(tmp_path / "used")
            async with asyncio.timeout(10.0):
                while not await port.answers(second):
                    await asyncio.sleep(0.05)
            assert not await port.answers(first)
            assert await tokens_of(old) == 3
            (tmp_path / "used" / "tls.crt").write_text("nothing")
            assert await port.answers(second), "files that cannot be used leave the certificate in place"

    run(test())


def test_a_server_does_not_start_with_what_it_cannot_use(tmp_path: Path) -> None:
    async def test() -> None:
        tls = make_certificates(tmp_path / "1").install(tmp_path / "used")
        (tmp_path / "used" / "tls.key").write_text("nothing")
        async with open_door_to_fake() as (door, _):
            with pytest.raises(TlsError, match=r"router\.grpc\.tls: .*tls\.key"):
                async with open_port(door, tls):
                    pass

    run(test())
