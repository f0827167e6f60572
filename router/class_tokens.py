"""How many tokens of each class of traffic each engine has computed for this router. Pure: an observer of events.

Engines count which experts their tokens went to and not whose tokens they were; the control plane puts both together
(controlplane/placement/class_profiles.py). A prompt's tokens that no cache held count once it has been computed, where
that was. An answer's tokens but the last pass through the model too; how many there are the engine says at its end, so
until then an answer under way counts for as many as the forecast has it make. A token that was computed for an attempt
that failed before its prompt was over counts for none.

Invariants
 1. What is counted of requests that ended never gets less; of one under way it may, when its true number is known.
 2. Known are the live requests, and engines that are in the fleet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kvstore.types import RequestId, WorkerId
from router.events import (
    Command,
    Dispatch,
    Event,
    FirstToken,
    PrefillDone,
    Reject,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    WorkerGone,
)
from router.types import Request, RoutingDecision
from workers.ranks import engine_of

_VERSION = 1

EngineTokens = Mapping[str, Mapping[str, float]]  # engine -> class -> tokens, since the engine or the router started


class _Record(msgspec.Struct):
    version: int
    tokens: dict[str, dict[str, float]]


def encode(tokens: EngineTokens) -> bytes:
    """As it lies on the board."""
    return msgspec.json.encode(_Record(_VERSION, {engine: dict(of) for engine, of in tokens.items()}))


def decode(data: bytes) -> EngineTokens | None:
    """What is in `data`; None where another version wrote it, or nobody of ours."""
    try:
        record = msgspec.json.decode(data, type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record.tokens if record.version == _VERSION else None


@dataclass(slots=True)
class _Live:
    """A request between its arrival and its end."""

    request: Request
    decision: RoutingDecision | None = None  # of the attempt under way
    is_computed: bool = False  # its prompt is
    first_token_at_s: float | None = None

    def answer_tokens(self, now_s: float) -> float:
        """That have gone through the model by now, by the forecast."""
        if self.decision is None or self.first_token_at_s is None or self.decision.forecast.tpot_s <= 0.0:
            return 0.0
        made = (now_s - self.first_token_at_s) / self.decision.forecast.tpot_s
        return min(max(0.0, made), max(0.0, self.request.max_output_tokens - 1.0))


class ClassTokens:
    """Of one router: `observe` is told of every event, with what the core answered."""

    def __init__(self) -> None:
        self._live: dict[RequestId, _Live] = {}
        self._counted: dict[WorkerId, dict[str, float]] = {}

    def observe(self, now_s: float, event: Event, commands: Sequence[Command]) -> None:
        """Take in an event and its commands, in this order."""
        if isinstance(event, RequestArrived):
            self._live[event.request.id] = _Live(event.request)
        elif isinstance(event, FirstToken | PrefillDone):
            self._began(event, now_s)
        elif isinstance(event, RequestDone | RequestFailed):
            self._over(event, now_s)
        elif isinstance(event, RequestCancelled):
            if gone := self._live.pop(event.request_id, None):
                self._end_attempt(gone, gone.answer_tokens(now_s))
        elif isinstance(event, WorkerGone):
            self._counted.pop(engine_of(event.worker_id), None)
        for command in commands:
            if isinstance(command, Dispatch):
                self._live[command.decision.request_id].decision = command.decision
            elif isinstance(command, Reject):
                self._live.pop(command.request_id, None)

    def tokens(self, now_s: float) -> EngineTokens:
        """By engine and class."""
        found: dict[str, dict[str, float]] = {engine: dict(counted) for engine, counted in self._counted.items()}
        for live in self._live.values():
            made = live.answer_tokens(now_s)
            if made and live.decision is not None:
                counted = found.setdefault(engine_of(live.decision.decode.spec.id), {})
                name = live.request.terms.class_name
                counted[name] = counted.get(name, 0.0) + made
        return found

    def _began(self, event: PrefillDone | FirstToken, now_s: float) -> None:
        live = self._of(event.request_id, event.attempt)
        if live is None:
            return
        self._prompt_over(live, event.cached_tokens if isinstance(event, PrefillDone) else None)
        if isinstance(event, FirstToken):
            live.first_token_at_s = now_s

    def _over(self, event: RequestDone | RequestFailed, now_s: float) -> None:
        live = self._of(event.request_id, event.attempt)
        if live is None:
            return
        usage = None
        if isinstance(event, RequestDone):
            usage = event.usage
            self._prompt_over(live, None if usage is None else usage.cached_tokens)
        made = live.answer_tokens(now_s) if usage is None else max(0.0, usage.output_tokens - 1.0)
        if isinstance(event, RequestFailed) and event.retriable:
            self._end_attempt(live, made)
        else:
            self._end_attempt(self._live.pop(event.request_id), made)

    def _of(self, request_id: RequestId, attempt: int) -> _Live | None:
        live = self._live.get(request_id)
        return live if live is not None and live.decision is not None and live.decision.attempt == attempt else None

    def _prompt_over(self, live: _Live, cached_tokens: int | None) -> None:
        decision = live.decision
        assert decision is not None
        if live.is_computed:
            return
        live.is_computed = True
        held = decision.forecast.overlap_tokens if cached_tokens is None else cached_tokens
        computed_on = decision.prefill or decision.decode
        self._count(computed_on.spec.id, live, max(0.0, live.request.num_prompt_tokens - held))

    def _end_attempt(self, live: _Live, answer_tokens: float) -> None:
        if live.decision is not None:
            self._count(live.decision.decode.spec.id, live, answer_tokens)
        live.decision, live.is_computed, live.first_token_at_s = None, False, None

    def _count(self, worker_id: WorkerId, live: _Live, tokens: float) -> None:
        if tokens:
            counted = self._counted.setdefault(engine_of(worker_id), {})
            name = live.request.terms.class_name
            counted[name] = counted.get(name, 0.0) + tokens
