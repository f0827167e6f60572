"""Reading the usage of an answer as its bytes go by."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.types import Usage
from router.usage import StreamTap, UnaryTap, asks_for_usage, find_usage, with_usage

TEXT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a \\"choices\\":[] \\"usage\\":{ b"}}]}\n\n'
USAGE = (
    b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":8}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
FOUND = Usage(prompt_tokens=9, cached_tokens=8, output_tokens=3)


def through(tap: StreamTap | UnaryTap, pieces: list[bytes]) -> bytes:
    return b"".join([tap.feed(piece) for piece in pieces]) + tap.flush()


@given(cuts=st.lists(st.integers(0, len(TEXT * 2 + USAGE + DONE)), max_size=8), strip=st.booleans())
def test_the_usage_event_is_found_and_taken_out_however_the_bytes_are_cut(cuts: list[int], strip: bool) -> None:
    stream = TEXT * 2 + USAGE + DONE
    edges = [0, *sorted(cuts), len(stream)]
    tap = StreamTap(strip=strip)
    out = through(tap, [stream[a:b] for a, b in itertools.pairwise(edges)])
    assert out == (TEXT * 2 + DONE if strip else stream)
    assert tap.usage == FOUND
    assert tap.is_complete


@given(st.integers(0, len(TEXT + USAGE + DONE) - 1), st.integers(0, len(TEXT + USAGE + DONE) - 1))
def test_a_stream_is_complete_with_its_last_event_and_not_before(one: int, two: int) -> None:
    stream, tap = TEXT + USAGE + DONE, StreamTap(strip=True)
    for start, end in itertools.pairwise(sorted((0, one, two))):
        tap.feed(stream[start:end])
        assert not tap.is_complete


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_a_stream_without_usage_passes_unchanged(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    assert through(StreamTap(strip=True), [data[a:b] for a, b in itertools.pairwise(edges)]) == data


def test_whole_events_are_passed_on_at_once_and_a_broken_one_when_the_stream_ends() -> None:
    tap = StreamTap(strip=True)
    assert tap.feed(TEXT) is TEXT
    assert tap.feed(TEXT[:20]) == b""
    assert tap.flush() == TEXT[:20]


def test_an_endless_event_is_not_collected() -> None:
    tap = StreamTap(strip=True)
    assert tap.feed(b"x" * (2 << 20)) == b"x" * (2 << 20)


def test_usage_of_an_answer_in_one_piece() -> None:
    body = b'{"choices":[{"text":"\\"usage\\":{}"}],"usage":{"prompt_tokens":9,"completion_tokens":3,' + (
        b'"prompt_tokens_details":{"cached_tokens":8}},"kv_transfer_params":null}'
    )
    tap = UnaryTap()
    assert through(tap, [b" " * 9000, body[:50], body[50:]]) == b" " * 9000 + body
    assert tap.usage == FOUND


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'"usage":null', b'"usage":{"prompt', b'"usage":{"a":1}', b'"usage":{"prompt_tokens":"x"}']
)
def test_no_usage_is_none(data: bytes) -> None:
    assert find_usage(data) is None


def test_cached_tokens_that_are_not_reported_are_not_zero() -> None:
    assert find_usage(b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":null}}') == Usage(5, None, 0)


@pytest.mark.parametrize("raw", [b'{"a":1}', b' {"stream_options": {"x": 1}, "a":1}', b'{"stream_options":null}'])
def test_the_engine_is_asked_for_usage_and_for_everything_the_client_asked(raw: bytes) -> None:
    fields = msgspec.json.decode(raw)
    assert not asks_for_usage(fields)
    asked = msgspec.json.decode(with_usage(raw, fields))
    assert asks_for_usage(asked)
    assert asked.pop("stream_options").items() >= (fields.pop("stream_options", None) or {}).items()
    assert asked == fields


def test_stream_options_that_are_no_object_are_the_engines_to_refuse() -> None:
    raw = b'{"stream_options": 3}'
    assert with_usage(raw, {"stream_options": 3}) == raw


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b'{"usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":4},"output_tokens":5}}', (7, 4, 5)),
        (b'event: message_delta\ndata: {"usage":{"input_tokens":7,"output_tokens":5}}\n\n', (7, None, 5)),
        (b'{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}', (7, None, 0)),
        (b'{"usage":{"total_tokens":7},"results":[]}', (7, None, 0)),
        (b'{"usage":{}}', None),
    ],
)  # fmt: skip
def test_the_words_of_other_routes(answer: bytes, found: tuple[int, int | None, int] | None) -> None:
    assert find_usage(answer) == (None if found is None else Usage(*found))
