"""Answers: what goes over the wire, for each HTTP version and length. Invariants of router/http/reply.py."""

from collections.abc import Callable

import pytest

from router.http.message import HttpRequest
from router.http.reply import Reply
from router.interfaces import Flow

DATE = "date: now\r\n"


class Wire:
    """A connection that keeps what it is given."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.date_line = DATE
        self.keep_open: bool | None = None
        self.is_cut = False

    def keeps_open(self) -> bool:
        return True

    def transmit(self, data: bytes) -> None:
        self.writes.append(data)

    def answered(self, *, keep_open: bool) -> None:
        self.keep_open = keep_open

    def cut(self) -> None:
        self.is_cut = True

    def attach_flow(self, flow: Flow | None) -> None:
        raise AssertionError(flow)


def answer(
    make: Callable[[Reply], None], method: str = "POST", *, http_11: bool = True, keep_alive: bool = True
) -> tuple[str, Wire]:
    wire = Wire()
    make(Reply(HttpRequest(method, "/", "", {}, http_11, keep_alive), wire))
    return b"".join(wire.writes).decode("latin-1"), wire


def stream(reply: Reply) -> None:
    reply.start(200, {"Content-Type": "text/plain"})
    reply.write(b"ab")
    reply.write(b"")
    reply.write(b"c" * 20)
    reply.finish()


def test_a_stream_is_chunked() -> None:
    text, wire = answer(stream)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{DATE}transfer-encoding: chunked\r\n\r\n"
    assert text == f"{head}2\r\nab\r\n14\r\n{'c' * 20}\r\n0\r\n\r\n"
    assert wire.writes[0].endswith(b"2\r\nab\r\n"), "invariant 1"
    assert wire.keep_open


def test_in_http_1_0_a_stream_ends_with_the_connection() -> None:
    text, wire = answer(stream, http_11=False)
    assert text == f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{DATE}connection: close\r\n\r\nab{'c' * 20}"
    assert wire.keep_open is False


def with_length(reply: Reply) -> None:
    reply.start(200, {"content-length": "4"})
    reply.write(b"ab")
    reply.write(b"cd")
    reply.finish()


def test_a_length_that_is_given_is_kept() -> None:
    text, wire = answer(with_length)
    assert text == f"HTTP/1.1 200 OK\r\n{DATE}content-length: 4\r\n\r\nabcd"
    assert wire.keep_open
    text, wire = answer(with_length, http_11=False)
    assert text == f"HTTP/1.1 200 OK\r\n{DATE}content-length: 4\r\nconnection: keep-alive\r\n\r\nabcd"


def test_one_piece() -> None:
    text, wire = answer(lambda reply: reply.send(404, {"a": "b"}, b"xyz"), keep_alive=False)
    assert text == f"HTTP/1.1 404 Not Found\r\na: b\r\n{DATE}content-length: 3\r\nconnection: close\r\n\r\nxyz"
    assert len(wire.writes) == 1
    assert wire.keep_open is False


@pytest.mark.parametrize("http_11", [True, False])
def test_head_has_headers_only(http_11: bool) -> None:
    for make in (stream, with_length, lambda reply: reply.send(200, {}, b"body")):
        text, wire = answer(make, "HEAD", http_11=http_11)
        assert text.endswith("\r\n\r\n")
        assert text.count("\r\n\r\n") == 1
        assert not wire.is_cut


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    text, wire = answer(lambda reply: reply.send(status, {}, b"body"))
    assert text.endswith(f"{DATE}\r\n")
    assert "content-length" not in text
    assert wire.keep_open


def too_little(reply: Reply) -> None:
    reply.start(200, {"content-length": "4"})
    reply.write(b"ab")
    reply.finish()


def too_much(reply: Reply) -> None:
    reply.start(200, {"content-length": "4"})
    reply.write(b"abcde")
    reply.finish()


@pytest.mark.parametrize("make", [too_little, too_much])
def test_a_length_that_was_a_lie_breaks_the_connection(make: Callable[[Reply], None]) -> None:
    """Invariant 3."""
    text, wire = answer(make)
    assert wire.is_cut
    assert wire.keep_open is None
    assert "abcde" not in text


def test_a_cut_answer_is_never_ended() -> None:
    """Invariant 2."""

    def cut(reply: Reply) -> None:
        reply.start(200, {})
        reply.write(b"ab")
        reply.cut()
        reply.write(b"cd")
        reply.finish()

    text, wire = answer(cut)
    assert wire.is_cut
    assert text.endswith("2\r\nab\r\n")


@pytest.mark.parametrize("headers", [{"a": "b\r\nc: d"}, {"a": "b\nc"}, {"a\r\nb": "c"}, {"a": "b\r"}])
def test_a_header_cannot_hold_another(headers: dict[str, str]) -> None:
    wire = Wire()
    with pytest.raises(ValueError, match="line break"):
        Reply(HttpRequest("GET", "/", "", {}, True, True), wire).start(200, headers)
    assert not wire.writes


def test_headers_about_the_connection_are_ours() -> None:
    headers = {"Connection": "close", "Transfer-Encoding": "gzip", "Keep-Alive": "1", "Date": "then", "X": "y"}
    text, _ = answer(lambda reply: reply.send(200, headers, b""))
    assert text == f"HTTP/1.1 200 OK\r\nX: y\r\n{DATE}content-length: 0\r\n\r\n"


def test_extra_headers_are_added() -> None:
    def make(reply: Reply) -> None:
        reply.extra_headers = {"x-request-id": "7"}
        reply.send(200, {}, b"")

    assert "x-request-id: 7\r\n" in answer(make)[0]


@pytest.mark.parametrize("size", [4095, 4096, 32_768, 32_769, 100_000])
def test_chunks_of_any_size(size: int) -> None:
    def make(reply: Reply) -> None:
        reply.start(200, {})
        reply.write(b"x" * size)
        reply.finish()

    assert answer(make)[0].endswith(f"\r\n\r\n{size:x}\r\n{'x' * size}\r\n0\r\n\r\n")

    def make_with_length(reply: Reply) -> None:
        reply.start(200, {"content-length": str(size)})
        reply.write(b"x" * size)
        reply.finish()

    assert answer(make_with_length)[0].endswith("\r\n\r\n" + "x" * size)
