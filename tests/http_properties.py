"""What holds of any bytes that come over a connection: invariants of router/http/reader.py, and h11's opinion.

Run for a bounded number of examples by tests/property/test_http_reader_properties.py, for as long as one likes by
tests/fuzz/http_requests.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

import h11
from hypothesis import event
from hypothesis import strategies as st

from router.http.message import HttpRequest
from tests.http_bytes import LIMITS, MAX_BODY_BYTES, cut_up, good_requests, near_requests, read, streams

MAX_KEPT_BYTES = LIMITS.max_head_bytes + MAX_BODY_BYTES + 5000


def requests_do_not_depend_on_how_the_bytes_arrive(data: bytes, draw: st.DataObject) -> None:
    """Invariant 1."""
    whole, error, _ = read([data])
    parts, part_error, reader = read(draw.draw(cut_up(data)))
    assert parts == whole
    assert (part_error is None) == (error is None)
    event(f"{len(whole)} requests, {'refused' if error else 'fine'}")
    if error is not None:
        assert 400 <= error.status < 600
    else:
        assert reader.num_held_bytes + reader.num_body_bytes <= MAX_KEPT_BYTES  # invariant 4


def pipelined_requests_come_out_as_they_went_in(
    made: list[tuple[bytes, tuple[str, str, bytes]]], draw: st.DataObject
) -> None:
    """Invariant 2, and that nothing of one request gets into another."""
    data = b"".join(part for part, _ in made)
    requests, error, reader = read(draw.draw(cut_up(data)))
    assert error is None, str(error)
    assert [(request.method, request.path, request.body) for request in requests] == [want for _, want in made]
    assert reader.num_held_bytes == 0
    assert not reader.is_in_request


def what_follows_a_refusal_is_never_a_request(good: tuple[bytes, tuple[str, str, bytes]], bad: bytes) -> None:
    """Invariant 3: `read` stops there, and a request hidden behind is not among those before."""
    requests, error, _ = read([bad])
    more, more_error, _ = read([bad + good[0]])
    if error is not None:
        assert more == requests
        assert more_error is not None


def h11_reads(data: bytes) -> tuple[list[tuple[str, str, bytes]], bool]:
    """Requests by h11, and whether it found something wrong."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMITS.max_head_bytes)
    connection.receive_data(data)
    requests: list[tuple[str, str, bytes]] = []
    method, target, body = "", "", b""
    try:
        while True:
            match connection.next_event():
                case h11.Request(method=raw_method, target=raw_target):
                    method, target, body = raw_method.decode(), raw_target.decode("latin-1"), b""
                case h11.Data(data=piece):
                    body += bytes(piece)
                case h11.EndOfMessage():
                    requests.append((method, target, body))
                    connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                    if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                        return requests, False
                    connection.start_next_cycle()
                case _:
                    return requests, False
    except h11.RemoteProtocolError:
        return requests, True


def as_h11_tells(request: HttpRequest) -> tuple[str, bytes]:
    return request.method, request.body


def whatever_is_accepted_h11_reads_the_same_way(data: bytes) -> None:
    """The dangerous direction: two readers that both accept, and see different requests.

    What one side refuses is safe. h11 refuses and we take: an empty line before a request (RFC 9112 section 2.2 says
    one SHOULD be ignored). h11 takes and we refuse: bare LF, obs-fold, equal Content-Lengths, any method and target,
    a Host that names no host, Transfer-Encoding in HTTP/1.0 or with Content-Length, `HTTP/1.2` and so on.
    """
    ours, _, _ = read([data.lstrip(b"\r\n")])
    ours_until_close: list[HttpRequest] = []
    for request in ours:
        ours_until_close.append(request)
        if not request.keep_alive:
            break  # a server closes here, and so does h11
    theirs, _ = h11_reads(data.lstrip(b"\r\n"))
    common = min(len(ours_until_close), len(theirs))
    assert [as_h11_tells(request) for request in ours_until_close[:common]] == [
        (method, body) for method, _, body in theirs[:common]
    ]
    event(f"ours {len(ours_until_close)}, h11's {len(theirs)}")


def good_requests_are_good_for_h11_too(made: tuple[bytes, tuple[str, str, bytes]]) -> None:
    data, want = made
    theirs, is_wrong = h11_reads(data.lstrip(b"\r\n"))
    assert not is_wrong
    assert theirs == [want]


CHECKS: Mapping[str, tuple[Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = {
    "requests do not depend on how the bytes arrive": (
        requests_do_not_depend_on_how_the_bytes_arrive,
        {"data": streams, "draw": st.data()},
    ),
    "pipelined requests come out as they went in": (
        pipelined_requests_come_out_as_they_went_in,
        {"made": st.lists(good_requests(), min_size=1, max_size=5), "draw": st.data()},
    ),
    "what follows a refusal is never a request": (
        what_follows_a_refusal_is_never_a_request,
        {"good": good_requests(), "bad": near_requests()},
    ),
    "whatever is accepted h11 reads the same way": (
        whatever_is_accepted_h11_reads_the_same_way,
        {"data": st.lists(near_requests(), min_size=1, max_size=2).map(b"".join)},
    ),
    "good requests are good for h11 too": (good_requests_are_good_for_h11_too, {"made": good_requests()}),
}
