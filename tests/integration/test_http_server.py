"""The router's HTTP server over real sockets: connections, versions, expectations, drain, overload, memory."""

import asyncio
import json
import resource
import socket
import time
from collections.abc import AsyncIterator

import httpx
import psutil
import pytest

from router.http.message import HttpRequest
from router.http.reply import Reply
from tests.http_server import GET, post, run, serving, statuses, until


def test_a_request_and_its_answer() -> None:
    async def test() -> None:
        async with serving() as served:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
                response = await client.post("/a/b%20c?d=e&f", content=b"\x00\xff", headers={"X-Thing": "x"})
                assert response.status_code == 200
                assert response.headers["date"].endswith("GMT")
                seen = response.json()
                assert (seen["method"], seen["path"], seen["query"]) == ("POST", "/a/b%20c", "d=e&f")
                assert seen["headers"]["x-thing"] == "x"
                assert seen["body"].encode("latin-1") == b"\x00\xff"
                for _ in range(3):
                    assert (await client.get("/")).status_code == 200
            assert served.server.counters.connections == 1
            assert served.requests[0].peer == "127.0.0.1"

    run(test)


@pytest.mark.parametrize("size", [0, 1, 65_536, 1 << 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_any_size(size: int, chunked: bool) -> None:
    async def test() -> None:
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

        async def stream() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 10_000):
                yield body[at : at + 10_000]

        async with serving() as served, httpx.AsyncClient() as client:
            content = stream() if chunked else body
            await client.post(f"http://127.0.0.1:{served.port}/", content=content)
            assert served.requests[0].body == body

    run(test)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def test() -> None:
        async def later_is_faster(request: HttpRequest, reply: Reply) -> None:
            await asyncio.sleep(0.05 / (1 + int(request.body)))
            reply.send(200, {}, request.body)

        async with serving(later_is_faster) as served:
            client = await served.connect()
            client.send(b"".join(post(b"%d" % index) for index in range(8)))
            bodies = [(await client.answer())[2] for _ in range(8)]
            assert bodies == [b"%d" % index for index in range(8)]

    run(test)


def test_http_1_0() -> None:
    async def test() -> None:
        async def stream(request: HttpRequest, reply: Reply) -> None:
            reply.start(200, {})
            reply.write(b"abc")
            await asyncio.sleep(0)
            reply.write(b"def")
            reply.finish()

        async with serving(stream) as served:
            client = await served.connect()
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
            assert b"chunked" not in head
            assert b"connection: close" in head
            assert body == b"abcdef"
        async with serving() as served:
            client = await served.connect()
            for _ in range(2):
                client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                status, headers, _ = await client.answer()
                assert (status, headers["connection"]) == (200, "keep-alive")
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.answer())[1]["connection"] == "close"
            assert await client.read_all() == b""

    run(test)


def test_a_client_may_ask_to_be_closed() -> None:
    async def test() -> None:
        async with serving() as served:
            client = await served.connect()
            client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GET)
            received = await client.read_all()
            assert statuses(received) == [200]
            assert b"connection: close" in received
            assert len(served.requests) == 1

    run(test)


def test_expectations() -> None:
    """RFC 9110 section 10.1.1."""

    async def test() -> None:
        async with serving(linger_s=0.1) as served:
            client = await served.connect()
            expecting = post(b"abc", "Expect: 100-continue")
            client.send(expecting[:-3])
            assert await client.read_head() == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"abc")
            assert (await client.answer())[0] == 200
            client.send(expecting)
            assert (await client.read_head()).startswith(b"HTTP/1.1 200"), "nobody waits for a body that is there"
            other = await served.exchange(post(b"abc", "Expect: a miracle"))
            assert statuses(other) == [417]

    run(test)


def test_head_and_no_content() -> None:
    async def test() -> None:
        async def handler(request: HttpRequest, reply: Reply) -> None:
            reply.send(204 if request.path == "/none" else 200, {}, b"body")

        async with serving(handler) as served, httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{served.port}"
            for _ in range(2):
                head = await client.head(url)
                assert (head.headers["content-length"], head.content) == ("4", b"")
                assert (await client.get(f"{url}/none")).status_code == 204
                assert (await client.get(url)).content == b"body"
            assert served.server.counters.connections == 1

    run(test)


def test_a_handler_that_fails_is_500_and_one_that_leaves_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async def handler(request: HttpRequest, reply: Reply) -> None:
            if request.path == "/half":
                reply.start(200, {"content-length": "10"})
                reply.write(b"abc")
            elif request.path == "/late":
                reply.start(200, {})
                reply.write(b"abc")
                raise RuntimeError("too late to say so")
            elif request.path == "/fails":
                raise RuntimeError("a bug")

        async with serving(handler) as served, httpx.AsyncClient() as client:
            url = f"http://127.0.0.1:{served.port}"
            for _ in range(2):
                response = await client.post(f"{url}/fails")
                assert response.status_code == 500
                assert response.json()["error"]["code"] == "internal"
            for path in ("/half", "/late", "/nothing"):
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.post(f"{url}{path}")

    run(test)
    assert "a bug" in caplog.text


def test_what_was_written_before_a_cut_arrives() -> None:
    async def test() -> None:
        async def handler(_: HttpRequest, reply: Reply) -> None:
            reply.start(200, {})
            reply.write(b"x" * 100_000)
            reply.cut()

        async with serving(handler) as served:
            client = await served.connect()
            client.send(GET)
            received = await client.read_all()
            assert received.count(b"x") == 100_000
            assert not received.endswith(b"0\r\n\r\n")
            client = await served.connect()
            client.send(GET.replace(b"1.1", b"1.0"))
            with pytest.raises(ConnectionResetError):  # the end of input would be the end of the answer
                while await client.reader.read(1000):
                    pass

    run(test)


def test_drain() -> None:
    """Invariant 3 of router/http/server.py."""

    async def test() -> None:
        go_on = asyncio.Event()

        async def handler(request: HttpRequest, reply: Reply) -> None:
            if request.path == "/stuck":
                await asyncio.Event().wait()
            await go_on.wait()
            reply.send(200, {}, b"done")

        async with serving(handler, drain_s=0.5) as served:
            idle, busy, stuck, begun = [await served.connect() for _ in range(4)]
            busy.send(post(b""))
            stuck.send(post(b"", path="/stuck"))
            begun.send(post(b"abc")[:-1])
            await until(lambda: len(served.requests) == 2, "two are served")
            await until(lambda: served.server.num_connections == 4, "two are not")
            stopping = asyncio.create_task(served.server.stop())
            assert await idle.read_all() == b"", "closed at once"
            with pytest.raises(OSError, match="Connection refused"):
                await served.connect()
            go_on.set()
            begun.send(b"c")
            for client in (busy, begun):
                status, headers, body = await client.answer()
                assert (status, headers["connection"], body) == (200, "close", b"done")
                client.writer.close()
            assert not stopping.done()
            assert await stuck.read_all() == b"", "cut"
            await stopping
            assert [request.path for request in served.cancelled] == ["/stuck"]

    run(test)


def test_overload_sheds_requests_but_not_health_and_ends() -> None:
    async def test() -> None:
        async def burn(request: HttpRequest, reply: Reply) -> None:
            if request.path != "/healthz":
                end_s = time.perf_counter() + 0.002
                while time.perf_counter() < end_s:
                    pass
            reply.send(200, {}, b"")

        never = frozenset({"/healthz"})
        async with serving(burn, never_shed=never, shed_lag_s=0.02, shed_window_s=0.2) as served:
            seen: dict[str, set[int]] = {"/p": set(), "/healthz": set()}
            stop = asyncio.Event()

            async def client_of(path: str) -> None:
                client = await served.connect()
                while not stop.is_set():
                    client.send(post(b"{}", path=path))
                    status, headers, body = await client.answer()
                    seen[path].add(status)
                    if status == 503:
                        assert int(headers["retry-after"]) >= 1
                        assert json.loads(body)["error"]["code"] == "router_overloaded"
                        assert "connection" not in headers, "the client may stay"

            clients = [asyncio.create_task(client_of("/p")) for _ in range(40)]
            clients.append(asyncio.create_task(client_of("/healthz")))
            await until(lambda: 503 in seen["/p"], "some are shed")
            assert served.server.admitted < 1.0
            await asyncio.sleep(0.2)
            stop.set()
            await asyncio.gather(*clients)
            assert seen["/p"] == {200, 503}
            assert seen["/healthz"] == {200}
            await until(lambda: served.server.admitted == 1.0, "and then no more")

    run(test)


def test_in_overload_a_body_is_not_waited_for() -> None:
    async def test() -> None:
        async with serving(shed_lag_s=0.001, shed_window_s=0.1, linger_s=0.1) as served:
            while served.server.admitted > 0.2:
                time.sleep(0.01)  # noqa: ASYNC251  that is the overload
                await asyncio.sleep(0)
            heads = []
            for _ in range(20):
                time.sleep(0.01)  # noqa: ASYNC251
                client = await served.connect()
                client.send(post(b"", "Expect: 100-continue", framing="Content-Length: 100"))
                heads.append(await client.read_head())
            assert any(head.startswith(b"HTTP/1.1 503") for head in heads)
            assert not served.requests

    run(test)


def test_two_thousand_idle_streams_take_little_and_no_more_with_time() -> None:
    num_streams = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 3 * num_streams)), hard))

    async def test() -> None:
        go_on = asyncio.Event()

        async def handler(_: HttpRequest, reply: Reply) -> None:
            reply.start(200, {})
            while not go_on.is_set():
                reply.write(b"data: {}\n\n")
                await tick.wait()
            reply.finish()

        tick = Tick()
        async with serving(handler) as served:
            process, loop = psutil.Process(), asyncio.get_running_loop()
            before = process.memory_info().rss
            socks = []
            for _ in range(num_streams):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", served.port))
                await loop.sock_sendall(sock, GET)
                socks.append(sock)
            await until(lambda: len(served.requests) == num_streams, "all are served")
            await read_from(socks)
            opened = process.memory_info().rss
            for _ in range(30):
                await tick.next()
                await read_from(socks)
            grown = process.memory_info().rss
            assert opened - before < num_streams * 40_000, "10,000 fit into 400 MB"
            assert grown - opened < 4_000_000, "and stay as they are"
            go_on.set()
            await tick.next()
            await until(lambda: served.server.num_connections == num_streams, "all are kept open")
            for sock in socks:
                sock.close()
            await until(lambda: served.server.num_connections == 0, "until their clients close")

    run(test)


class Tick:
    """Lets all that wait go on."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        await self._event.wait()

    async def next(self) -> None:
        self._event.set()
        self._event = asyncio.Event()
        await asyncio.sleep(0)


async def read_from(socks: list[socket.socket]) -> None:
    for sock in socks:
        assert await asyncio.get_running_loop().sock_recv(sock, 4096)
