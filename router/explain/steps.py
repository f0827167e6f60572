"""From what was noted of a request to its explanation. Pure."""

import math
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec.structs import replace

from router.events import Abort, FirstToken, PrefillDone, Reject, RequestCancelled, RequestDone, RequestFailed
from router.explain import explanation as told
from router.explain.explanation import Predicted, Way
from router.types import Considered, Forecast, Overlap, Request, RoutingDecision

MOST_CHARS = 300
_KEPT_CHARS = MOST_CHARS + 1  # so that it is seen that there was more
_MOST_COUNT = 2**53  # clients may ask for any number of tokens; JSON readers know fewer
_FOREVER_S = 1e9  # what a forecast without an end is written as


class Asked(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What steps are judged by."""

    streamed: bool
    ttft_s: float
    tpot_s: float


class Wait(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The core answered an arrival or a failure with nothing yet; so many others waited at that moment."""

    num_waiting: int
    why: str = ""


class Decided(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is kept of a Dispatch: of the workers their ids."""

    attempt: int
    prefill: str | None
    decode: str
    forecast: Forecast
    excluded: tuple[str, ...]
    promised: bool
    waited_s: float
    considered: tuple[Considered, ...]
    num_candidates: int
    num_near_equal: int
    why: str


Note = PrefillDone | FirstToken | RequestDone | RequestFailed | RequestCancelled | Decided | Reject | Abort | Wait


def note_dispatch(decision: RoutingDecision) -> Decided:
    """What is kept of it."""
    return Decided(
        decision.attempt,
        decision.prefill.spec.id if decision.prefill else None,
        decision.decode.spec.id,
        decision.forecast,
        tuple(sorted(decision.excluded)),
        decision.promised,
        decision.waited_s,
        decision.considered,
        decision.num_candidates,
        decision.num_near_equal,
        decision.why[:_KEPT_CHARS],
    )


def note_reject(reject: Reject) -> Reject:
    """With as much of its text as will be told."""
    if len(reject.detail) <= _KEPT_CHARS:
        return reject
    return Reject(reject.request_id, reject.reason, reject.detail[:_KEPT_CHARS], reject.retry_after_s)


def tell_arrival(request: Request, overlap: Overlap) -> told.Arrival:
    """Who asks for what."""
    terms = request.terms
    known_blocks = overlap.levels[-1][0] if overlap.levels else 0
    return told.Arrival(
        model=_text(request.model),
        route=_text(request.route),
        streamed=request.streamed,
        can_hand_off=request.can_hand_off,
        num_prompt_tokens=min(request.num_prompt_tokens, _MOST_COUNT),
        tokens_counted=request.tokens_counted,
        max_output_tokens=min(request.max_output_tokens, _MOST_COUNT),
        known_prefix_tokens=known_blocks * overlap.block_size_tokens,
        tenant=_text(terms.tenant),
        class_name=_text(terms.class_name),
        ttft_s=_limit(terms.slo.ttft_s),
        tpot_s=_limit(terms.slo.tpot_s),
        deadline_s=_limit(terms.deadline_s),
        best_effort_ok=terms.best_effort_ok,
    )


def tell_steps(asked: Asked, arrived_at_s: float, notes: Iterable[tuple[float, Note]]) -> tuple[told.Step, ...]:
    """What happened, in order; `notes` are of live attempts only, each with its instant."""
    telling = _Telling(asked)
    steps = [telling.step(now_s - arrived_at_s, note) for now_s, note in notes]
    match steps:
        case [told.Queued() as queued, told.Dispatched() as first, *rest]:  # what was said when it began to wait
            return (replace(queued, why=first.why), replace(first, why=""), *rest)
        case _:
            return tuple(steps)


class _Telling:
    """One pass over the notes of a request."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._decision: Decided | None = None
        self._dispatched_age_s = 0.0
        self._began_age_s: float | None = None
        self._prefill_cached_tokens: int | None = None

    def step(self, age_s: float, note: Note) -> told.Step:
        at_s = _seconds(age_s)
        match note:
            case Wait(num_waiting, why):
                return told.Queued(at_s, num_waiting, _text(why))
            case Decided():
                self._decision, self._dispatched_age_s = note, age_s
                self._began_age_s = self._prefill_cached_tokens = None
                return _dispatched(note, at_s)
            case PrefillDone(_, attempt, cached_tokens):
                self._prefill_cached_tokens = cached_tokens
                return told.Prefilled(at_s, attempt, cached_tokens)
            case FirstToken(_, attempt):
                self._began_age_s = age_s
                return told.Began(at_s, attempt, _seconds(self._dispatched_age_s + self._forecast.ttft_s))
            case Abort(_, attempt, worker_id):
                return told.Aborted(at_s, attempt, worker_id)
            case RequestFailed(_, attempt, worker_id, retriable):
                self._decision = None
                return told.Failed(at_s, attempt, worker_id, retriable)
            case Reject(_, reason, detail, retry_after_s):
                return told.Rejected(at_s, reason.value, _text(detail), _limit(retry_after_s))
            case RequestCancelled():
                return told.Cancelled(at_s, self._phase())
            case RequestDone():
                return self._done(note, age_s)

    @property
    def _forecast(self) -> Forecast:
        assert self._decision is not None, "invariant 2"
        return self._decision.forecast

    def _phase(self) -> Literal["waiting", "prefill", "answer"]:
        if self._decision is None:
            return "waiting"
        return "prefill" if self._began_age_s is None else "answer"

    def _done(self, done: RequestDone, age_s: float) -> told.Done:
        usage, asked, began_s = done.usage, self._asked, self._began_age_s
        is_timed = asked.streamed and began_s is not None
        ttft_s = began_s if is_timed else None
        tpot_s = None
        if is_timed and began_s is not None and usage is not None and usage.output_tokens > 1:
            tpot_s = (age_s - began_s) / (usage.output_tokens - 1)
        cached_tokens = self._prefill_cached_tokens
        if cached_tokens is None and usage is not None:
            cached_tokens = usage.cached_tokens
        return told.Done(
            age_s=_seconds(age_s),
            attempt=done.attempt,
            prompt_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cached_tokens=cached_tokens,
            predicted_cached_tokens=round(self._forecast.overlap_tokens),
            tpot_s=_limit(tpot_s),
            predicted_tpot_s=_seconds(self._forecast.tpot_s),
            ttft_met=_met(ttft_s, asked.ttft_s),
            tpot_met=_met(tpot_s, asked.tpot_s),
        )


def _dispatched(decided: Decided, age_s: float) -> told.Dispatched:
    chosen = Way(decided.prefill, decided.decode, _predicted(decided.forecast), 0.0, "")
    others = [
        _way(way.prefill, way.decode, way.forecast, decided.forecast)
        for way in decided.considered
        if (way.prefill, way.decode) != (chosen.prefill, chosen.decode)
    ]
    return told.Dispatched(
        age_s=age_s,
        attempt=decided.attempt,
        prefill=chosen.prefill,
        decode=chosen.decode,
        predicted=chosen.predicted,
        promised=decided.promised,
        waited_s=_seconds(decided.waited_s),
        why=_text(decided.why) if decided.attempt == 1 else "",  # admission's word is on the first
        excluded=decided.excluded,
        num_candidates=decided.num_candidates,
        num_near_equal=decided.num_near_equal,
        ways=(chosen, *sorted(others, key=lambda way: way.over_s)),
    )


def _way(prefill: str | None, decode: str, forecast: Forecast, chosen: Forecast) -> Way:
    over_s = forecast.cost_s - chosen.cost_s
    differences_s = tuple(ours - theirs for ours, theirs in zip(_terms(forecast), _terms(chosen), strict=True))
    largest_s = max(differences_s) if over_s >= 0 else min(differences_s)
    mainly = told.TERMS[differences_s.index(largest_s)]
    return Way(prefill, decode, _predicted(forecast), _seconds(over_s), mainly)


def _terms(forecast: Forecast) -> tuple[float, ...]:
    """In the order of `told.TERMS`."""
    return (
        forecast.queue_s,
        forecast.fetch_s,
        forecast.prefill_s,
        forecast.transfer_s,
        forecast.step_s,
        forecast.harm_s,
    )


def _predicted(forecast: Forecast) -> Predicted:
    if not math.isfinite(forecast.cost_s + forecast.tpot_s):
        forecast = Forecast(*(_seconds(term) for term in forecast))
    return Predicted(
        ttft_s=round(forecast.ttft_s, 6),
        cost_s=round(forecast.cost_s, 6),
        queue_s=round(forecast.queue_s, 6),
        fetch_s=round(forecast.fetch_s, 6),
        prefill_s=round(forecast.prefill_s, 6),
        transfer_s=round(forecast.transfer_s, 6),
        step_s=round(forecast.step_s, 6),
        harm_s=round(forecast.harm_s, 6),
        tpot_s=round(forecast.tpot_s, 6),
        overlap_tokens=round(forecast.overlap_tokens),
    )


def _met(real_s: float | None, target_s: float) -> bool | None:
    return None if real_s is None or math.isinf(target_s) else real_s <= target_s


def _seconds(value_s: float) -> float:
    return round(value_s, 6) if math.isfinite(value_s) else _FOREVER_S


def _limit(value_s: float | None) -> float | None:
    return None if value_s is None or not math.isfinite(value_s) else round(value_s, 6)


def _text(text: str) -> str:
    """As much of a text as is kept, in characters that neither JSON nor a terminal stumbles over."""
    kept = text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 3] + "..."
    return kept if kept.isprintable() else "".join(char if char.isprintable() else "?" for char in kept)
