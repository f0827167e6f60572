"""Recordings: every event and command comes back as it was, and a history told again is decided again, bit by bit."""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from random import Random
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from router.events import Command, Event
from router.replay.recording import Header, Recording, RecordingWriter, plain
from router.replay.replay import replay
from router.replay.what_if import compare
from tests.builders import make_core
from tests.histories import History

HEADER = Header(recipe={}, started_at_s=0.0, now_s=0.0, written_with={})

SCALARS: Mapping[Any, st.SearchStrategy[Any]] = {
    int: st.integers() | st.integers(2**62, 2**70) | st.integers(0, 2**1200),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=8),
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a type hint, by the hint alone: not by what the wire form makes of it."""
    hint = getattr(hint, "__supertype__", hint)
    if hint in SCALARS:
        return SCALARS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of([st.none() if part is type(None) else values_of(part) for part in arguments])
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is frozenset:
        return st.frozensets(values_of(arguments[0]), max_size=3)
    if origin is Mapping:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    hints = get_type_hints(hint)
    if issubclass(hint, msgspec.Struct):
        names = hint.__struct_fields__
    else:
        names = [field.name for field in fields(hint)] if is_dataclass(hint) else hint._fields
    return st.builds(hint, **{name: values_of(hints[name]) for name in names})


steps = st.tuples(
    st.floats(allow_nan=False, allow_infinity=False),
    values_of(Event),
    st.lists(values_of(Command), max_size=2).map(tuple),
)


def test_the_generator_reaches_every_type() -> None:
    names = {part.__name__ for part in (*get_args(Event), *get_args(Command))}
    assert {"RequestArrived", "ReplicasReported", "Woken", "Dispatch", "Reject", "Abort"} <= names


@given(st.lists(steps, max_size=4))
def test_what_is_written_is_read_back_and_written_alike(told: list[tuple[float, Event, tuple[Command, ...]]]) -> None:
    """Recording invariants 1 and 2."""
    writer = RecordingWriter()
    lines = writer.header(HEADER) + b"".join(writer.step(*step) for step in told)
    found = [(step.now_s, step.event, step.commands) for step in Recording(lines.splitlines(keepends=True))]
    assert found == told
    again = RecordingWriter()
    assert again.header(HEADER) + b"".join(again.step(*step) for step in found) == lines
    for (_, _, ours), (_, _, theirs) in zip(told, found, strict=True):
        assert msgspec.json.encode(plain(ours)) == msgspec.json.encode(plain(theirs))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), hand_off=st.sampled_from(["cost", "always", "never"]))
def test_a_history_told_again_is_decided_again(seed: int, hand_off: Any) -> None:
    """Whatever the shell asked the core between the events: questions are not events."""
    writer = RecordingWriter()
    lines = [writer.header(HEADER)]
    core = make_core(seed, hand_off=hand_off)
    History(core, Random(seed), lambda *step: lines.append(writer.step(*step))).run(120)
    report = replay(b"".join(lines).splitlines(keepends=True), lambda _: make_core(seed, hand_off=hand_off))
    assert report.difference is None
    assert report.num_events > 120
    same = compare(b"".join(lines).splitlines(keepends=True), lambda _: make_core(seed, hand_off=hand_off))
    assert same.num_requests > 0


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_another_policy_is_told_a_history_that_hangs_together(seed: int) -> None:
    """What-if invariant: whatever the other core decides, nothing stays with it that has ended."""
    writer = RecordingWriter()
    lines = [writer.header(HEADER)]
    history = History(make_core(seed, hand_off="cost"), Random(seed), lambda *step: lines.append(writer.step(*step)))
    history.run(120)
    history.end()
    other = make_core(seed + 1, hand_off="never", max_attempts=2)
    found = compare(b"".join(lines).splitlines(keepends=True), lambda _: other)
    other.validate()
    assert found.num_requests + found.num_left_waiting <= history.num_arrived
    assert found.recorded.dispatched + found.recorded.rejected == found.num_requests
    assert found.other.dispatched + found.other.rejected == found.num_requests
    assert other.num_waiting == 0
    promised = [other.candidate(worker) for worker in other.fleet()]
    assert all(candidate.reserved_prefill_tokens == candidate.reserved_seqs == 0 for candidate in promised)
