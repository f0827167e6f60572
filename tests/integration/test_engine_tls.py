"""Engines behind TLS that want to see a certificate: routers, probes and load reports show theirs."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from tests.certificates import Certificates, make_certificates
from tests.fleet import fleet
from tests.tls_front import tls_front
from workers.engine_command import EnginePorts, build_engine_command
from workers.engine_probe import EngineNotAnsweringError, EngineProbe, engine_session
from workers.engine_tls import EngineTlsError, EngineTlsSettings, client_context
from workers.fake import FakeEngine, FakeSettings
from workers.ports import free_ports
from workers.settings import EngineSettings
from workers.types import Role


def tls(certificates: Certificates, **changed: Any) -> dict[str, Any]:
    return {
        "ca_file": str(certificates.ca_path),
        "client_cert_file": str(certificates.client_cert_path),
        "client_key_file": str(certificates.client_key_path),
        **changed,
    }


def test_a_joined_engine_is_asked_over_mutual_tls(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")

    async def test() -> None:
        (port,) = free_ports("127.0.0.1", 1)
        context = certificates.server_context()
        async with (
            fleet(tmp_path, engine={"tls": tls(certificates)}, router={"hand_off": "never"}) as made,
            FakeEngine(FakeSettings(model="fake")).serving() as engine,
        ):
            backend = int(engine.address.rpartition(":")[2])
            async with tls_front("127.0.0.1", port, backend, context, plain_too=False):
                await made.join(f"https://127.0.0.1:{port}", Role.MIXED, "m1")
                await made.start_router()
                await made.wait_for_workers(["m1"])
                status, answer = await made.complete("over TLS")
                assert status == 200, answer
                assert any(request.route == "/metrics" for request in engine.requests), "load is read over it too"

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("changed", [{"ca_file": None}, {"client_cert_file": None, "client_key_file": None}])
def test_who_knows_no_authority_or_shows_nothing_gets_no_answer(tmp_path: Path, changed: dict[str, Any]) -> None:
    certificates = make_certificates(tmp_path / "certificates")

    async def test() -> None:
        (port,) = free_ports("127.0.0.1", 1)
        settings = EngineSettings.model_validate({"tls": tls(certificates, **changed)})
        async with FakeEngine(FakeSettings(model="fake")).serving() as engine:
            backend = int(engine.address.rpartition(":")[2])
            async with (
                tls_front("127.0.0.1", port, backend, certificates.server_context(), plain_too=False),
                engine_session(settings) as session,
            ):
                probe = EngineProbe(session, f"https://127.0.0.1:{port}", settings)
                with pytest.raises(EngineNotAnsweringError):
                    await probe.identity()
                good = aiohttp.TCPConnector(ssl=client_context(EngineTlsSettings(**tls(certificates))) or True)
                async with aiohttp.ClientSession(connector=good) as trusted:
                    found = await EngineProbe(trusted, f"https://127.0.0.1:{port}", settings).identity()
                    assert found.model == "fake"

    asyncio.run(asyncio.wait_for(test(), 60))


def test_an_engine_is_started_with_its_certificates(tmp_path: Path) -> None:
    settings = EngineSettings.model_validate(
        {
            "tls": {
                "cert_file": "/c/tls.crt", "key_file": "/c/tls.key", "client_ca_file": "/c/ca.crt",
                "client_cert_file": "/c/r.crt", "client_key_file": "/c/r.key",
            }
        }
    )  # fmt: skip
    ports = EnginePorts(http=1, nixl_side_channel=2, kv_events=3, kv_replay=4)
    argv = build_engine_command(
        settings, role=Role.MIXED, model_path="/m", model_name="m", ports=ports, parent_env={}
    ).argv
    at = argv.index("--ssl-certfile")
    assert argv[at : at + 9] == (
        *("--ssl-certfile", "/c/tls.crt", "--ssl-keyfile", "/c/tls.key", "--enable-ssl-refresh"),
        *("--ssl-ca-certs", "/c/ca.crt", "--ssl-cert-reqs", "2"),
    )
    with pytest.raises(EngineTlsError, match=r"engine\.tls\.client_cert_file"):
        client_context(settings.tls)
    with pytest.raises(EngineTlsError, match=r"engine\.tls\.ca_file"):
        client_context(EngineTlsSettings(ca_file=str(tmp_path / "none")))
    assert client_context(None) is None


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"tls": {"cert_file": "a"}}, "cert_file and key_file"),
        ({"tls": {"client_key_file": "a"}}, "client_cert_file and client_key_file"),
        ({"tls": {"client_ca_file": "a"}}, "cert_file is missing"),
        ({"tls": {"cert_file": "a", "key_file": "b", "client_ca_file": "c"}}, "nobody here could ask"),
        ({"extra_args": ["--ssl-certfile=x"]}, "it is part of engine.tls"),
    ],
)
def test_settings_that_cannot_be_are_refused(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EngineSettings.model_validate(tree)
    assert words in str(caught.value)
