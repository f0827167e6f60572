"""A recording told to a core again: does it decide the same, bit by bit? Pure.

The recorded events go to a core that is built from the header, and every list of commands has to be the recorded one. A
difference means that the code or the numerics have changed since, or that a decision depends on something that is no
event. What follows the first difference is not looked at: from there on the two cores know different things.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from router.events import Abort, Command, Dispatch, Event, Hold, Reject
from router.replay.recording import End, Header, Recording, Step, plain

_MOST_PARTS = 12
_MOST_CHARS = 160


class Core(Protocol):
    """What is told a recording: `RouterCore`."""

    def handle(self, event: Event, now_s: float) -> Sequence[Command]:
        """Take in one event; return what is to be done about it."""
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step that came out otherwise."""

    step: int  # from 1
    now_s: float
    event: str  # its type
    parts: tuple[tuple[str, str, str], ...]  # (where, as recorded, as replayed), the first few


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a replay."""

    header: Header
    num_events: int
    num_commands: int
    difference: Difference | None
    end: End | None  # None after a difference: the rest has not been read


def replay(lines: Iterable[bytes], build_core: Callable[[Mapping[str, Any]], Core]) -> Report:
    """Tell a recording to a core built from its header. Raises RecordingError, and what `build_core` raises."""
    recording = Recording(lines)
    core = build_core(recording.header.recipe)
    num_events = num_commands = 0
    for step in recording:
        num_events += 1
        num_commands += len(step.commands)
        parts = _differing(step, core)
        if parts:
            difference = Difference(num_events, step.now_s, type(step.event).__name__, parts)
            return Report(recording.header, num_events, num_commands, difference, None)
    return Report(recording.header, num_events, num_commands, None, recording.end)


def brief(command: Command) -> str:
    """A command in a few words."""
    match command:
        case Dispatch(decision):
            prefill = f"{decision.prefill.spec.id} -> " if decision.prefill else ""
            return f"Dispatch {decision.request_id} attempt {decision.attempt}: {prefill}{decision.decode.spec.id}"
        case Reject(request_id, reason):
            return f"Reject {request_id}: {reason.value}"
        case Abort(request_id, attempt, worker_id):
            return f"Abort {request_id} attempt {attempt}: {worker_id} is gone"
        case Hold(request_id):
            return f"Hold {request_id}"


def _differing(step: Step, core: Core) -> tuple[tuple[str, str, str], ...]:
    recorded = step.commands
    try:
        replayed = core.handle(step.event, step.now_s)
        if not recorded and not replayed:
            return ()
        ours, theirs = plain(recorded), plain(replayed)
    except Exception as error:  # a core that fails where it did not is a difference too
        return (("", _briefly(recorded), f"{type(error).__name__}: {error}"),)
    if msgspec.json.encode(ours) == msgspec.json.encode(theirs):
        return ()
    if [brief(command) for command in recorded] != [brief(command) for command in replayed]:
        return (("commands", _briefly(recorded), _briefly(replayed)),)
    return tuple(part for part, _ in zip(_parts("commands", ours, theirs), range(_MOST_PARTS), strict=False))


def _parts(where: str, recorded: Any, replayed: Any) -> Iterator[tuple[str, str, str]]:
    """The leaves in which two JSON values differ."""
    if isinstance(recorded, dict) and isinstance(replayed, dict) and recorded.keys() == replayed.keys():
        for name, value in recorded.items():
            yield from _parts(f"{where}.{name}", value, replayed[name])
    elif isinstance(recorded, list) and isinstance(replayed, list) and len(recorded) == len(replayed):
        for at, value in enumerate(recorded):
            yield from _parts(f"{where}[{at}]", value, replayed[at])
    else:
        ours, theirs = (msgspec.json.encode(value).decode() for value in (recorded, replayed))
        if ours != theirs:
            yield where, ours[:_MOST_CHARS], theirs[:_MOST_CHARS]


def _briefly(commands: Sequence[Command]) -> str:
    return "; ".join(brief(command) for command in commands) or "nothing"
