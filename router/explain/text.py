"""Explanations for people: what a terminal shows, what response headers say, what a trace keeps. Pure.

The text is a timeline with reasons: who asked for what, why it waited or was turned away, why it ran there and not
elsewhere, how the forecasts compare with what came. Its last line says what became of the request.
"""

from collections.abc import Iterator
from datetime import UTC, datetime

from router.explain.explanation import (
    TERMS,
    Aborted,
    Arrival,
    Began,
    Cancelled,
    Dispatched,
    Done,
    Explanation,
    Failed,
    Prefilled,
    Queued,
    Rejected,
    Step,
    Way,
)
from router.types import RoutingDecision

_HEADER_PREFIX = "x-headrace-"
_MOST_HEADER_CHARS = 128
_INDENT = " " * 12
_IN_SECONDS = "way, seconds:"


def render_text(explanation: Explanation) -> str:
    """Lines for a terminal, ending with a line break."""
    lines = [*_heading(explanation), ""]
    for step in explanation.steps:
        told = _tell(step, explanation)
        lines.append(f"{_age(step.age_s):>10}  {next(told)}")
        lines += [_INDENT + line for line in told]
    return "\n".join((*lines, "", _ending(explanation), ""))


def headers(explanation: Explanation) -> dict[str, str]:
    """`x-headrace-*` response headers: short, printable ASCII whatever names are in use."""
    said: dict[str, str] = {
        "router": explanation.router,
        "policy": explanation.policy,
        "class": explanation.arrival.class_name,
        "tenant": explanation.arrival.tenant,
    }
    dispatched = [step for step in explanation.steps if isinstance(step, Dispatched)]
    step = next((step for step in reversed(explanation.steps) if isinstance(step, Dispatched | Rejected)), None)
    if isinstance(step, Dispatched):
        said |= {
            "worker": step.decode,
            "prefill-worker": step.prefill or step.decode,
            "attempt": str(step.attempt),
            "promised": "yes" if step.promised else "no",
            "overlap-tokens": str(step.predicted.overlap_tokens),
            "prompt-tokens": str(explanation.arrival.num_prompt_tokens),
            "waited-s": f"{dispatched[0].waited_s:.6f}",  # the later ones also count failed attempts
            "predicted-ttft-s": f"{step.waited_s + step.predicted.ttft_s:.6f}",
            "predicted-tpot-s": f"{step.predicted.tpot_s:.6f}",
            "candidates": str(step.num_candidates),
        }
    elif step is not None:
        said |= {"rejected": step.reason, "waited-s": f"{step.age_s:.6f}"}
    return {_HEADER_PREFIX + name: _ascii(value) for name, value in said.items()}


def span_attributes(decision: RoutingDecision) -> dict[str, str | int | float | bool]:
    """What a trace keeps of a decision."""
    forecast = decision.forecast
    attributes: dict[str, str | int | float | bool] = {
        "attempt": decision.attempt,
        "decode": decision.decode.spec.id,
        "prefill": (decision.prefill or decision.decode).spec.id,
        "hand_off": decision.prefill is not None,
        "promised": decision.promised,
        "waited_s": decision.waited_s,
        "predicted_ttft_s": forecast.ttft_s,
        "predicted_tpot_s": forecast.tpot_s,
        "overlap_tokens": round(forecast.overlap_tokens),
        "cost_s": forecast.cost_s,
        "candidates": decision.num_candidates,
        "near_equal": decision.num_near_equal,
    }
    attributes |= {term: getattr(forecast, term) for term in TERMS}
    if decision.why:
        attributes["why"] = decision.why
    return attributes


def _heading(explanation: Explanation) -> Iterator[str]:
    arrival = explanation.arrival
    own = "" if explanation.public_id == explanation.request_id else f" (router's id {explanation.request_id})"
    arrived = datetime.fromtimestamp(explanation.arrived_at_s, UTC)
    yield f"request {explanation.public_id}{own}"
    yield f"arrived {arrived:%Y-%m-%d %H:%M:%S}.{arrived.microsecond // 1000:03d} UTC at router {explanation.router}"
    yield f"        {arrival.model}  {arrival.route}  {'streamed' if arrival.streamed else 'in one piece'}"
    counted = "counted" if arrival.tokens_counted else "estimated"
    known = f"; {arrival.known_prefix_tokens:,} of them in some cache" if arrival.known_prefix_tokens else ""
    sizes = f"prompt {arrival.num_prompt_tokens:,} tokens ({counted}){known}; up to {arrival.max_output_tokens:,} out"
    yield f"        {sizes}"
    yield f"        class {arrival.class_name}, tenant {arrival.tenant}; {_targets(arrival)}"


def _targets(arrival: Arrival) -> str:
    targets = [
        f"first token {_s(arrival.ttft_s)}" if arrival.ttft_s is not None else "",
        f"{_s(arrival.tpot_s)} a token" if arrival.tpot_s is not None else "",
        f"given up after {_s(arrival.deadline_s)}" if arrival.deadline_s is not None else "",
    ]
    return "targets: " + (", ".join(target for target in targets if target) or "none")


def _tell(step: Step, explanation: Explanation) -> Iterator[str]:
    """A headline, then details."""
    match step:
        case Queued(_, num_waiting, why):
            yield f"queued      {num_waiting} other(s) waiting" + (f"; {why}" if why else "")
        case Dispatched():
            yield from _tell_dispatched(step, explanation)
        case Prefilled(_, attempt, cached):
            yield f"prefilled   attempt {attempt}" + (f"; {cached:,} tokens were cached" if cached is not None else "")
        case Began(_, attempt, predicted_s):
            late_s = step.age_s - predicted_s
            bound = "" if explanation.arrival.streamed else "; in one piece, so this is all of the answer"
            yield f"first token attempt {attempt}; forecast {_age(predicted_s)}, {_late(late_s)}{bound}"
        case Aborted(_, attempt, worker):
            yield f"aborted     attempt {attempt}: {worker} is gone"
        case Failed(_, attempt, worker, retriable):
            after = "the client had seen nothing yet" if retriable else "the client had part of the answer"
            yield f"failed      attempt {attempt} on {worker}; {after}"
        case Rejected(_, reason, detail, retry_after_s):
            yield f"rejected    {reason}: {detail}"
            yield "come back in " + _s(retry_after_s) if retry_after_s is not None else "asking again would not help"
        case Cancelled(_, during):
            yield f"cancelled   {_DURING[during]}"
        case Done():
            yield from _tell_done(step)


def _tell_dispatched(step: Dispatched, explanation: Explanation) -> Iterator[str]:
    waited = f", after waiting {_s(step.waited_s)}" if step.attempt == 1 and step.waited_s >= 0.0005 else ""
    yield f"dispatched  attempt {step.attempt}: {_path(step.prefill, step.decode)}{waited}"
    promised = "its targets are promised" if step.promised else "no promise"
    yield promised + (f"; {step.why}" if step.why else "")
    predicted = step.predicted
    terms = " + ".join(f"{name[:-2]} {getattr(predicted, name):.4f}" for name in TERMS if name != "harm_s")
    yield f"forecast: first token in {_s(predicted.ttft_s)} = {terms}"
    yield f"          {_s(predicted.tpot_s)} a token; costs others {_s(predicted.harm_s)}"
    held = f"{predicted.overlap_tokens:,} of {explanation.arrival.num_prompt_tokens:,} prompt tokens"
    yield f"          {held} are in the caches of {step.prefill or step.decode}"
    near = f", drawn among {step.num_near_equal} near-equal ways" if step.num_near_equal > 1 else ""
    excluded = f"; not {', '.join(step.excluded)}, which failed it before" if step.excluded else ""
    yield f"of {step.num_candidates} worker(s){near}{excluded}"
    if len(step.ways) > 1:
        yield from _table(step.ways)


def _table(ways: tuple[Way, ...]) -> Iterator[str]:
    """Each way with its terms; beside it what it costs above the chosen one, and mostly why."""
    names = [_path(way.prefill, way.decode) for way in ways]
    width = max(len(_IN_SECONDS), *map(len, names))
    columns = "".join(f"{name[:-2]:>9}" for name in TERMS)
    yield f"  {_IN_SECONDS:<{width}}{'cost':>9}{columns}{'overlap':>9}  against the chosen"
    for way, name in zip(ways, names, strict=True):
        terms = "".join(f"{getattr(way.predicted, term):>9.4f}" for term in TERMS)
        against = f"{way.over_s:+.4f}, mostly {way.mainly[:-2]}" if way.mainly else "chosen"
        mark = " " if way.mainly else ">"
        yield f"{mark} {name:<{width}}{way.predicted.cost_s:>9.4f}{terms}{way.predicted.overlap_tokens:>9}  {against}"


def _tell_done(step: Done) -> Iterator[str]:
    tokens = f"{step.output_tokens:,} tokens out" if step.output_tokens is not None else "usage not reported"
    yield f"done        attempt {step.attempt}; {tokens}"
    if step.cached_tokens is not None:
        yield f"{step.cached_tokens:,} prompt tokens were cached; predicted {step.predicted_cached_tokens:,}"
    if step.tpot_s is not None:
        yield f"{_s(step.tpot_s)} a token; predicted {_s(step.predicted_tpot_s)}"


def _ending(explanation: Explanation) -> str:
    last = explanation.steps[-1] if explanation.steps else None
    if not isinstance(last, Done):
        so_far = ", so far" if explanation.outcome in ("waiting", "running") else ""
        return f"outcome: {explanation.outcome}{so_far}"
    first, gap = (_VERDICTS[met] for met in (last.ttft_met, last.tpot_met))
    return f"outcome: done in {_s(last.age_s)}; first token {first}, token gap {gap}"


_VERDICTS = {True: "met", False: "MISSED", None: "not judged"}
_DURING = {
    "waiting": "while it waited: the client went away, or its time was over",
    "prefill": "before the first token: the client went away, or its time was over",
    "answer": "during the answer: the client went away",
}


def _path(prefill: str | None, decode: str) -> str:
    return f"{prefill} -> {decode}" if prefill is not None else decode


def _age(age_s: float) -> str:
    return f"+{age_s:.3f} s"


def _late(late_s: float) -> str:
    return f"{abs(late_s):.3f} s {'later' if late_s >= 0 else 'earlier'}"


def _s(value_s: float) -> str:
    text = f"{value_s:.4f}" if value_s < 100 else f"{value_s:.1f}"
    return f"{text.rstrip('0').rstrip('.')} s"


def _ascii(text: str) -> str:
    """Printable ASCII: nothing in it can end a header."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:_MOST_HEADER_CHARS]).strip()
