"""A request's head: read by llhttp, and held to what llhttp leaves open. Pure.

llhttp (httptools 0.9) by itself refuses bare CR and LF, obs-fold, space before a colon, control characters, differing
and repeated Content-Length, Content-Length beside Transfer-Encoding. What it lets pass and is refused here: every
Transfer-Encoding but `chunked` (gzip, chunked), one in HTTP/1.0, versions 0.9 and 2.0, protocols other than HTTP,
several spaces in the request line, a missing, repeated or malformed Host, fragments, CONNECT. RFC 9112 is meant where
no other is named.
"""

import re

import httptools

from router.errors import ApiError, bad_request, malformed_request
from router.http.message import HttpRequest
from router.http.settings import HttpSettings

# Names as clients write them. Others are lower-cased one by one.
_LOWER_NAMES = """
    accept accept-charset accept-encoding accept-language authorization cache-control connection content-encoding
    content-length content-type cookie expect forwarded host keep-alive openai-organization openai-project origin pragma
    proxy-connection referer sec-fetch-mode te traceparent tracestate trailer transfer-encoding upgrade user-agent via
    x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-headrace-class x-headrace-deadline-s
    x-headrace-explain x-headrace-tenant x-headrace-tpot-s x-headrace-ttft-s x-real-ip x-request-id x-session-id
    x-stainless-arch x-stainless-async x-stainless-lang x-stainless-os x-stainless-package-version
    x-stainless-read-timeout x-stainless-retry-count x-stainless-runtime x-stainless-runtime-version
    x-stainless-timeout
""".split()  # noqa: SIM905  forty lines as a list
_KNOWN_NAMES = {form.encode(): name for name in _LOWER_NAMES for form in (name, name.title())}

_VERSIONS = {b"HTTP/1.1": True, b"HTTP/1.0": False}
_OTHER_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
# Any visible ASCII but "#": a fragment is never sent (RFC 9112 section 3.2), and llhttp lets it pass.
_TARGET = re.compile(r"((?:[Hh][Tt][Tt][Pp][Ss]?:/)?/[!\"$->@-~]*|\*)(?:\?([!\"$-~]*))?")
# uri-host [":" port]; RFC 9110 section 7.2, RFC 3986 section 3.2.2. May be empty.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_MAX_LENGTH_DIGITS = 18
# About this connection only: RFC 9110 section 7.6.1. `connection` itself is taken out earlier.
_HOP_BY_HOP = frozenset(("keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"))
_FRAMING = frozenset(("host", "content-length", "transfer-encoding", "expect"))  # no Connection header takes these out
_SINGLE = (*sorted(_FRAMING), "content-type")  # several lines of these have no meaning that two readers agree on


# The request, without its body; the body's length, None: chunked; whether its sender waits for `100 Continue`.
Head = tuple[HttpRequest, int | None, bool]


class LastLine:
    """The request line and Host read last: on one connection they seldom change, and are not taken apart again."""

    __slots__ = ("host", "line", "parsed")

    def __init__(self) -> None:
        self.line = b""
        self.host: str | None = None
        self.parsed: tuple[str, str, str, bool] = ("", "", "", False)


class _Fields:
    """What llhttp tells of a head: the first value of each header name."""

    __slots__ = ("first", "on_header")

    def __init__(self) -> None:
        self.first: dict[bytes, bytes] = {}
        self.on_header = self.first.setdefault  # a method in C: no Python frame for each header


class EarlyLook:
    """Refuses a head as soon as its bytes show that it cannot hold, before all of it is there."""

    __slots__ = ("_parser",)

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(_Fields())

    def feed(self, data: bytes) -> None:
        """The next bytes, none of them behind the head. Raises ApiError 400."""
        _feed(self._parser, data)


def parse_head(head: bytes, limits: HttpSettings, last: LastLine) -> Head:
    """Read a head that ends with its empty line; raises ApiError 400, 414, 417, 431, 501 or 505."""
    line_end = head.find(b"\r\n")
    num_headers = head.count(b"\r\n") - 2
    if line_end > limits.max_target_bytes or len(head) > limits.max_header_bytes or num_headers > limits.max_headers:
        _check_limits(head, line_end, num_headers, limits)
    fields = _Fields()
    _feed(httptools.HttpRequestParser(fields), head)
    known = _KNOWN_NAMES.get
    headers = {
        known(name) or name.decode("latin-1").lower(): value.strip().decode("latin-1")
        for name, value in fields.first.items()
    }
    if len(headers) != num_headers:  # a name came twice
        headers = _join_lines(head)
    line, host = head[:line_end], headers.get("host")
    if line != last.line or host != last.host:
        last.parsed = _parse_request_line(line, host)
        last.line, last.host = line, host
    method, path, query, is_http_11 = last.parsed
    if path[0] != "/" and path != "*":
        path = _take_authority(path, headers)
    num_body_bytes: int | None = 0
    if "transfer-encoding" in headers:
        _check_encoding(headers, is_http_11)
        num_body_bytes = None
    elif "content-length" in headers:
        text = headers["content-length"]
        if not text.isdecimal() or len(text) > _MAX_LENGTH_DIGITS:  # of latin-1, only 0 to 9 are decimal
            raise malformed_request("Content-Length is no number of bytes")  # section 6.3
        num_body_bytes = int(text)
    expects_continue = "expect" in headers and _expects_continue(headers.pop("expect"), is_http_11)
    keep_alive = _take_connection(headers, is_http_11)
    return HttpRequest(method, path, query, headers, is_http_11, keep_alive), num_body_bytes, expects_continue


def head_too_large(limits: HttpSettings, *, in_target: bool) -> ApiError:
    """The head, or its first line, goes on beyond the limit."""
    if in_target:
        message = f"the request target is longer than {limits.max_target_bytes} bytes (router.http.max_target_bytes)"
        return bad_request(message, code="target_too_long", status=414)
    message = f"the request's head is larger than {limits.max_head_bytes} bytes (router.http.max_head_bytes)"
    return bad_request(message, code="head_too_large", status=431)


def _feed(parser: httptools.HttpRequestParser, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # an offer to switch protocols, which is not taken up: RFC 9110 section 7.8
    except httptools.HttpParserError as error:
        raise malformed_request(str(error)) from error


def _check_limits(head: bytes, line_end: int, num_headers: int, limits: HttpSettings) -> None:
    """`line_end` counts method and version too: close to the limit it is looked at again."""
    if len(head) > limits.max_head_bytes:
        raise head_too_large(limits, in_target=False)
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) > 1 and len(words[1]) > limits.max_target_bytes:
        raise head_too_large(limits, in_target=True)
    if num_headers > limits.max_headers:
        message = f"{num_headers} headers; at most {limits.max_headers} are read (router.http.max_headers)"
        raise bad_request(message, code="too_many_headers", status=431)
    if max(map(len, lines[1:])) > limits.max_header_bytes:
        message = f"a header is longer than {limits.max_header_bytes} bytes (router.http.max_header_bytes)"
        raise bad_request(message, code="header_too_large", status=431)


def _join_lines(head: bytes) -> dict[str, str]:
    """All headers of a head that llhttp has found well-formed; RFC 9110 sections 5.3 and 5.5."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in _SINGLE:
                raise malformed_request(f"several {name} headers")
            value = f"{headers[name]}{'; ' if name == 'cookie' else ', '}{value}"
        headers[name] = value
    return headers


def _parse_request_line(line: bytes, host: str | None) -> tuple[str, str, str, bool]:
    """Method, path (of an absolute URI: all but the query), query, whether it is HTTP/1.1.

    Section 3: single spaces, nothing before or behind.
    """
    words = line.split(b" ")
    if len(words) != 3:
        raise malformed_request("the request line is not `method target version`")
    is_http_11 = _VERSIONS.get(words[2])
    if is_http_11 is None:
        if _OTHER_VERSION.fullmatch(words[2]):
            raise bad_request("only HTTP/1.0 and HTTP/1.1, no other version", code="http_version", status=505)
        raise malformed_request("no HTTP version")
    if words[0] == b"CONNECT":
        raise bad_request("this is no tunnel: CONNECT is not served", code="method_not_served", status=501)
    if host is None:
        if is_http_11:
            raise malformed_request("the Host header is missing")  # section 3.2
    elif not _HOST.fullmatch(host):
        raise malformed_request("the Host header names no host")
    method = words[0].decode("latin-1")
    match = _TARGET.fullmatch(words[1].decode("latin-1"))
    if match is None:
        raise malformed_request("the request target is no path, absolute URI or `*`")
    path, query = match.groups("")
    if path == "*" and (method != "OPTIONS" or query):
        raise malformed_request("only OPTIONS is about `*`")  # section 3.2.4
    return method, path, query, is_http_11


def _take_authority(uri: str, headers: dict[str, str]) -> str:
    """The path of an absolute URI; its authority takes the place of the Host header. Section 3.2.2."""
    _, _, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    if not authority or not _HOST.fullmatch(authority):
        raise malformed_request("the request target's authority names no host")
    headers["host"] = authority
    return slash + path or "/"


def _check_encoding(headers: dict[str, str], is_http_11: bool) -> None:
    """Section 6.1: whatever two readers might frame differently is refused."""
    if not is_http_11:
        raise malformed_request("HTTP/1.0 has no Transfer-Encoding")
    if "content-length" in headers:
        raise malformed_request("both Content-Length and Transfer-Encoding")
    if headers["transfer-encoding"].lower() != "chunked":
        raise bad_request("of transfer codings only `chunked` is read", code="transfer_encoding", status=501)


def _expects_continue(expectation: str, is_http_11: bool) -> bool:
    """RFC 9110 section 10.1.1."""
    if expectation.lower() != "100-continue":
        raise bad_request("of expectations only `100-continue` is met", code="expectation_failed", status=417)
    return is_http_11


def _take_connection(headers: dict[str, str], is_http_11: bool) -> bool:
    """Take out what is about the connection; return whether the client keeps it open. Section 9.3."""
    connection = headers.pop("connection", None)
    if not _HOP_BY_HOP.isdisjoint(headers):
        for name in _HOP_BY_HOP:
            headers.pop(name, None)
    if connection is None:
        return is_http_11
    if connection == "keep-alive":
        return True
    names = {name.strip(" \t") for name in connection.lower().split(",")}
    for name in names - _FRAMING:
        headers.pop(name, None)
    return "close" not in names and (is_http_11 or "keep-alive" in names)
