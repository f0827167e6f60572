"""What would another policy have decided? A recording told to two cores' books. Pure.

An estimate: what came after a decision (when its prompt was done, which worker failed) is what came in the recorded
run, whatever the other policy chose. It judges choices under the same arrivals, not the fleet's answer to them; a
simulation does that. To keep the other core's books straight, requests end there when they did in the recorded run:

    recorded                    told to the other core
    PrefillDone, FirstToken     the same of its own live attempt; nothing where it has none
    RequestDone                 the same of its own live attempt; RequestCancelled while it waits there
    RequestFailed               the same, where it uses the failed worker; else nothing, or RequestCancelled if final
    Reject (a command)          RequestCancelled, where it has not been rejected too
    anything else               the same

An Abort by the other core is answered with RequestFailed, and it is woken when it asks to be. Events of attempts that
the recorded core had given up are left out.

Invariant: no request is live in the other core after it has ended in the recorded run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvstore.types import RequestId, WorkerId
from router.events import (
    Abort,
    Command,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    PrefillDone,
    Reject,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    Woken,
)
from router.replay.recording import End, Header, Recording
from router.types import RoutingDecision


class WakingCore(Protocol):
    """What is told the events: `RouterCore`."""

    def handle(self, event: Event, now_s: float) -> Sequence[Command]:
        """Take in one event; return what is to be done about it."""
        ...

    def next_wakeup_s(self, now_s: float) -> float | None:
        """When to send `Woken` if nothing else happens first."""
        ...


@dataclass(slots=True)
class Tally:
    """What one policy decided on the requests that both answered."""

    dispatched: int = 0
    rejected: int = 0
    cost_s: float = 0.0  # sum of forecasts, first attempts that both dispatched
    ttft_s: float = 0.0  # likewise, from arrival


@dataclass(slots=True)
class Comparison:
    """Two policies on the same arrivals."""

    header: Header
    end: End
    num_requests: int = 0  # that both answered
    num_differing: int = 0  # of them: sent to other workers, or rejected by only one
    num_both_dispatched: int = 0
    num_left_waiting: int = 0  # answered in the recorded run, still waiting under the other when they ended
    recorded: Tally = field(default_factory=Tally)
    other: Tally = field(default_factory=Tally)


def compare(lines: Iterable[bytes], build_core: Callable[[Mapping[str, Any]], WakingCore]) -> Comparison:
    """Tell a recording to the core that `build_core` makes of its header. Raises RecordingError."""
    recording = Recording(lines)
    result = Comparison(recording.header, End("cut", 0))
    books = _Books(result)
    other = _OtherRun(build_core(recording.header.recipe), books.other_answered)
    attempts: dict[RequestId, int] = {}  # the recorded core's live ones
    for step in recording:
        if isinstance(step.event, RequestArrived):
            books.arrived(step.event.request.id)
        if not _is_stale(step.event, attempts):
            other.follow(step.event, step.now_s)
        for command in step.commands:
            books.recorded_answered(command)
            if isinstance(command, Dispatch):
                attempts[command.decision.request_id] = command.decision.attempt
            if isinstance(command, Reject):
                other.end(command.request_id, step.now_s)
        if isinstance(step.event, RequestCancelled | RequestDone):
            books.ended(step.event.request_id)
            attempts.pop(step.event.request_id, None)
    assert recording.end is not None
    result.end = recording.end
    return result


def _is_stale(event: Event, attempts: Mapping[RequestId, int]) -> bool:
    """An event of an attempt that the recorded core had given up changed nothing there."""
    if not isinstance(event, PrefillDone | FirstToken | RequestDone | RequestFailed):
        return False
    return attempts.get(event.request_id) != event.attempt


class _Books:
    """Pairs the two first answers to each request. Holds only requests that one side has not answered."""

    def __init__(self, result: Comparison) -> None:
        self._result = result
        self._open: dict[RequestId, list[RoutingDecision | Reject | None]] = {}  # recorded, other

    def arrived(self, request_id: RequestId) -> None:
        self._open[request_id] = [None, None]

    def ended(self, request_id: RequestId) -> None:
        recorded, _ = self._open.pop(request_id, (None, None))
        self._result.num_left_waiting += recorded is not None

    def recorded_answered(self, command: Command) -> None:
        self._answered(0, command)

    def other_answered(self, command: Command) -> None:
        self._answered(1, command)

    def _answered(self, side: int, command: Command) -> None:
        answer = command.decision if isinstance(command, Dispatch) else command
        if isinstance(answer, Abort | Hold) or answer.request_id not in self._open:
            return
        answers = self._open[answer.request_id]
        answers[side] = answers[side] or answer
        recorded, other = answers
        if recorded is not None and other is not None:
            del self._open[answer.request_id]
            self._count(recorded, other)

    def _count(self, recorded: RoutingDecision | Reject, other: RoutingDecision | Reject) -> None:
        result = self._result
        result.num_requests += 1
        result.num_differing += _path(recorded) != _path(other)
        both = isinstance(recorded, RoutingDecision) and isinstance(other, RoutingDecision)
        result.num_both_dispatched += both
        for tally, answer in ((result.recorded, recorded), (result.other, other)):
            if isinstance(answer, Reject):
                tally.rejected += 1
                continue
            tally.dispatched += 1
            if both:
                tally.cost_s += answer.forecast.cost_s
                tally.ttft_s += answer.waited_s + answer.forecast.ttft_s


class _OtherRun:
    """The other core, told of the recorded run as if it had been its own."""

    def __init__(self, core: WakingCore, answered: Callable[[Command], None]) -> None:
        self._core = core
        self._answered = answered
        self._live: dict[RequestId, RoutingDecision | None] = {}  # None: waits
        self._began: set[RequestId] = set()
        self._now_s = 0.0

    def follow(self, event: Event, now_s: float) -> None:
        """Tell it what the recorded core was told."""
        if self._live:
            self._wake_until(now_s)
        self._now_s = now_s
        translated = self._translated(event)
        if translated is not None:
            self._tell(translated, now_s)

    def end(self, request_id: RequestId, now_s: float) -> None:
        """The recorded run is over with a request."""
        if request_id in self._live:
            self._tell(RequestCancelled(request_id), now_s)

    def _wake_until(self, now_s: float) -> None:
        wakeup_s = self._core.next_wakeup_s(self._now_s)
        while wakeup_s is not None and self._now_s < wakeup_s < now_s:
            self._now_s = wakeup_s
            self._tell(Woken(), wakeup_s)
            wakeup_s = self._core.next_wakeup_s(wakeup_s)

    def _translated(self, event: Event) -> Event | None:
        if isinstance(event, RequestArrived):
            self._live[event.request.id] = None
            return event
        if not isinstance(event, PrefillDone | FirstToken | RequestDone | RequestFailed | RequestCancelled):
            return event
        request_id = event.request_id
        if request_id not in self._live:
            return None
        decision = self._live[request_id]
        match event:
            case RequestCancelled():
                return event
            case PrefillDone(_, _, cached_tokens):
                is_due = decision is not None and decision.prefill is not None
                return PrefillDone(request_id, decision.attempt, cached_tokens) if decision and is_due else None
            case FirstToken():
                return FirstToken(request_id, decision.attempt) if decision else None
            case RequestDone(_, _, usage):
                return RequestDone(request_id, decision.attempt, usage) if decision else RequestCancelled(request_id)
            case RequestFailed(_, _, worker_id, retriable):
                if decision is not None and worker_id in _workers(decision):
                    return RequestFailed(request_id, decision.attempt, worker_id, retriable)
                return None if retriable else RequestCancelled(request_id)

    def _tell(self, event: Event, now_s: float) -> None:
        to_tell = [event]
        while to_tell:
            event = to_tell.pop(0)
            self._note(event)
            for command in self._core.handle(event, now_s):
                self._answered(command)
                match command:
                    case Dispatch(decision):
                        self._live[decision.request_id] = decision
                    case Reject(request_id):
                        self._live.pop(request_id, None)
                        self._began.discard(request_id)
                    case Abort(request_id, attempt, worker_id):
                        retriable = request_id not in self._began
                        to_tell.append(RequestFailed(request_id, attempt, worker_id, retriable))

    def _note(self, event: Event) -> None:
        match event:
            case FirstToken(request_id):
                self._began.add(request_id)
            case RequestDone(request_id) | RequestCancelled(request_id):
                self._live.pop(request_id, None)
                self._began.discard(request_id)
            case RequestFailed(request_id, _, _, retriable):
                self._began.discard(request_id)
                if retriable:
                    self._live[request_id] = None
                else:
                    self._live.pop(request_id, None)
            case _:
                pass


def _path(answer: RoutingDecision | Reject) -> tuple[WorkerId | None, WorkerId] | None:
    if isinstance(answer, Reject):
        return None
    return answer.prefill.spec.id if answer.prefill else None, answer.decode.spec.id


def _workers(decision: RoutingDecision) -> tuple[WorkerId, ...]:
    return tuple(state.spec.id for state in (decision.prefill, decision.decode) if state is not None)
