"""An engine's answer, however its bytes are cut, and whatever they are."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.raw_upstream import chunked, whole
from workers.engine_http.response import MalformedResponseError, ResponseReader

MAX_HEAD_BYTES = 4096
bodies = st.binary(max_size=300)
answers = st.one_of(
    bodies.map(whole),
    st.lists(st.binary(min_size=1, max_size=80), max_size=6).map(lambda pieces: chunked(*pieces)),
    bodies.map(lambda body: b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n" + body),
    bodies.map(lambda body: b"HTTP/1.1 100 Continue\r\n\r\n" + whole(body, b"Connection: close")),
)
cuts = st.lists(st.integers(0, 600), max_size=12)


def outcome(data: bytes, at: list[int]) -> tuple[object, ...]:
    """Everything that a caller can see of an answer that comes in these pieces, and then ends."""
    body: list[bytes] = []
    reader = ResponseReader(body.append, MAX_HEAD_BYTES)
    edges = [0, *sorted(min(cut, len(data)) for cut in at), len(data)]
    try:
        for start, end in itertools.pairwise(edges):
            if start < end:
                reader.feed(data[start:end])
        reader.feed_eof()
    except MalformedResponseError:
        return False, b"".join(body)
    return True, b"".join(body), reader.status, reader.fields, reader.keeps_alive


@given(answers, cuts)
def test_how_an_answer_is_cut_changes_nothing(data: bytes, at: list[int]) -> None:
    assert outcome(data, at) == outcome(data, [])
    assert outcome(data, at)[0]


noise = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"\r\n", b"\n", b"\0", b" ", b"HTTP/1.1 ", b"0\r\n\r\n", b"Content-Length: 3\r\n", b"\r\n\r\n", b"ffffffff"]
    ),
    st.just(b"Transfer-Encoding: chunked\r\n"),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An answer with pieces overwritten, put in and left out."""
    data = draw(answers)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(noise) + data[start + draw(st.integers(0, 20)) :]
    return data


@given(damaged(), cuts)
def test_damaged_bytes_are_a_whole_answer_or_malformed_and_the_cuts_do_not_matter(data: bytes, at: list[int]) -> None:
    assert outcome(data, at)[0] == outcome(data, [])[0]
    if outcome(data, [])[0]:
        assert outcome(data, at) == outcome(data, [])
