"""The engine client over real sockets, against an upstream that sends exactly the bytes it is told.

Numbers in brackets are invariants: C of workers/client.py, E of engine_http/connection.py, P of engine_http/pool.py.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.certificates import make_certificates
from tests.raw_upstream import (
    HEADERS,
    LOOPS,
    ROUTE,
    Line,
    RawUpstream,
    Script,
    chunked,
    eventually,
    line,
    run,
    says,
    whole,
    worker_at,
)
from workers.client import EngineClient
from workers.engine_http.settings import EngineHttpSettings
from workers.errors import WorkerFailedError, WorkerUnreachableError

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = whole(b"hello")


@pytest.fixture(params=LOOPS, ids=["uvloop", "asyncio"])
def go(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a test on each kind of event loop."""
    return lambda test: run(test, request.param)


Go = Callable[[Coroutine[Any, Any, None]], None]


def test_a_request_goes_out_as_it_was_given(go: Go) -> None:
    async def test() -> None:
        async with line(says(HELLO)) as at:
            assert await at.post(b'{"a":1}') == (200, b"hello")
            reply = await at.client.post(worker_at(at.upstream.address + "/base/", 3), ROUTE, (b"{", b"}"), HEADERS)
            assert reply.body == b"hello"
        (first, body), (second, spliced) = at.upstream.requests
        assert body == b'{"a":1}'
        assert spliced == b"{}"
        authority = at.upstream.address.removeprefix("http://").encode()
        assert first == (
            b"POST /v1/completions HTTP/1.1\r\nhost: " + authority + b"\r\n"
            b"content-type: application/json\r\nx-request-id: r1\r\ncontent-length: 7\r\n\r\n"
        )
        assert second.startswith(b"POST /base/v1/completions HTTP/1.1\r\n")
        assert b"X-data-parallel-rank: 3\r\n" in second

    go(test())


def test_connections_are_reused_the_last_one_first(go: Go) -> None:
    async def test() -> None:
        async with line(says(HELLO)) as at:
            for _ in range(20):
                await at.post()
            assert at.upstream.num_connections == 1
            await asyncio.gather(*(at.post() for _ in range(5)))
            assert at.upstream.num_connections == 5
            for _ in range(20):
                await at.post()
            assert (at.upstream.num_connections, at.upstream.num_open) == (5, 5)
        assert len(at.upstream.requests) == 45

    go(test())


def test_no_more_connections_stay_idle_than_may_nor_for_longer(go: Go) -> None:
    """[P2]"""

    async def test() -> None:
        async with line(says(HELLO), max_idle=2, idle_s=0.4) as at:
            await asyncio.gather(*(at.post() for _ in range(6)))
            await eventually(lambda: at.upstream.num_open == 2)
            await at.closed()
            assert await at.post() == (200, b"hello")
            assert at.upstream.num_connections == 7

    go(test())


@pytest.mark.parametrize("then", ["close", "reset"])
def test_the_keep_alive_race_is_run_again_on_a_new_connection(go: Go, then: Any) -> None:
    """[C1] The engine closes an idle connection while a request is on its way."""

    async def test() -> None:
        async with line(says(HELLO), says(then=then), says(HELLO)) as at:
            assert await at.post() == (200, b"hello")
            assert await at.post() == (200, b"hello")
            assert (len(at.upstream.requests), at.upstream.num_connections) == (3, 2)

    go(test())


@pytest.mark.parametrize("then", ["close", "reset"])
def test_nothing_else_is_run_again(go: Go, then: Any) -> None:
    """[C1] Neither a first use, nor the second try, nor an answer of which a byte has come."""

    async def test() -> None:
        for scripts, sent in (
            ([says(then=then)], 1),
            ([says(HELLO), says(then=then), says(then=then)], 3),
            ([says(HELLO), says(b"H", then=then), says(HELLO)], 2),
        ):
            async with line(*scripts) as at:
                for _ in scripts[:-1]:
                    if len(at.upstream.requests) == 0:
                        await at.post()
                with pytest.raises(WorkerUnreachableError, match=r"no answer from|broke off"):
                    await at.post()
                assert len(at.upstream.requests) == sent
                await at.closed()

    go(test())


def test_a_connection_that_the_engine_ended_while_idle_is_not_used(go: Go) -> None:
    """[E2, P1]"""

    async def test() -> None:
        async with line(says(HELLO)) as at:
            await at.post()
            at.upstream.writers[0].write_eof()
            await at.closed()
            await at.post()
            assert (len(at.upstream.requests), at.upstream.num_connections) == (2, 2)

    go(test())


@pytest.mark.parametrize("unasked", [b"\r\n", b"x", HELLO])
def test_bytes_that_nobody_asked_for_close_an_idle_connection(go: Go, unasked: bytes) -> None:
    """[E2]"""

    async def test() -> None:
        async with line(says(HELLO)) as at:
            await at.post()
            at.upstream.writers[0].write(unasked)
            await at.closed()
            assert await at.post() == (200, b"hello")
            assert at.upstream.num_connections == 2

    go(test())


LIES: dict[str, Script] = {
    "closes before its length": says(OK + b"Content-Length: 9\r\n\r\nhello", then="close"),
    "resets before its length": says(OK + b"Content-Length: 9\r\n\r\nhello", then="reset"),
    "closes within a chunk": says(OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhello", then="close"),
    "closes before the last chunk": says(chunked(b"hello", last=b""), then="close"),
    "resets without a length": says(OK + b"\r\nhello", then="reset"),
    "sends more than its length": says(HELLO + b"!"),
    "sends a second answer": says(HELLO + HELLO),
    "closes within its head": says(OK + b"Content-", then="close"),
    "speaks no HTTP": says(b"\x00\x01 what"),
    "sends two lengths": says(OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "sends a length and chunks": says(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "sends too large a head": says(OK + b"A: " + b"x" * 2000 + b"\r\n\r\n"),
    "sends a head without an end": says(OK + b"A: ", *[b"x" * 4000] * 3),
    "switches protocols": says(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
}


@pytest.mark.parametrize("case", LIES)
def test_an_answer_that_lies_is_a_worker_error_and_its_connection_is_never_used_again(go: Go, case: str) -> None:
    """[E1]"""

    async def test() -> None:
        async with line(LIES[case], says(HELLO), max_head_bytes=1024) as at:
            with pytest.raises(WorkerUnreachableError):
                await at.post()
            await at.closed()
            assert await at.post() == (200, b"hello")
            assert at.upstream.num_connections == 2

    go(test())


LAST: dict[str, Script] = {
    "is to be closed": says(whole(b"hello", b"Connection: close")),
    "is HTTP/1.0": says(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    "ends with its connection": says(OK + b"\r\n", b"hel", b"lo", then="close"),
}


@pytest.mark.parametrize("case", LAST)
def test_a_whole_answer_that_is_the_last_of_its_connection(go: Go, case: str) -> None:
    """[E1]"""

    async def test() -> None:
        async with line(LAST[case], says(HELLO)) as at:
            assert await at.post() == (200, b"hello")
            await at.closed()
            assert await at.post() == (200, b"hello")
            assert at.upstream.num_connections == 2

    go(test())


def test_an_answer_before_the_request_is_all_sent_closes_the_connection(go: Go) -> None:
    """[E1] As an engine does that refuses a body for its size."""

    async def test() -> None:
        over = asyncio.Event()

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(whole(b"no", status=b"413 Too Large"))
            await over.wait()
            writer.transport.abort()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1 << 10)
        worker = worker_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        client = EngineClient(EngineHttpSettings())
        reply = await client.post(worker, ROUTE, b"x" * (16 << 20), HEADERS)
        assert (reply.status, reply.body) == (413, b"no")
        await eventually(lambda: client.num_connections == 0)
        over.set()
        server.close()
        await client.close()

    go(test())


def test_a_stream_is_relayed_in_pieces_as_they_come(go: Go) -> None:
    async def test() -> None:
        pieces = [b"data: %d\n\n" % index for index in range(50)]
        script = says(
            OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces),
            b"0\r\n\r\n",
        )
        async with line(script) as at:
            stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
            got = [await stream.first_chunk()]
            await stream.relay(got.append)
            stream.close()
            assert b"".join(got) == b"".join(pieces)
            assert set(got[1:]) <= set(pieces), "no chunk is cut or joined on the way"
            await at.post()
            assert at.upstream.num_connections == 1

    go(test())


def test_where_a_stream_breaks_off_its_pieces_came_before(go: Go) -> None:
    async def test() -> None:
        async with line(says(chunked(b"one", last=b""), b"3\r\ntwo\r\n", then="close")) as at:
            stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            got = [await stream.first_chunk()]
            with pytest.raises(WorkerUnreachableError, match="broke off"):
                await stream.relay(got.append)
            assert b"".join(got) == b"onetwo"

    go(test())


def test_an_error_of_the_receiver_comes_out_and_closes_the_connection(go: Go) -> None:
    async def test() -> None:
        class FullError(Exception):
            pass

        def refuse(_: bytes) -> None:
            raise FullError

        async with line(says(chunked(b"one", last=b""), then="wait")) as at:
            stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            assert await stream.first_chunk() == b"one"
            relay = asyncio.create_task(stream.relay(refuse))
            await asyncio.sleep(0)
            at.upstream.writers[0].write(b"3\r\ntwo\r\n")
            with pytest.raises(FullError):
                await relay
            await at.closed()

    go(test())


def test_pausing_holds_the_engine_back_and_resuming_lets_it_go_on(go: Go) -> None:
    async def test() -> None:
        piece = b"x" * 65536
        head = OK + b"Content-Length: %d\r\n\r\n" % (600 * len(piece))
        async with line(says(head, *[piece] * 600), silence_timeout_s=0.4) as at:
            stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            num_bytes = 0

            def count(chunk: bytes) -> None:
                nonlocal num_bytes
                num_bytes += len(chunk)
                if num_bytes < 1 << 20 <= num_bytes + len(chunk):
                    stream.pause()

            relay = asyncio.create_task(stream.relay(count))
            num_sent = -1
            while at.upstream.num_pieces_sent > num_sent:  # until the buffers on the way are full
                num_sent = at.upstream.num_pieces_sent
                await asyncio.sleep(0.6)  # longer than an engine may be silent: a paused one is not
            assert num_sent < 600
            assert num_bytes < 3 << 20
            stream.resume()
            await relay
            assert num_bytes == 600 * len(piece)
            assert await at.post() != (0, b""), "the connection is read again"

    go(test())


def test_an_answer_that_nobody_reads_yet_is_not_collected(go: Go) -> None:
    """[E4]"""

    async def test() -> None:
        piece = b"x" * 65536
        head = OK + b"Content-Length: %d\r\n\r\n" % (600 * len(piece))
        async with line(says(head, *[piece] * 600)) as at:
            stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            num_sent = -1
            while at.upstream.num_pieces_sent > num_sent:
                num_sent = at.upstream.num_pieces_sent
                await asyncio.sleep(0.3)
            assert num_sent < 600
            got = [await stream.first_chunk()]
            await stream.relay(got.append)
            assert sum(map(len, got)) == 600 * len(piece)

    go(test())


def test_a_reply_has_a_largest_size(go: Go) -> None:
    async def test() -> None:
        async with line(says(whole(b"x" * 5000)[:-1], then="wait"), max_reply_bytes=4096) as at:
            with pytest.raises(WorkerFailedError, match="4096"):
                await at.post()
            await at.closed()

    go(test())


STAGES: dict[str, tuple[Script, Callable[[Line], Coroutine[Any, Any, object]]]] = {}


async def _wait_for_head(at: Line) -> None:
    await at.post()


async def _wait_for_first_chunk(at: Line) -> None:
    stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
    try:
        await stream.first_chunk()
    finally:
        stream.close()


async def _wait_for_the_rest(at: Line) -> None:
    stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
    try:
        await stream.first_chunk()
        await stream.relay(lambda _: None)
    finally:
        stream.close()


STAGES = {
    "before the head": (says(then="wait"), _wait_for_head),
    "within the head": (says(OK, then="wait"), _wait_for_head),
    "after the head": (says(OK + b"Content-Length: 9\r\n\r\n", then="wait"), _wait_for_first_chunk),
    "within the body": (says(OK + b"Content-Length: 9\r\n\r\nhi", then="wait"), _wait_for_the_rest),
    "within an answer in one piece": (says(OK + b"Content-Length: 9\r\n\r\nhi", then="wait"), _wait_for_head),
}


@pytest.mark.parametrize("stage", STAGES)
def test_cancelling_ends_the_connection_at_every_stage(go: Go, stage: str) -> None:
    """[C2] The engine then stops working on it."""

    async def test() -> None:
        script, wait = STAGES[stage]
        async with line(script) as at:
            task = asyncio.create_task(wait(at))
            await eventually(lambda: at.upstream.num_pieces_sent == len(script.pieces) and bool(at.upstream.requests))
            await asyncio.sleep(0.02)  # let the client see them
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await at.closed()
            assert at.client.num_connections == 0

    go(test())


@pytest.mark.parametrize("stage", STAGES)
def test_an_engine_that_falls_silent_has_failed(go: Go, stage: str) -> None:
    async def test() -> None:
        script, wait = STAGES[stage]
        async with line(script, first_byte_timeout_s=0.3, silence_timeout_s=0.3) as at:
            with pytest.raises(WorkerUnreachableError, match=r"nothing came for 0\.3 s"):
                await wait(at)
            await at.closed()

    go(test())


def test_closing_an_answer_midway_stops_the_engine_and_closing_a_whole_one_does_nothing(go: Go) -> None:
    """[C2, E3]"""

    async def test() -> None:
        async with line(says(HELLO), says(OK + b"Content-Length: 9\r\n\r\nhi", then="wait")) as at:
            ended = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            await ended.relay(lambda _: None)
            stream = await at.client.open(at.worker, ROUTE, b"{}", HEADERS)
            ended.close()
            ended.pause()
            assert await stream.first_chunk() == b"hi"
            stream.close()
            stream.close()
            await at.closed()
            assert at.upstream.num_connections == 1

    go(test())


def test_no_connection_is_a_worker_error(go: Go) -> None:
    async def test() -> None:
        client = EngineClient(EngineHttpSettings(connect_timeout_s=0.3))
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            fillers = [await _fill(port) for _ in range(3)]  # a listener whose queue is full drops what comes
            for address in (
                f"http://127.0.0.1:{port}", "http://127.0.0.1:1", "http://[::1]:1", "http://host.invalid:80",
                "", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port", "http://127.0.0.1:99999", "http://[::1",
                f"http://{'a' * 70}.b",
            ):  # fmt: skip
                with pytest.raises(WorkerUnreachableError, match="no answer from"):
                    await client.post(worker_at(address), ROUTE, b"{}", HEADERS)
            task = asyncio.create_task(client.post(worker_at(f"http://127.0.0.1:{port}"), ROUTE, b"{}", HEADERS))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for filler in fillers:
                filler.close()
        assert client.num_connections == 0
        await client.close()

    go(test())


async def _fill(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    await asyncio.sleep(0.01)
    return sock


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_be_split(go: Go, value: str) -> None:
    async def test() -> None:
        async with line(says(HELLO)) as at:
            with pytest.raises(WorkerUnreachableError, match="line break"):
                await at.client.post(at.worker, ROUTE, b"{}", {"x-session-id": value})
            assert at.upstream.num_connections == 0

    go(test())


def test_an_engine_at_an_ipv6_address(go: Go) -> None:
    async def test() -> None:
        async with RawUpstream([says(HELLO)]).serving("::1") as upstream:
            client = EngineClient(EngineHttpSettings())
            reply = await client.post(worker_at(upstream.address), ROUTE, b"{}", HEADERS)
            assert reply.body == b"hello"
            assert b"\r\nhost: [::1]:" in upstream.requests[0][0]
            await client.close()

    go(test())


def test_an_engine_behind_tls_is_verified(go: Go, tmp_path: Path) -> None:
    async def test() -> None:
        certificates = make_certificates(tmp_path)
        server = certificates.server_context()
        server.verify_mode = ssl.CERT_NONE
        scripts = [says(HELLO), says(HELLO), says(chunked(b"cut", last=b""), then="close")]
        async with RawUpstream(scripts).serving(tls=server) as upstream:
            worker = worker_at(upstream.address)
            stranger = EngineClient(EngineHttpSettings())
            with pytest.raises(WorkerUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.post(worker, ROUTE, b"{}", HEADERS)
            client = EngineClient(
                EngineHttpSettings(), tls=ssl.create_default_context(cafile=str(certificates.ca_path))
            )
            for _ in range(2):
                assert (await client.post(worker, ROUTE, b"{}", HEADERS)).body == b"hello"
            with pytest.raises(WorkerUnreachableError):
                await client.post(worker, ROUTE, b"{}", HEADERS)
            assert len(upstream.requests) == 3
            await client.close()
            await stranger.close()

    go(test())


_DAMAGE = st.tuples(st.integers(0, 120), st.binary(max_size=12), st.integers(0, 12))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([HELLO, chunked(b"he", b"llo"), whole(b"hello", b"Connection: close"), OK + b"\r\nhello"]),
    st.lists(_DAMAGE, max_size=3),
    st.integers(1, 40),
    st.sampled_from(["close", "reset"]),
)
def test_whatever_comes_ends_in_an_answer_or_a_worker_error(
    data: bytes, damage: list[tuple[int, bytes, int]], size: int, then: Any
) -> None:
    for at, noise, drop in damage:
        data = data[:at] + noise + data[at + drop :]

    async def test() -> None:
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        async with line(says(*pieces, then=then)) as at:
            try:
                await asyncio.wait_for(at.post(), 10.0)
            except WorkerUnreachableError:
                pass
            await at.closed()

    run(test())
