"""Clients that take their time: slowloris in head and body, readers that do not read. Nobody else waits for them."""

import asyncio
import socket

from router.http.message import HttpRequest
from router.http.reply import Reply
from tests.http_server import GET, post, run, serving, statuses, until

HEAD = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"


def test_a_head_that_never_ends_is_408_however_steadily_it_comes() -> None:
    async def test() -> None:
        async with serving(head_timeout_s=0.4, linger_s=0.1) as served:
            client = await served.connect()
            answer = asyncio.create_task(client.read_all())
            for byte in b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X-A: b\r\n" * 1000:
                client.send(bytes([byte]))
                await asyncio.sleep(0.01)
                if answer.done():
                    break
            received = await answer
            assert statuses(received) == [408]
            assert b"router.http.head_timeout_s" in received

    run(test)


def test_a_body_that_trickles_is_408() -> None:
    async def test() -> None:
        async with serving(body_timeout_s=0.4, min_body_bytes_per_s=1 << 20, linger_s=0.1) as served:
            client = await served.connect()
            answer = asyncio.create_task(client.read_all())
            client.send(HEAD)
            while not answer.done():
                client.send(b"x")
                await asyncio.sleep(0.01)
            assert statuses(await answer) == [408]
            assert not served.requests

    run(test)


def test_a_body_as_fast_as_asked_for_may_take_longer_than_the_timeout() -> None:
    async def test() -> None:
        async with serving(body_timeout_s=0.3, min_body_bytes_per_s=100) as served:
            client = await served.connect()
            client.send(HEAD)
            for _ in range(10):
                await asyncio.sleep(0.1)
                client.send(b"x" * 100)
            assert (await client.answer())[0] == 200

    run(test)


def test_connections_without_a_request_are_closed_without_a_word() -> None:
    async def test() -> None:
        async with serving(keep_alive_s=0.3) as served:
            silent, used = await served.connect(), await served.connect()
            used.send(GET)
            assert (await used.answer())[0] == 200
            assert await silent.read_all() == b""
            assert await used.read_all() == b""

    run(test)


def test_many_slow_heads_keep_nobody_waiting() -> None:
    async def test() -> None:
        async with serving() as served:
            slow = [await served.connect() for _ in range(200)]
            for client in slow:
                client.send(b"POST / HTTP/1.1\r\nHost: h\r\nX-")
            fast = await served.connect()
            for _ in range(20):
                fast.send(post(b"abc"))
                assert (await fast.answer())[0] == 200
            for client in slow:
                client.reset()

    run(test)


class Source:
    """An upstream that produces without end, unless it is told to pause."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._may_go = asyncio.Event()
        self._may_go.set()
        self.num_pauses = 0
        self.num_bytes = 0

    def pause(self) -> None:
        self._may_go.clear()
        self.num_pauses += 1

    def resume(self) -> None:
        self._may_go.set()

    async def produce(self, num_chunks: int) -> None:
        self._reply.start(200, {})
        self._reply.attach_flow(self)
        for _ in range(num_chunks):
            await self._may_go.wait()
            self._reply.write(b"x" * 10_000)
            self.num_bytes += 10_000
            await asyncio.sleep(0)
        self._reply.attach_flow(None)
        self._reply.finish()


def narrow_socket(port: int) -> socket.socket:
    """A client whose kernel takes little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


def test_a_reader_that_stops_pauses_the_source_and_is_cut_off() -> None:
    async def test() -> None:
        sources: list[Source] = []

        async def endless(_: HttpRequest, reply: Reply) -> None:
            sources.append(Source(reply))
            await sources[0].produce(1_000_000)

        async with serving(endless, write_timeout_s=0.5) as served:
            with narrow_socket(served.port) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, GET)
                await until(lambda: bool(served.cancelled), "the handler is cancelled")
            assert sources[0].num_pauses == 1
            assert sources[0].num_bytes < 20_000_000, "what the kernel takes, and write_buffer_bytes"
            assert served.server.counters.stalled == 1

    run(test)


def test_a_reader_that_goes_on_gets_everything() -> None:
    async def test() -> None:
        sources: list[Source] = []

        async def handler(_: HttpRequest, reply: Reply) -> None:
            sources.append(Source(reply))
            await sources[0].produce(2000)

        async with serving(handler) as served:
            with narrow_socket(served.port) as sock:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, GET)
                await until(lambda: bool(sources and sources[0].num_pauses), "the source is paused")
                received = bytearray()
                while not received.endswith(b"0\r\n\r\n"):
                    received += await loop.sock_recv(sock, 1 << 20)
            assert received.count(b"x") == 20_000_000
            assert sources[0].num_pauses >= 1

    run(test)


def test_a_client_that_reads_no_answers_gets_no_further_requests_served() -> None:
    """Pipelining as a memory bomb: invariant 5 of router/http/connection.py."""

    async def test() -> None:
        async def large(_: HttpRequest, reply: Reply) -> None:
            reply.send(200, {}, b"x" * 1_000_000)

        async with serving(large, write_timeout_s=0.5) as served:
            with narrow_socket(served.port) as sock:
                loop = asyncio.get_running_loop()
                sending = asyncio.create_task(loop.sock_sendall(sock, GET * 100_000))
                await until(lambda: served.server.counters.stalled == 1, "it is cut off")
                sending.cancel()
                await asyncio.wait((sending,))
            assert len(served.requests) < 50

    run(test)
