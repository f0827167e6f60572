"""The wire form of recordings. Numbers are invariants of `router/replay/recording.py` and `router/replay/wire.py`."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest

from kvstore.types import RequestId, WorkerId
from router.events import Abort, Dispatch, Event, FirstToken, RequestArrived, WorkerChanged
from router.replay.recording import End, Header, Recording, RecordingError, RecordingWriter, Step
from router.replay.wire import Forms
from router.types import Forecast, Overlap, RoutingDecision
from tests.builders import make_request, make_worker

HEADER = Header(recipe={"seed": 7}, started_at_s=1.7e9, now_s=12.5, written_with={"numpy": "2.0"})
FIRST_TOKEN = FirstToken(RequestId("r1"), 1)


def recorded(*steps: Step, end: End | None = None) -> list[bytes]:
    """Lines of a whole recording."""
    writer = RecordingWriter()
    data = writer.header(HEADER) + b"".join(writer.step(s.now_s, s.event, s.commands) for s in steps)
    return (data + (writer.end(end) if end else b"")).splitlines(keepends=True)


def read(lines: Iterable[bytes]) -> tuple[list[Step], End | None]:
    """Steps and end."""
    recording = Recording(lines)
    assert recording.header == HEADER
    return list(recording), recording.end


def test_a_whole_recording_is_read_back() -> None:
    worker = make_worker()
    forecast = Forecast(0.1, 0.0, 0.2, 0.0, 0.01, 0.05, math.inf, 64.0)
    decision = RoutingDecision(RequestId("r1"), 1, worker, None, forecast, frozenset({WorkerId("b"), WorkerId("a")}))
    steps = [
        Step(13.0, WorkerChanged(worker), ()),
        Step(13.5, RequestArrived(make_request(), Overlap(32, ((2, 2**1000 + 1), (5, 1)))), (Dispatch(decision),)),
        Step(14.0, FIRST_TOKEN, (Abort(RequestId("r1"), 1, WorkerId("w")),)),
    ]
    end = End("stopped", 3)
    assert read(recorded(*steps, end=end)) == (steps, end)


def test_a_spec_is_written_once_and_again_when_it_has_changed() -> None:
    """Invariant 2."""
    worker = make_worker(running_seqs=1)
    elsewhere = replace(worker, spec=replace(worker.spec, address="http://elsewhere:80"))
    states = [worker, make_worker(running_seqs=2), elsewhere, make_worker(epoch=2)]
    steps = [Step(float(at), WorkerChanged(state), ()) for at, state in enumerate(states)]
    lines = recorded(*steps)
    assert [b'"is":' in line for line in lines[1:]] == [True, False, False, True, False, True, False]
    assert read(lines)[0] == steps


def test_a_recording_may_break_off_anywhere_behind_its_header() -> None:
    """Invariant 3."""
    steps = [Step(float(at), FIRST_TOKEN, ()) for at in range(3)]
    data = b"".join(recorded(*steps))
    header_bytes = len(recorded()[0])
    for size in range(header_bytes, len(data) + 1):
        lines = data[:size].splitlines(keepends=True)
        found, end = read(lines)
        assert found == steps[: len(found)]
        assert len(found) == data[header_bytes:size].count(b"\n")
        assert end == End("cut", len(found))


def test_numbers_survive_bit_by_bit() -> None:
    """Wire invariant 1, for what JSON has no form for."""
    form = Forms().of(tuple[float, ...])
    values = (math.inf, -math.inf, -0.0, 0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1e22)
    back = form.decode(msgspec.json.decode(msgspec.json.encode(form.encode(values))))
    assert list(map(repr, back)) == list(map(repr, values))
    (nan,) = form.decode(msgspec.json.decode(msgspec.json.encode(form.encode((math.nan,)))))
    assert math.isnan(nan)
    whole = Forms().of(tuple[int, ...])
    numbers = (0, -1, 2**63 - 1, 2**63, -(2**63), 2**64, 2**4096 + 1, -(2**900))
    assert whole.decode(msgspec.json.decode(msgspec.json.encode(whole.encode(numbers)))) == numbers


def test_numbers_of_numpy_are_written_as_their_own() -> None:
    form = Forms().of(Forecast)
    value = Forecast(*(np.float64(0.1) * n for n in range(8)))
    assert form.decode(msgspec.json.decode(msgspec.json.encode(form.encode(value)))) == value
    assert Forms().of(int).encode(np.int64(3)) == 3


def test_a_field_that_is_not_there_has_its_default() -> None:
    lines = recorded(Step(1.0, RequestArrived(make_request()), ()))
    item = msgspec.json.decode(lines[1])
    del item["event"]["overlap"]
    lines[1] = msgspec.json.encode(item) + b"\n"
    assert read(lines)[0] == [Step(1.0, RequestArrived(make_request()), ())]


@dataclass(frozen=True)
class Unwritable:
    """A type of which JSON could not tell what it was."""

    value: int | str | None


@pytest.mark.parametrize("hint", [Unwritable, object, list[int], dict[int, str], int | str])
def test_a_type_without_an_exact_form_is_refused_at_once(hint: object) -> None:
    """Wire invariant 2."""
    with pytest.raises(TypeError, match="no exact form"):
        Forms().of(hint)


STEP = recorded(Step(1.0, FIRST_TOKEN, ()))[1]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "the file is empty"),
        ([b"\n"], "not the header"),
        ([b"\x80\x04pickle\n"], "not the header"),
        ([b"[1, 2]\n"], "not the header"),
        ([STEP], "not the header"),
        ([b'{"version": 2}\n'], "number 2; this version of headrace reads 1"),
        ([b'{"version": 1}\n'], "the header: .*recipe"),
        ([*recorded(), b"{}\n"], "line 2: 'at_s' is missing"),
        ([*recorded(), b"7\n"], "line 2: "),
        ([*recorded(), STEP, b"nonsense\n"], "line 3: "),
        ([*recorded(), STEP.replace(b"FirstToken", b"LastToken")], "line 2: type 'LastToken' is not known here"),
        ([*recorded(), STEP.replace(b'"attempt"', b'"trial"')], "line 2: FirstToken has no attempt"),
        ([*recorded(), STEP.replace(b'"attempt"', b'"x":0,"attempt"')], "line 2: FirstToken.x is not known here"),
        ([*recorded(), STEP.replace(b"1.0", b'"soon"')], "line 2: 'soon' is no number"),
        ([*recorded(), STEP.replace(b'"r1"', b"1")], "line 2: 1 where str is due"),
        ([*recorded(), b'{"end":"bored","steps":0}\n'], "line 2: .*bored"),
        ([*recorded(), b'{"spec":3,"is":{}}\n'], "line 2: spec 3 where 0 is next"),
        ([*recorded(), *recorded(Step(0.0, WorkerChanged(make_worker()), ()))[2:]], "line 2: spec 0 is not defined"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(lines: list[bytes], words: str) -> None:
    with pytest.raises(RecordingError, match=words):
        list(Recording(lines))


def test_a_line_says_what_it_is_in_words() -> None:
    """A recording is read by people too."""
    event: Event = FIRST_TOKEN
    assert RecordingWriter().step(2.5, event, []) == (
        b'{"at_s":2.5,"event":{"type":"FirstToken","request_id":"r1","attempt":1},"commands":[]}\n'
    )
