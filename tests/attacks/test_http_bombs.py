"""Too much of everything: heads, bodies, connections, pipelined requests."""

import asyncio
import json

import pytest

from router.http.message import HttpRequest
from router.http.reply import Reply
from tests.http_server import GET, Served, post, run, serving, statuses, until

CHUNKED = "Transfer-Encoding: chunked"


async def pour(served: Served, start: bytes, more: bytes, times: int) -> bytes:
    """Send `start`, then `more` again and again until the server answers."""
    client = await served.connect()
    answer = asyncio.create_task(client.read_all())
    client.send(start)
    for _ in range(times):
        if answer.done():
            break
        client.send(more)
        await asyncio.sleep(0)
    return await answer


@pytest.mark.parametrize(
    ("start", "more", "status"),
    [
        (b"GET /", b"a" * 1000, 414),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 100, 431),
        (b"GET / HTTP/1.1\r\nA: ", b"b" * 1000, 431),
        (b"GET / HTTP/1.1\r\n", b"a" * 1000, 431),
        (b"A" * 100, b"A" * 1000, 400),
        (post(b"", framing=CHUNKED), b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n", 413),
        (post(b"", framing=CHUNKED) + b"1", b";a" * 500, 400),
        (post(b"", framing=CHUNKED), b"1;a=b\r\nx\r\n" * 100, 400),
        (post(b"", framing=CHUNKED) + b"0\r\n", b"A: b\r\n" * 100, 400),
        (post(b"", framing="Content-Length: 1048577"), b"x" * 10_000, 413),
    ],
)
def test_a_bomb_is_refused_long_before_it_is_over(start: bytes, more: bytes, status: int) -> None:
    async def test() -> None:
        async with serving(linger_s=0.2) as served:
            received = await pour(served, start, more, times=10_000)
            assert statuses(received) == [status], received
            assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
            assert not served.requests

    run(test)


def test_a_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    async def test() -> None:
        async with serving(linger_s=0.1) as served:
            client = await served.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\nExpect: 100-continue\r\n\r\n")
            received = await client.read_all()
            assert received.startswith(b"HTTP/1.1 413 "), "and no 100 Continue"
            assert b"router.max_body_bytes" in received

    run(test)


def test_a_refusal_reaches_a_client_that_goes_on_sending() -> None:
    """RFC 9112 section 9.6: a reset would overtake it."""

    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            client.send(post(b"x" * 8_000_000))
            status, headers, body = await client.answer()
            assert status == 413
            assert headers["connection"] == "close"
            assert json.loads(body)["error"]["code"] == "body_too_large"

    run(test)


def test_all_bodies_together_are_bounded() -> None:
    async def test() -> None:
        async with serving(max_buffered_bytes=1 << 17, linger_s=0.1) as served:
            clients = [await served.connect() for _ in range(4)]
            for client in clients:
                client.send(post(b"x" * 50_000, framing="Content-Length: 60000"))
            await until(lambda: served.server.counters.shed == 2, "two of four are too much")
            assert served.server.num_buffered_bytes <= 1 << 17
            small = await served.connect()
            small.send(post(b"abc"))
            assert (await small.answer())[0] == 200, "what comes in one piece needs no room"
            for client in clients:
                client.send(b"x" * 10_000)
            await until(lambda: len(served.requests) == 3, "the two others are served")
            assert served.server.num_buffered_bytes == 0
            for client in clients:
                client.reset()

    run(test)


def test_pipelined_requests_wait_as_bytes_and_those_are_bounded() -> None:
    """Invariant 1 of router/http/connection.py."""

    async def test() -> None:
        go_on = asyncio.Event()

        async def handler(_: HttpRequest, reply: Reply) -> None:
            await go_on.wait()
            reply.send(200, {}, b"")

        async with serving(handler, max_pipelined_bytes=4096) as served:
            client = await served.connect()
            client.send(GET * 500_000)  # 15 MB, more than sockets hold
            await until(lambda: client.writer.transport.get_write_buffer_size() > 0, "the server stops reading")
            await asyncio.sleep(0.1)
            assert client.writer.transport.get_write_buffer_size() > 0
            assert len(served.requests) == 1
            client.reset()
            await until(lambda: bool(served.cancelled), "and still notices that the client goes away")

    run(test)


def test_more_connections_than_allowed_are_told_and_health_is_not_shed() -> None:
    async def test() -> None:
        never = frozenset({"/healthz"})
        async with serving(max_connections=3, never_shed=never, linger_s=0.1) as served:
            full = [await served.connect() for _ in range(3)]
            await until(lambda: served.server.num_connections == 3, "they are accepted")
            received = await served.exchange(post(b"abc"))
            assert statuses(received) == [503]
            assert b"Retry-After: 1\r\n" in received
            assert b"router_overloaded" in received
            health = await served.exchange(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert statuses(health) == [200]
            full[0].send(post(b"abc"))
            assert (await full[0].answer())[0] == 200, "who was there is served"
            flood = [await served.connect() for _ in range(100)]
            for client in flood[80:]:
                assert await client.read_all() == b"", "there is no room even for those who are told"
            assert served.server.num_connections == 3 + 64

    run(test)
