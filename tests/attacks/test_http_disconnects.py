"""Clients that go away at every stage, and those that only finish sending."""

import asyncio

import pytest

from router.http.message import HttpRequest
from router.http.reply import Reply
from tests.http_server import GET, post, run, serving, statuses, until

CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
INCOMPLETE = [
    b"", b"\r\n", b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n", GET[:-1],
    post(b"abc")[:-1],
    post(b"", framing="Content-Length: 1"), CHUNKED_HEAD, CHUNKED_HEAD + b"3", CHUNKED_HEAD + b"3\r\n",
    CHUNKED_HEAD + b"3\r\nab", CHUNKED_HEAD + b"3\r\nabc", CHUNKED_HEAD + b"3\r\nabc\r\n0\r\n",
    CHUNKED_HEAD + b"0\r\n\r",
]  # fmt: skip


@pytest.mark.parametrize("how", ["close", "reset", "finish sending"])
def test_half_a_request_holds_nothing(how: str) -> None:
    async def test() -> None:
        async with serving() as served:
            for data in INCOMPLETE:
                client = await served.connect()
                client.send(data)
                await asyncio.sleep(0.002)
                if how == "close":
                    client.writer.close()
                elif how == "reset":
                    client.reset()
                else:
                    client.writer.write_eof()
                    assert await client.read_all() == b""
            await until(lambda: served.server.num_connections == 0, "all are closed")
            assert not served.requests
            assert served.server.num_buffered_bytes == 0

    run(test)


async def wait_for_ever(_: HttpRequest, reply: Reply) -> None:
    await asyncio.Event().wait()


async def stream_for_ever(_: HttpRequest, reply: Reply) -> None:
    reply.start(200, {})
    while True:
        reply.write(b"data: x\n\n")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_goes_away_in_the_middle_of_a_stream(how: str, version: bytes) -> None:
    async def test() -> None:
        async with serving(stream_for_ever) as served:
            client = await served.connect()
            client.send(GET.replace(b"1.1", version))
            await client.read_head()
            if how == "close":
                client.writer.close()
            else:
                client.reset()
            await until(lambda: len(served.cancelled) == 1, "its handler is cancelled")
            await until(lambda: served.server.num_connections == 0, "nothing is left")

    run(test)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("more", [b"", GET, GET[:10], GET * 5000], ids=["alone", "pipelined", "and a half", "flood"])
def test_a_client_that_goes_away_before_its_answer_begins(how: str, more: bytes) -> None:
    """A closed socket and one that only finished sending look alike, until they are sent something."""

    async def test() -> None:
        async with serving(wait_for_ever, max_pipelined_bytes=2048) as served:
            client = await served.connect()
            client.send(post(b"abc") + more)
            await until(lambda: len(served.requests) == 1, "it is served")
            await asyncio.sleep(0.01)
            if how == "close":
                client.writer.close()
            else:
                client.reset()
            await until(lambda: len(served.cancelled) == 1, "its handler is cancelled")
            await until(lambda: served.server.num_connections == 0, "nothing is left")
            assert len(served.requests) == 1

    run(test)


def test_a_client_that_finished_sending_gets_its_answer() -> None:
    """Invariant 3 of router/http/connection.py."""

    async def test() -> None:
        async def late(request: HttpRequest, reply: Reply) -> None:
            await asyncio.sleep(0.3)
            reply.send(200, {}, request.body)

        async with serving(late) as served:
            received = await served.exchange(post(b"abc"))
            assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
            assert received.endswith(b"\r\n\r\nabc")
            received = await served.exchange(post(b"abc").replace(b"HTTP/1.1", b"HTTP/1.0"))
            assert received.startswith(b"HTTP/1.1 200 OK\r\n"), "HTTP/1.0 has no 100 Continue"
            assert not served.cancelled

    run(test)


def test_it_gets_its_stream_too() -> None:
    async def test() -> None:
        async def stream(request: HttpRequest, reply: Reply) -> None:
            reply.start(200, {})
            for _ in range(20):
                reply.write(b"x")
                await asyncio.sleep(0.01)
            reply.finish()

        async with serving(stream) as served:
            received = await served.exchange(GET)
            assert received.count(b"1\r\nx\r\n") == 20
            assert received.endswith(b"0\r\n\r\n")

    run(test)


def test_it_gets_the_answers_to_all_that_it_sent() -> None:
    async def test() -> None:
        async with serving() as served:
            received = await served.exchange(GET * 50 + post(b"abc") + GET[:5])
            assert statuses(received) == [200] * 51
            assert len(served.requests) == 51

    run(test)


def test_a_client_that_goes_away_as_its_answer_ends() -> None:
    async def test() -> None:
        async with serving() as served:
            for _ in range(50):
                client = await served.connect()
                client.send(GET)
                client.reset()
            await until(lambda: served.server.num_connections == 0, "all are closed")

    run(test)
