"""The wire form of a recording: every event the core was told, and every command it answered. Pure.

JSON lines in UTF-8. The first is the header, every other one of

    {"spec": 3, "is": {...}}                              a worker's spec, said once; later lines name it by number
    {"at_s": 12.5, "event": {...}, "commands": [...]}     one step: the instant, what happened, what was answered
    {"end": "stopped", "steps": 120}                      the last, if the recorder came to write it

with events, commands and their parts in the forms of `wire.py`. Recordings hold no prompt and no completion, but
tenants, request ids and digests of bodies: treat them like logs.

Invariants
 1. What is written is read back equal, and written again gives the same bytes.
 2. Specs are numbered from 0 in order of their first use; a line names none that no earlier line has defined.
 3. A reader yields the steps that are there, in order; a recording that breaks off in the middle of a line ends before
    that line, and says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import msgspec

from router.events import Command, Event
from router.replay.wire import FLOAT, Form, Forms
from workers.types import WorkerSpec

FORMAT_VERSION = 1
_COMMANDS = tuple[Command, ...]
_PLAIN_COMMANDS = Forms().of(_COMMANDS)

EndReason = Literal["stopped", "truncated", "overflow", "cut"]


class RecordingError(Exception):
    """Not a recording that this version can read; says where and why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a reader needs before the first step."""

    recipe: Mapping[str, Any]  # what builds the same core again: settings and seed, as JSON values
    started_at_s: float  # Unix time of `now_s`
    now_s: float  # the core's clock when the recording began
    written_with: Mapping[str, str]  # versions and machine: what can change the last bit of a float
    version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Step:
    """One call of `RouterCore.handle`."""

    now_s: float
    event: Event
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class End:
    """Why there are no more steps.

    stopped: the router ended. truncated: the size limit. overflow: the disk was slower than the router. cut: the file
    ends without a last line, because the router was killed or still writes.
    """

    reason: EndReason
    steps: int


class RecordingWriter:
    """The lines of one recording, to be written in the order in which they are made."""

    def __init__(self) -> None:
        self._specs: list[WorkerSpec] = []
        self._numbers: dict[tuple[str, int], int] = {}  # (worker id, epoch) -> the newest spec with these
        self._new: list[int] = []
        forms = Forms({WorkerSpec: Form(self._number_of, _unreachable)})
        self._event, self._commands, self._spec = forms.of(Event), forms.of(_COMMANDS), Forms().of(WorkerSpec)

    def header(self, header: Header) -> bytes:
        """The first line."""
        return _line({field.name: getattr(header, field.name) for field in fields(Header)})

    def step(self, now_s: float, event: Event, commands: Iterable[Command]) -> bytes:
        """The line of one step, behind those of specs that it is the first to name."""
        step = {
            "at_s": FLOAT.encode(now_s),
            "event": self._event.encode(event),
            "commands": self._commands.encode(commands),
        }
        defined = [_line({"spec": at, "is": self._spec.encode(self._specs[at])}) for at in self._new]
        self._new.clear()
        return b"".join((*defined, _line(step)))

    def end(self, end: End) -> bytes:
        """The last line."""
        return _line({"end": end.reason, "steps": end.steps})

    def _number_of(self, spec: WorkerSpec) -> int:
        key = spec.id, spec.epoch
        number = self._numbers.get(key)
        if number is None or self._specs[number] != spec:
            number = self._numbers[key] = len(self._specs)
            self._specs.append(spec)
            self._new.append(number)
        return number


class Recording:
    """Reads one recording, once, from beginning to end. Raises RecordingError."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = enumerate(lines, 1)
        self._specs: list[WorkerSpec] = []
        forms = Forms({WorkerSpec: Form(_unreachable, self._spec_at)})
        self._event, self._commands, self._spec = forms.of(Event), forms.of(_COMMANDS), Forms().of(WorkerSpec)
        self.header = self._read_header()
        self.end: End | None = None  # known when the steps are over

    def __iter__(self) -> Iterator[Step]:
        """The steps."""
        steps = 0
        for number, line in self._lines:
            if not line.endswith(b"\n"):
                break
            try:
                item = msgspec.json.decode(line)
                if "end" in item:
                    self.end = msgspec.convert({"reason": item["end"], "steps": item["steps"]}, End)
                    return
                step = self._step(item)
            except _UNREADABLE as error:
                raise RecordingError(f"line {number}: {_worded(error)}") from None
            if step is not None:
                steps += 1
                yield step
        self.end = End("cut", steps)

    def _step(self, item: Mapping[str, Any]) -> Step | None:
        """The step of a line; None for the definition of a spec."""
        if "spec" in item:
            if item["spec"] != len(self._specs):
                raise ValueError(f"spec {item['spec']!r} where {len(self._specs)} is next")
            self._specs.append(self._spec.decode(item["is"]))
            return None
        return Step(
            FLOAT.decode(item["at_s"]), self._event.decode(item["event"]), self._commands.decode(item["commands"])
        )

    def _read_header(self) -> Header:
        try:
            _, line = next(self._lines)
            item = msgspec.json.decode(line)
            version = item["version"]
        except StopIteration:
            raise RecordingError("the file is empty") from None
        except _UNREADABLE:
            raise RecordingError("the first line is not the header of a recording") from None
        if version != FORMAT_VERSION:
            raise RecordingError(f"the format is number {version!r}; this version of headrace reads {FORMAT_VERSION}")
        try:
            return msgspec.convert(item, Header)
        except msgspec.ValidationError as error:
            raise RecordingError(f"the header: {error}") from None

    def _spec_at(self, number: int) -> WorkerSpec:
        if not 0 <= number < len(self._specs):
            raise ValueError(f"spec {number} is not defined")
        return self._specs[number]


def plain(commands: Iterable[Command]) -> list[Any]:
    """Commands as JSON values, specs spelled out. Their JSON is the same exactly where the commands are, bit by bit."""
    items: list[Any] = _PLAIN_COMMANDS.encode(commands)
    return items


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError, LookupError, RecursionError)


def _worded(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _line(item: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(item) + b"\n"


def _unreachable(_: Any) -> Any:
    raise AssertionError("a writer does not read, nor the reverse")
