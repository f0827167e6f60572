"""Request smuggling over real sockets: one refusal, the connection closed, and never a second request.

Each attack is followed by what it would smuggle. `h11` says whether h11 0.16 takes it too; where it does and we do not,
the reason stands beside it.
"""

import asyncio
import json

import h11
import pytest

from tests.http_server import Served, run, serving, statuses

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
TAKES, REFUSES = True, False


def head(*lines: bytes, line: bytes = b"POST /front HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: h", *lines, b"", b""])


def chunked(body: bytes) -> bytes:
    return head(CHUNKED[:-2]) + body


ATTACKS: dict[str, tuple[bytes, bool]] = {
    "CL.TE": (head(b"Content-Length: 6", CHUNKED[:-2]) + b"0\r\n\r\nG", TAKES),  # RFC 9112 6.1 allows to refuse
    "TE.CL": (head(CHUNKED[:-2], b"Content-Length: 4") + b"5c\r\n" + b"x" * 92 + b"\r\n0\r\n\r\n", TAKES),  # the same
    "CL.CL": (head(b"Content-Length: 0", b"Content-Length: 30"), REFUSES),
    "equal CLs": (head(b"Content-Length: 3", b"Content-Length: 3") + b"abc", TAKES),  # 6.3 allows to refuse
    "CL list": (head(b"Content-Length: 3, 3") + b"abc", TAKES),  # the same
    "CL plus": (head(b"Content-Length: +3") + b"abc", REFUSES),
    "CL hex": (head(b"Content-Length: 0x3") + b"abc", REFUSES),
    "CL negative": (head(b"Content-Length: -3"), REFUSES),
    "CL huge": (head(b"Content-Length: 18446744073709551619") + b"abc", TAKES),  # no limit in h11; 64 bits wrap to 3
    "CL inner space": (head(b"Content-Length: 3 0") + b"abc", REFUSES),
    "TE.TE": (head(CHUNKED[:-2], b"Transfer-Encoding: identity") + b"0\r\n\r\n", REFUSES),
    "TE twice": (head(CHUNKED[:-2], CHUNKED[:-2]) + b"0\r\n\r\n", REFUSES),
    "TE list": (head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", REFUSES),
    "TE x": (head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", REFUSES),
    "TE vertical tab": (head(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n", REFUSES),
    "TE quoted": (head(b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n", REFUSES),
    "TE space before colon": (head(b"Transfer-Encoding : chunked") + b"0\r\n\r\n", REFUSES),
    "TE folded": (head(b"Transfer-Encoding:", b" chunked") + b"0\r\n\r\n", TAKES),  # obs-fold: 5.2 wants it refused
    "TE in 1.0": (head(CHUNKED[:-2], line=b"POST /front HTTP/1.0") + b"0\r\n\r\n", TAKES),  # 6.1: framing is faulty
    "leading space": (head(b" " + CHUNKED[:-2]) + b"0\r\n\r\n", TAKES),  # obs-fold again
    "bare LF line": (head(b"A: b\n" + CHUNKED[:-2]) + b"0\r\n\r\n", TAKES),  # 2.2 allows a lone LF; proxies differ
    "bare LF head": (b"POST /front HTTP/1.1\nHost: h\n\n", TAKES),  # the same
    "bare CR": (head(b"A: b\r" + CHUNKED[:-2]) + b"0\r\n\r\n", REFUSES),
    "NUL in value": (head(b"A: b\x00c"), REFUSES),
    "NUL in name": (head(b"A\x00: b"), REFUSES),
    "obs-fold": (head(b"A: b", b"\tc"), TAKES),  # 5.2
    "empty name": (head(b": b"), REFUSES),
    "no colon": (head(b"A"), REFUSES),
    "no host": (b"POST /front HTTP/1.1\r\nContent-Length: 0\r\n\r\n", REFUSES),
    "two hosts": (head(b"Host: i"), REFUSES),
    "bad host": (b"POST /front HTTP/1.1\r\nHost: h/x\r\n\r\n", TAKES),  # h11 leaves hosts to its caller
    "bad method": (head(line=b"PO ST /front HTTP/1.1"), REFUSES),
    "unknown method": (head(line=b"SMUGGLE /front HTTP/1.1"), TAKES),  # any token; ours are those of IANA
    "bad target": (head(line=b"POST front HTTP/1.1"), TAKES),  # h11 leaves targets to its caller
    "fragment": (head(line=b"POST /a#b HTTP/1.1"), TAKES),  # the same
    "target with NUL": (head(line=b"POST /a\x00 HTTP/1.1"), REFUSES),
    "double space": (head(line=b"POST  /front HTTP/1.1"), REFUSES),
    "h2c preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", TAKES),  # h11 leaves versions to its caller
    "HTTP/0.9": (b"POST /front\r\n\r\n", REFUSES),
    "two empty lines": (b"\r\n\r\n" + head(), REFUSES),
    "bare LF before": (b"\n" + head(), REFUSES),
    "TLS to a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", REFUSES),
    "chunk size 0x": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), REFUSES),
    "chunk size space": (chunked(b"3 \r\nabc\r\n0\r\n\r\n"), TAKES),  # 7.1 has no space there
    "chunk size junk": (chunked(b"3g\r\nabc\r\n0\r\n\r\n"), REFUSES),
    "chunk size sign": (chunked(b"-1\r\nabc\r\n0\r\n\r\n"), REFUSES),
    "chunk size overflow": (chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n"), TAKES),  # the same
    "chunk over the limit": (chunked(b"FFFFFFFF\r\nabc"), TAKES),  # h11 has no limit
    "chunk without CRLF": (chunked(b"3\r\nabcX\r\n0\r\n\r\n"), REFUSES),
    "chunk LF": (chunked(b"3\nabc\n0\n\n"), TAKES),  # h11 waits for a CRLF that does not come
    "chunk extension LF": (chunked(b"3;a\nbc\r\nabc\r\n0\r\n\r\n"), REFUSES),
    "chunk extension CR": (chunked(b"3;a\rbc\r\nabc\r\n0\r\n\r\n"), TAKES),  # 7.1.1 has no CR there
    "trailer smuggles": (chunked(b"0\r\nA: b\x00\r\n\r\n"), REFUSES),
    "trailer folded": (chunked(b"0\r\nA: b\r\n c\r\n\r\n"), TAKES),  # obs-fold
}  # fmt: skip


async def attack(served: Served, data: bytes, pause: bool) -> bytes:
    client = await served.connect()
    if pause:  # in two segments, cut in the middle
        client.send(data[: len(data) // 2])
        await asyncio.sleep(0.001)
        data = data[len(data) // 2 :]
    client.send(data)
    return await client.read_all()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_and_nothing_behind_it_is_served(name: str) -> None:
    async def test() -> None:
        async with serving(linger_s=0.1) as served:
            for pause in (False, True):
                received = await attack(served, ATTACKS[name][0] + SMUGGLED, pause)
                assert len(statuses(received)) == 1, received
                assert statuses(received)[0] in (400, 413, 501, 505), received
                lines, _, body = received.partition(b"\r\n\r\n")
                assert b"connection: close" in lines
                error = json.loads(body)["error"]
                assert {"message", "type", "param", "code"} <= set(error)
            assert not served.requests
            assert statuses(await served.exchange(SMUGGLED)) == [200], "others are served as before"

    run(test)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_h11_says(name: str) -> None:
    """The table above is right about h11."""
    data, takes = ATTACKS[name]
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            pass
    except h11.RemoteProtocolError:
        assert not takes
    else:
        assert takes


def test_a_refusal_behind_good_requests_comes_after_their_answers() -> None:
    async def test() -> None:
        async with serving(linger_s=0.1) as served:
            received = await attack(served, SMUGGLED * 3 + b"BAD\r\n\r\n" + SMUGGLED, pause=False)
            assert statuses(received) == [200, 200, 200, 400]
            assert len(served.requests) == 3

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n",
    ],
)
def test_an_upgrade_is_not_taken_up_and_what_follows_is_read_as_before(data: bytes) -> None:
    async def test() -> None:
        async with serving() as served:
            body = b"abc" if b"Content-Length" in data else b""
            request = b"POST /front HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n" + body
            received = await served.exchange(request + SMUGGLED)
            assert statuses(received) == [200, 200]
            assert [made.body for made in served.requests] == [body, b""]

    run(test)
