"""How the requests of each class ended, counted from the core's events. Pure.

Invariants
 1. Of every class: arrived = answered + failed + cancelled + rejected, and those that have not ended.
 2. judged <= answered, met <= judged, promised_met <= promised <= judged. An answer is judged where its gaps can be
    seen: streamed, and the engine said how many tokens it has.
 3. What is remembered of a request is forgotten at its end.
 4. `waiting` has the requests that are held and neither dispatched nor ended, of classes that have any.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kvstore.types import RequestId
from router.events import (
    Command,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    Reject,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
)
from router.slo import judge
from router.types import Request

_ENDS = frozenset((RequestDone, RequestFailed, RequestCancelled))


class ClassCount(msgspec.Struct):
    """One class, since the router's start."""

    arrived: int = 0
    answered: int = 0  # whatever the engine's answer was
    judged: int = 0
    met: int = 0  # both targets
    promised: int = 0  # of the judged: those whose targets had been promised
    promised_met: int = 0
    failed: int = 0  # the client has part of the answer
    cancelled: int = 0
    output_tokens: int = 0
    rejected: dict[str, int] = msgspec.field(default_factory=dict)  # by reason


@dataclass(slots=True)
class _Live:
    request: Request
    count: ClassCount
    arrived_at_s: float
    is_promised: bool = False
    is_waiting: bool = False
    first_token_at_s: float | None = None


class ClassCounts:
    """An observer of one core (`router/service.py`)."""

    def __init__(self) -> None:
        self.by_class: dict[str, ClassCount] = {}
        self.waiting: dict[str, int] = {}
        self._live: dict[RequestId, _Live] = {}

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def observe(self, now_s: float, event: Event, commands: Sequence[Command]) -> None:
        """Take in one step of the core."""
        kind = type(event)  # not `match`: this runs with every event, and most of the patterns would be tried
        if kind in _ENDS:
            self._ended(event, now_s)  # type: ignore[arg-type]
        elif isinstance(event, RequestArrived):
            self._arrived(event.request, now_s)
        elif isinstance(event, FirstToken) and (live := self._live.get(event.request_id)) is not None:
            live.first_token_at_s = now_s
        for command in commands:
            if isinstance(command, Dispatch):
                if (live := self._live.get(command.decision.request_id)) is not None:
                    live.is_promised, live.first_token_at_s = command.decision.promised, None
                    if live.is_waiting:
                        self._waits_no_more(live)
            elif isinstance(command, Reject) and (live := self._live.pop(command.request_id, None)) is not None:
                rejected = live.count.rejected
                rejected[command.reason.value] = rejected.get(command.reason.value, 0) + 1
                if live.is_waiting:
                    self._waits_no_more(live)
            elif isinstance(command, Hold) and (live := self._live.get(command.request_id)) is not None:
                name, live.is_waiting = live.request.terms.class_name, True
                self.waiting[name] = self.waiting.get(name, 0) + 1

    def _arrived(self, request: Request, now_s: float) -> None:
        count = self.by_class.get(request.terms.class_name)
        if count is None:
            count = self.by_class[request.terms.class_name] = ClassCount()
        count.arrived += 1
        self._live[request.id] = _Live(request, count, now_s)

    def _ended(self, event: RequestDone | RequestFailed | RequestCancelled, now_s: float) -> None:
        if isinstance(event, RequestFailed) and event.retriable:
            return
        live = self._live.pop(event.request_id, None)
        if live is None:
            return
        if live.is_waiting:
            self._waits_no_more(live)
        if isinstance(event, RequestDone):
            _judge(live, event, now_s)
        elif isinstance(event, RequestFailed):
            live.count.failed += 1
        else:
            live.count.cancelled += 1

    def _waits_no_more(self, live: _Live) -> None:
        name, live.is_waiting = live.request.terms.class_name, False
        self.waiting[name] -= 1
        if not self.waiting[name]:
            del self.waiting[name]


def _judge(live: _Live, event: RequestDone, now_s: float) -> None:
    count, usage = live.count, event.usage
    count.answered += 1
    if usage is None:
        return
    count.output_tokens += usage.output_tokens
    if not live.request.streamed or live.first_token_at_s is None:
        return
    is_met = judge(
        live.request.terms.slo,
        arrived_at_s=live.arrived_at_s,
        first_token_at_s=live.first_token_at_s,
        ended_at_s=now_s,
        output_tokens=usage.output_tokens,
    ).is_met
    count.judged += 1
    count.met += is_met
    count.promised += live.is_promised
    count.promised_met += is_met and live.is_promised
