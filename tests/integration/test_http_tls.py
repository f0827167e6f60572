"""TLS of the router's HTTP server: certificates that change while it runs. Invariant 2 of router/http/server.py."""

import asyncio
import logging
import shutil
import ssl
from pathlib import Path

import pytest

from router.http.message import HttpRequest
from router.http.reply import Reply
from router.tls import TlsError, build_context
from router.tls_settings import TlsSettings
from tests.certificates import Certificates, make_certificates
from tests.http_server import GET, Client, Served, post, run, serving, until


def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.ca_path))


async def can_connect(served: Served, context: ssl.SSLContext) -> bool:
    try:
        client = await served.connect(ssl=context)
        client.send(GET)
        return (await client.answer())[0] == 200
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return False


def test_requests_over_tls(tmp_path: Path) -> None:
    async def test() -> None:
        certificates = make_certificates(tmp_path / "made")
        async with serving(tls=certificates.install(tmp_path / "used")) as served:
            context = trusting(certificates)
            context.set_alpn_protocols(["h2", "http/1.1"])
            client = await served.connect(ssl=context)
            assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            for _ in range(2):
                client.send(post(b"x" * 300_000))
                assert (await client.answer())[0] == 200
            plain = await served.connect()
            plain.send(GET)
            assert b"HTTP" not in await plain.read_all()

    run(test)


def test_new_connections_get_the_new_certificate_and_old_ones_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        first, second = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
        folder = tmp_path / "used"
        async with serving(tls=first.install(folder)) as served:
            old = await served.connect(ssl=trusting(first))
            old.send(GET)
            assert (await old.answer())[0] == 200
            second.install(folder)
            assert await served.server.reload_certificates()
            assert await can_connect(served, trusting(second))
            assert not await can_connect(served, trusting(first))
            old.send(GET)
            assert (await old.answer())[0] == 200

    run(test)


def test_files_that_change_are_read_without_being_asked(tmp_path: Path) -> None:
    async def test() -> None:
        first, second = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
        tls = {**first.install(tmp_path / "used"), "reload_check_s": 0.1}
        async with serving(tls=tls) as served:
            assert await can_connect(served, trusting(first))
            second.install(tmp_path / "used")
            for _ in range(100):
                if await can_connect(served, trusting(second)):
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("the new certificate is not used")

    run(test)


def test_nobody_is_refused_while_certificates_change(tmp_path: Path) -> None:
    async def test() -> None:
        certificates = make_certificates(tmp_path / "1")
        async with serving(tls=certificates.install(tmp_path / "used")) as served:
            done = asyncio.Event()

            async def connect_again_and_again() -> int:
                times = 0
                while not done.is_set():
                    assert await can_connect(served, trusting(certificates))
                    times += 1
                return times

            clients = [asyncio.create_task(connect_again_and_again()) for _ in range(4)]
            for _ in range(10):
                assert await served.server.reload_certificates()
                await asyncio.sleep(0.02)
            done.set()
            assert min(await asyncio.gather(*clients)) > 0

    run(test)


def test_files_that_cannot_be_used_leave_the_old_certificate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        certificates, other = make_certificates(tmp_path / "1"), make_certificates(tmp_path / "2")
        folder = tmp_path / "used"
        async with serving(tls={**certificates.install(folder), "reload_check_s": 0.1}) as served:
            shutil.copy(other.server_key_path, folder / "tls.key")  # of another certificate
            await until(lambda: "tls.key" in caplog.text, "it is logged")
            await asyncio.sleep(0.5)
            assert caplog.text.count("connections go on") == 1
            assert not await served.server.reload_certificates(if_changed=True)
            assert await can_connect(served, trusting(certificates))
            other.install(folder)
            assert await served.server.reload_certificates()
            assert await can_connect(served, trusting(other))

    with caplog.at_level(logging.INFO, "router.tls"):
        run(test)


def test_a_server_does_not_start_with_files_that_cannot_be_used(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "1")
    good = certificates.install(tmp_path / "used")
    for change in (
        {"cert_file": "/nowhere.pem"},
        {"key_file": good["cert_file"]},
        {"client_ca_file": good["key_file"]},
    ):
        with pytest.raises(TlsError, match=r"router\.http\.tls"):
            build_context(TlsSettings(**{**good, **change}), "router.http.tls")


def test_clients_may_have_to_show_a_certificate(tmp_path: Path) -> None:
    async def test() -> None:
        certificates = make_certificates(tmp_path / "1")
        tls = {**certificates.install(tmp_path / "used"), "client_ca_file": str(certificates.ca_path)}
        async with serving(tls=tls) as served:
            context = trusting(certificates)
            assert not await can_connect(served, context)
            context.load_cert_chain(certificates.client_cert_path, certificates.client_key_path)
            assert await can_connect(served, context)

    run(test)


def test_a_client_that_closes_cancels_its_request(tmp_path: Path) -> None:
    async def test() -> None:
        async def wait(_: HttpRequest, reply: Reply) -> None:
            await asyncio.Event().wait()

        certificates = make_certificates(tmp_path / "1")
        async with serving(wait, tls=certificates.install(tmp_path / "used"), linger_s=0.1) as served:
            client: Client = await served.connect(ssl=trusting(certificates))
            client.send(GET)
            await until(lambda: len(served.requests) == 1, "it is served")
            client.writer.close()
            await until(lambda: len(served.cancelled) == 1, "its handler is cancelled")

    run(test)
