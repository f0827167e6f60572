"""Chunked bodies, RFC 9112 section 7.1; invariants of router/http/chunked.py."""

import pytest

from router.errors import ApiError
from router.http.chunked import ChunkedBody


def read(data: bytes, max_body_bytes: int = 1000) -> tuple[bytes, bytes | None]:
    body = ChunkedBody(max_body_bytes)
    rest = body.feed(data)
    return bytes(body.body), rest


@pytest.mark.parametrize(
    ("data", "body", "rest"),
    [
        (b"0\r\n\r\n", b"", b""),
        (b"3\r\nabc\r\n0\r\n\r\nnext", b"abc", b"next"),
        (b"3\r\nabc\r\n00A\r\n0123456789\r\n000\r\n\r\n", b"abc0123456789", b""),
        (b"2;a;b=c;d=\"e;\\\"f\"\r\nab\r\n0;x\r\n\r\n", b"ab", b""),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", b""),
        (b"1\r\na\r\n0\r\nTrailer: x\r\nOther:\r\n\r\nGET", b"a", b"GET"),
        (b"3\r\nab", b"ab", None),
        (b"", b"", None),
    ],
)  # fmt: skip
def test_bodies(data: bytes, body: bytes, rest: bytes | None) -> None:
    assert read(data) == (body, rest)


@pytest.mark.parametrize(
    "data",
    [
        b"0x3\r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n", b"-1\r\n", b" 3\r\nabc\r\n", b"3 \r\nabc\r\n",
        b"3\t;a\r\nabc\r\n",
        b"\r\n", b"g\r\n", b"3_0\r\n", b"00000000000000003\r\nabc\r\n", b"3\nabc\n0\n\n", b"3\r\nabc0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"3\r\nabc\r0\r\n\r\n", b"3;a=\x01\r\nabc\r\n",
        b"3;a\nb\r\nabc\r\n",
        b"3;a\rb\r\nabc\r\n", b"3;\r\nabc\r\n", b"3;a=\r\nabc\r\n", b"3;a=\"b\r\nabc\r\n", b"3,4\r\nabc\r\n",
        b"0\r\nbad trailer\r\n\r\n", b"0\r\n folded\r\n\r\n", b"0\r\na: b\x00\r\n\r\n", b"0\r\na : b\r\n\r\n",
        b"0\r\n\n",
        b"3" + b";a" * 3000 + b"\r\nabc\r\n", b"3" + b";a" * 3000, b"0\r\n" + b"a: b\r\n" * 20_000,
    ],
)  # fmt: skip
def test_what_is_no_chunked_body(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read(data)
    assert caught.value.status == 400


@pytest.mark.parametrize("data", [b"3e9\r\n", b"FFFFFFFFFFFFFFFF\r\n", b"1\r\na\r\n" + b"3e8\r\n"])
def test_a_body_over_the_limit_is_refused_when_its_size_is_told(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read(data)
    assert caught.value.status == 413


def test_a_body_in_tiny_chunks_is_refused() -> None:
    """Invariant 2."""
    with pytest.raises(ApiError) as caught:
        read(b"1\r\na\r\n" * 30_000, max_body_bytes=1 << 20)
    assert caught.value.status == 400
    body, rest = read(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n", max_body_bytes=1 << 20)
    assert (len(body), rest) == (10_000, b"")
