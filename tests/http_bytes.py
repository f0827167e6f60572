"""Byte streams that are requests, nearly requests, or nothing of the kind, for property tests and the fuzzer."""

from hypothesis import strategies as st

from router.errors import ApiError
from router.http.message import HttpRequest
from router.http.reader import RequestReader
from router.http.settings import HttpSettings

LIMITS = HttpSettings(max_target_bytes=64, max_head_bytes=1024, max_header_bytes=128, max_headers=12)
MAX_BODY_BYTES = 200

_names = st.sampled_from(
    ["Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "X-A", "x-a", "Cookie", "Upgrade", "TE"]
)
_values = st.sampled_from(
    ["h", "", "0", "3", "3, 3", "+3", "999", "chunked", "Chunked", "gzip, chunked", "close", "keep-alive",
    "100-continue",
     "upgrade, close", "h2c", "a\tb", "\xe9", "\x00", "a\rb", "a\nb", "x" * 150]
)  # fmt: skip
_methods = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PRI", "get", "G ET", ""])
_targets = st.sampled_from(
    ["/", "/a?b", "*", "http://o/x", "http://", "/a#b", "a", "", "/\x00", "/\xff", "/" * 70, "/a b", "//"]
)
_versions = st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", ""])
_breaks = st.sampled_from(["\r\n"] * 12 + ["\n", "\r", "\r\n ", "\r\r\n"])
_bodies = st.sampled_from(
    [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"0\r\n\r\n", b"1;a=b\r\nx\r\n0\r\nT: u\r\n\r\n", b"3\r\nab",
    b"0x3\r\nabc\r\n0\r\n\r\n",
     b"3 \r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n", b"ffffffffff\r\n", b"0\r\n\r", b"x" * 250]
)  # fmt: skip


@st.composite
def near_requests(draw: st.DrawFn) -> bytes:
    """A request, right or wrong in a few places."""
    lines = [f"{draw(_methods)} {draw(_targets)} {draw(_versions)}"]
    if draw(st.integers(0, 9)):
        lines.append("Host: h")
    lines += [f"{draw(_names)}{draw(st.sampled_from([':', ': ', ' :']))}{draw(_values)}" for _ in range(draw(_few))]
    text = draw(_leads) + "".join(line + draw(_breaks) for line in lines) + draw(_breaks)
    return text.encode("latin-1") + draw(_bodies)


_few = st.integers(0, 3)
_leads = st.sampled_from([""] * 8 + ["\r\n", "\r\n\r\n", "\n", " "])


@st.composite
def good_requests(draw: st.DrawFn) -> tuple[bytes, tuple[str, str, bytes]]:
    """A request that must be accepted: its bytes; method, path and body."""
    method, path = draw(st.sampled_from(["GET", "POST", "PUT"])), draw(st.sampled_from(["/", "/a", "/b/c"]))
    body = draw(st.binary(max_size=40))
    headers = draw(st.sampled_from(["", "X-A: b\r\n", "X-A:b \r\nx-a: c\r\n", "Expect: 100-continue\r\n"]))
    head = f"{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}"
    lead = draw(st.sampled_from([b"", b"", b"\r\n"]))
    if draw(st.booleans()):
        data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    else:
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
        chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), draw(_extensions), piece) for piece in pieces)
        data = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n" + draw(_trailers) + b"\r\n"
    return lead + data, (method, path, body)


_extensions = st.sampled_from([b"", b"", b";a", b';a="b;c"'])
_trailers = st.sampled_from([b"", b"", b"T: u\r\n"])
streams = st.one_of(
    st.lists(near_requests(), min_size=1, max_size=3).map(b"".join),
    st.lists(good_requests(), min_size=1, max_size=4).map(lambda made: b"".join(data for data, _ in made)),
    st.binary(max_size=200),
)


@st.composite
def cut_up(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The same bytes in pieces, often single ones."""
    if draw(st.booleans()):
        size = draw(st.integers(1, 7))
        return [data[at : at + size] for at in range(0, len(data), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def read(pieces: list[bytes]) -> tuple[list[HttpRequest], ApiError | None, RequestReader]:
    """Every request that a connection would serve, and what ended it."""
    reader = RequestReader(LIMITS, MAX_BODY_BYTES)
    requests: list[HttpRequest] = []
    try:
        for piece in pieces:
            request = reader.feed(piece)
            while request is not None:
                requests.append(request)
                request = reader.feed()
    except ApiError as error:
        return requests, error, reader
    return requests, None, reader
