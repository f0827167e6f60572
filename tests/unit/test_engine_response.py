"""Framing of an engine's answer: what is one, and what is not."""

import pytest

from tests.raw_upstream import chunked, whole
from workers.engine_http.response import Headers, MalformedResponseError, ResponseReader

MAX_HEAD_BYTES = 4096
OK = b"HTTP/1.1 200 OK\r\n"


def read(*pieces: bytes, eof: bool = False) -> tuple[ResponseReader, bytes]:
    """The reader after these bytes, and the body that it gave out."""
    body: list[bytes] = []
    reader = ResponseReader(body.append, MAX_HEAD_BYTES)
    for piece in pieces:
        reader.feed(piece)
    if eof:
        reader.feed_eof()
    return reader, b"".join(body)


WHOLE = {
    "a length": (whole(b"hello"), b"hello", True),
    "no body": (whole(b""), b"", True),
    "chunks": (chunked(b"he", b"llo"), b"hello", True),
    "chunk extensions": (chunked(last=b"2;a=b\r\nhi\r\n0;c\r\n\r\n"), b"hi", True),
    "trailers": (chunked(b"hi", last=b"0\r\nContent-Type: x\r\n\r\n"), b"hi", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"", True),
    "100 before it": (b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"hi"), b"hi", True),
    "103 with fields before it": (b"HTTP/1.1 103 Early\r\nContent-Length: 9\r\n\r\n" + whole(b"hi"), b"hi", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
    "to be closed": (whole(b"hi", b"Connection: close"), b"hi", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", False),
    "HTTP/1.0 kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", b"hi", True),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_answer(case: str) -> None:
    data, expected, keeps_alive = WHOLE[case]
    reader, body = read(data)
    assert (reader.is_complete, body, reader.keeps_alive) == (True, expected, keeps_alive)
    assert (read(data, eof=True)[1]) == expected, "the end of the connection adds nothing"


def test_an_answer_without_length_ends_with_the_connection_and_only_there() -> None:
    reader, body = read(OK + b"\r\nhello")
    assert (reader.has_head, reader.is_complete, body) == (True, False, b"hello")
    reader, body = read(OK + b"\r\nhello", eof=True)
    assert (reader.is_complete, reader.keeps_alive, body) == (True, False, b"hello")


CUT = {
    "nothing": b"",
    "within the head": OK + b"Content-Le",
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "within the body": whole(b"hello")[:-1],
    "before the body": whole(b"hello")[:-5],
    "within a chunk": chunked(b"hello")[:-9],
    "before the last chunk": chunked(b"hello", last=b""),
    "within the trailers": chunked(b"hello", last=b"0\r\nA: b\r\n"),
}


@pytest.mark.parametrize("case", CUT)
def test_an_answer_that_ends_early_is_not_whole(case: str) -> None:
    reader, _ = read(CUT[case])
    assert not reader.is_complete
    with pytest.raises(MalformedResponseError, match="it ends"):
        read(CUT[case], eof=True)


MALFORMED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a request": b"POST / HTTP/1.1\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 99": b"HTTP/1.1 99 OK\r\nContent-Length: 0\r\n\r\n",
    "status 600": b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "a folded field": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "a NUL in a field": OK + b"A: b\0\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "a signed length": OK + b"Content-Length: +2\r\n\r\nhi",
    "an empty length": OK + b"Content-Length:\r\n\r\n",
    "a length beyond 64 bits": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "a length and chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks and a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
    "a length in the trailers": chunked(b"hi", last=b"0\r\nContent-Length: 2\r\n\r\n"),
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "two codings": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a chunk size that is none": chunked(last=b"x\r\n"),
    "a chunk size beyond 64 bits": chunked(last=b"fffffffffffffffff\r\n"),
    "a chunk longer than its size": chunked(last=b"2\r\nhiya\r\n0\r\n\r\n"),
    "more than its length": whole(b"hi") + b"x",
    "a second answer": whole(b"hi") + whole(b"hi"),
    "more than its last chunk": chunked(b"hi") + b"H",
    "bytes after a closing answer": whole(b"hi", b"Connection: close") + b"x",
    "a head too large": whole(b"", b"A: " + b"b" * MAX_HEAD_BYTES),
    "too many interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD_BYTES // 32 + 1),
    "too many trailers": chunked(last=b"0\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES),
    "a name without an end": OK + b"a" * (4 * MAX_HEAD_BYTES),
    "padding without an end": OK + b"A:" + b" " * (4 * MAX_HEAD_BYTES),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_answer_is_malformed_however_it_is_cut(case: str) -> None:
    data = MALFORMED[case]
    with pytest.raises(MalformedResponseError):
        read(data)
    with pytest.raises(MalformedResponseError):
        read(*(data[at : at + 1] for at in range(len(data))))


def test_the_largest_head_is_let_through() -> None:
    fields = b"A: " + b"b" * (MAX_HEAD_BYTES - 4 - 1 - len(b"Content-Length0") - 4)
    assert read(whole(b"", fields))[0].is_complete


def test_bytes_after_the_release_of_an_answer_are_malformed() -> None:
    reader, _ = read(whole(b"hi"))
    reader.release()
    with pytest.raises(MalformedResponseError, match="after the end"):
        reader.feed(b"x")


def test_an_error_of_the_receiver_comes_out_as_it_is() -> None:
    class FullError(Exception):
        pass

    def refuse(_: bytes) -> None:
        raise FullError

    with pytest.raises(FullError):
        ResponseReader(refuse, MAX_HEAD_BYTES).feed(whole(b"hi"))


def test_headers_are_found_by_lower_case_name_and_decoded() -> None:
    reader, _ = read(whole(b"", b"Content-Type: text/plain", b"X-Name: M\xfcller", b"X-Name: last"))
    headers = Headers(reader.fields)
    assert headers["content-type"] == "text/plain"
    assert headers["x-name"] == "last"
    assert headers.get("retry-after") is None
    assert dict(headers) == {"content-type": "text/plain", "x-name": "last", "content-length": "0"}
    assert len(headers) == 3
