"""Heads that hold and heads that do not: RFC 9110 and 9112."""

import pytest

from router.errors import ApiError
from router.http.head import LastLine, parse_head
from router.http.message import HttpRequest
from router.http.settings import HttpSettings

LIMITS = HttpSettings(max_target_bytes=100, max_head_bytes=2000, max_header_bytes=500, max_headers=20)


def parse(*lines: str, request_line: str = "POST /p HTTP/1.1") -> tuple[HttpRequest, int | None, bool]:
    text = "\r\n".join([request_line, *lines, "", ""])
    return parse_head(text.encode("latin-1"), LIMITS, LastLine())


def refusal(*lines: str, request_line: str = "POST /p HTTP/1.1") -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(*lines, request_line=request_line)
    return caught.value


def test_a_request_is_understood() -> None:
    request, num_body_bytes, expects_continue = parse(
        "Host: a.example:80", "Content-Length: 7", "X-Thing:  b c \t", "x-thing: d", "COOKIE: a", "Cookie: b", "Empty:",
        request_line="POST /p%20q?x=1?&y=#".replace("#", "") + " HTTP/1.1",
    )  # fmt: skip
    assert (request.method, request.path, request.query) == ("POST", "/p%20q", "x=1?&y=")
    assert num_body_bytes == 7
    assert not expects_continue
    assert request.keep_alive
    assert request.headers == {
        "host": "a.example:80", "content-length": "7", "x-thing": "b c, d", "cookie": "a; b", "empty": "",
    }  # fmt: skip


@pytest.mark.parametrize("value", ["v", "v ", "v\t", " v"])
def test_whitespace_around_a_value_is_no_part_of_it(value: str) -> None:
    assert parse("Host: h", f"A:{value}")[0].headers["a"] == "v"


def test_values_may_hold_any_visible_byte() -> None:
    assert parse("Host: h", "A: \xe9\xff \t~")[0].headers["a"] == "\xe9\xff \t~"


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("/", "/", "", "h"),
        ("/?", "/", "", "h"),
        ("//a", "//a", "", "h"),
        ("http://o.example:81/a?b", "/a", "b", "o.example:81"),
        ("HTTPS://o.example", "/", "", "o.example"),
        ("http://[::1]:8000/x", "/x", "", "[::1]:8000"),
    ],
)
def test_targets(target: str, path: str, query: str, host: str) -> None:
    request, _, _ = parse("Host: h", request_line=f"GET {target} HTTP/1.1")
    assert (request.path, request.query, request.headers["host"]) == (path, query, host)


def test_options_may_ask_about_the_server() -> None:
    assert parse("Host: h", request_line="OPTIONS * HTTP/1.1")[0].path == "*"


@pytest.mark.parametrize(
    "request_line",
    [
        "POST  /p HTTP/1.1", "POST /p  HTTP/1.1", "POST /p HTTP/1.1 ", " POST /p HTTP/1.1", "POST\t/p HTTP/1.1",
        "POST /p",
        "POST /p q HTTP/1.1", "post /p HTTP/1.1", "P/ST /p HTTP/1.1", "POST p HTTP/1.1", "POST ?a HTTP/1.1",
        "POST /a#b HTTP/1.1", "POST /a?b#c HTTP/1.1", "POST * HTTP/1.1", "OPTIONS *?a HTTP/1.1", "POST /\x00 HTTP/1.1",
        "POST /\xff HTTP/1.1", "POST /\x7f HTTP/1.1", "POST ftp://h/ HTTP/1.1", "POST http:/// HTTP/1.1",
        "POST http://u@h/ HTTP/1.1", "POST http://h:80:80/ HTTP/1.1", "POST / HTTPS/1.1", "POST / HTTP/11",
        "POST / HTTP/1.10", "POST / http/1.1", "POST / RTSP/1.0", "SOURCE / ICE/1.0", "FROB /p HTTP/1.1",
    ],
)  # fmt: skip
def test_request_lines_that_do_not_hold(request_line: str) -> None:
    assert refusal("Host: h", request_line=request_line).status == 400


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9"])
def test_other_versions(version: str) -> None:
    assert refusal("Host: h", request_line=f"GET / {version}").status == 505


def test_the_preface_of_http_2_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        parse_head(b"PRI * HTTP/2.0\r\n\r\n", LIMITS, LastLine())
    assert caught.value.status in (400, 505)


def test_connect_is_no_service() -> None:
    assert refusal("Host: h:1", request_line="CONNECT h:1 HTTP/1.1").status == 501


@pytest.mark.parametrize("lines", [(), ("Host: a", "Host: a"), ("Host: a", "host: b"), ("Host: a b",), ("Host: a/b",),
                                   ("Host: a,b",) * 2, ("Host: a@b",), ("Host: [::1",), ("Host: a:b",)])  # fmt: skip
def test_there_is_one_host(lines: tuple[str, ...]) -> None:
    """RFC 9112 section 3.2."""
    assert refusal(*lines).status == 400


def test_http_1_0_needs_no_host() -> None:
    request, _, _ = parse(request_line="GET / HTTP/1.0")
    assert not request.is_http_11
    assert not request.keep_alive


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 1", "Content-Length: 1"), ("Content-Length: 1", "content-length: 2"),
        ("Content-Length: 1, 1",),
        ("Content-Length: +1",), ("Content-Length: -1",), ("Content-Length: 0x1",), ("Content-Length: 1 1",),
        ("Content-Length:",), ("Content-Length: 99999999999999999999999",), ("Content-Length: 1\xb2",),
        ("Content-Length: 1", "Transfer-Encoding: chunked"), ("Transfer-Encoding: chunked", "Content-Length: 1"),
        ("Transfer-Encoding: xchunked",), ("Transfer-Encoding: identity",), ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: chunked, identity",), ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), ("Transfer-Encoding:",),
        ("Transfer-Encoding : chunked",), ("Transfer-Encoding: \x0bchunked",), ("Transfer-Encoding: \"chunked\"",),
        ("Transfer\xadEncoding: chunked",), (" Transfer-Encoding: chunked",), ("Transfer-Encoding: chunked;a=b",),
        ("Transfer_Encoding : chunked",), ("A: b\rTransfer-Encoding: chunked",), ("A: b\nTransfer-Encoding: chunked",),
        ("A: b", " folded"), ("A : b",), ("A\t: b",), (": b",), ("A",), ("A: b\x00c",), ("A: b\x01c",), ("A: b\x7fc",),
        ("A b: c",), ("A(b): c",), ("A\x00: c",),
    ],
)  # fmt: skip
def test_headers_that_do_not_hold(lines: tuple[str, ...]) -> None:
    assert refusal("Host: h", *lines).status in (400, 501)


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "chunked,gzip"])
def test_of_transfer_codings_only_chunked_is_read(coding: str) -> None:
    assert refusal("Host: h", f"Transfer-Encoding: {coding}").status in (400, 501)


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED "])
def test_chunked_is_read(coding: str) -> None:
    assert parse("Host: h", f"Transfer-Encoding: {coding}")[1] is None


def test_http_1_0_has_no_transfer_encoding() -> None:
    assert refusal("Host: h", "Transfer-Encoding: chunked", request_line="POST / HTTP/1.0").status == 400


def test_expectations() -> None:
    """RFC 9110 section 10.1.1."""
    assert parse("Host: h", "Expect: 100-Continue")[2]
    assert not parse("Host: h", "Expect: 100-continue", request_line="POST / HTTP/1.0")[2]
    assert refusal("Host: h", "Expect: 200-ok").status == 417


def test_headers_about_the_connection_go_no_further() -> None:
    """RFC 9110 section 7.6.1."""
    request, num_body_bytes, _ = parse(
        "Host: h", "Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: 5", "TE: trailers", "Trailer: a",
        "Proxy-Connection: x", "Upgrade: websocket", "X-End: 2", "Content-Length: 3",
    )  # fmt: skip
    assert request.headers == {"host": "h", "x-end": "2", "content-length": "3"}
    assert num_body_bytes == 3


def test_a_connection_header_cannot_take_out_the_framing() -> None:
    request, num_body_bytes, _ = parse("Host: h", "Connection: content-length, host", "Content-Length: 3")
    assert num_body_bytes == 3
    assert request.headers == {"host": "h", "content-length": "3"}


@pytest.mark.parametrize(
    ("connection", "version", "keep_alive"),
    [
        (None, "1.1", True), ("close", "1.1", False), ("Close", "1.1", False), ("x, close", "1.1", False),
        (None, "1.0", False), ("keep-alive", "1.0", True), ("Keep-Alive", "1.0", True), ("close, keep-alive", "1.0",
        False),
    ],
)  # fmt: skip
def test_who_keeps_the_connection(connection: str | None, version: str, keep_alive: bool) -> None:
    """RFC 9112 section 9.3."""
    lines = ["Host: h", *([f"Connection: {connection}"] if connection else [])]
    assert parse(*lines, request_line=f"GET / HTTP/{version}")[0].keep_alive is keep_alive


def test_an_offer_to_switch_protocols_is_not_taken_up() -> None:
    """RFC 9110 section 7.8. Java's HttpClient offers h2c with every first request."""
    request, _, _ = parse("Host: h", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAM")
    assert request.headers == {"host": "h"}


@pytest.mark.parametrize(
    ("lines", "request_line", "status", "setting"),
    [
        ((), "GET /" + "a" * 100 + " HTTP/1.1", 414, "max_target_bytes"),
        (["A: b"] * 20, "GET / HTTP/1.1", 431, "max_headers"),
        (["A: " + "b" * 500], "GET / HTTP/1.1", 431, "max_header_bytes"),
        (["A: " + "b" * 400] * 6, "GET / HTTP/1.1", 431, "max_head_bytes"),
    ],
)
def test_limits(lines: list[str], request_line: str, status: int, setting: str) -> None:
    error = refusal("Host: h", *lines, request_line=request_line)
    assert error.status == status
    assert f"router.http.{setting}" in error.message


def test_just_within_the_limits() -> None:
    assert len(parse("Host: h", request_line="GET /" + "a" * 99 + " HTTP/1.1")[0].path) == 100
    assert len(parse("Host: h", "A: " + "b" * 497)[0].headers["a"]) == 497
    assert len(parse("Host: h", *(f"A{index}: b" for index in range(19)))[0].headers) == 20


def test_the_last_line_is_remembered_and_nothing_else() -> None:
    last = LastLine()
    for target, host in (("/a", "h"), ("/a", "h"), ("/b", "h"), ("/b", "i"), ("/a", "h")):
        request, _, _ = parse_head(f"GET {target}?q HTTP/1.1\r\nHost: {host}\r\n\r\n".encode(), LIMITS, last)
        assert (request.path, request.query, request.headers["host"]) == (target, "q", host)
    with pytest.raises(ApiError):
        parse_head(b"GET /a?q HTTP/1.1\r\n\r\n", LIMITS, last)
    absolute = b"GET http://x/a HTTP/1.1\r\nHost: h\r\n\r\n"
    assert [parse_head(absolute, LIMITS, last)[0].headers["host"] for _ in range(2)] == ["x", "x"]
