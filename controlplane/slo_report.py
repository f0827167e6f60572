"""How well promises were kept, by class, over a window: what `/slo` serves. Pure.

attainment        met / judged: of the streamed answers whose gaps could be seen, those that met both targets
kept              promised_met / promised: the same of those whose targets had been promised
goodput_per_s     met / window
Not judged are answers in one piece, and those of which the engine did not say how many tokens they have.
"""

from collections.abc import Mapping

import msgspec

from controlplane.counter_window import Counters, CounterWindow, Key
from controlplane.fleet_status import WorkerStatus
from router.class_counts import ClassCount
from router.standing import Standing

_COUNTED = tuple(field.name for field in msgspec.structs.fields(ClassCount) if field.name != "rejected")
_CLASS, _REJECTED = "class", "rejected"
_QUERIES, _HITS = ("prefix", "queries"), ("prefix", "hits")


class ClassSlo(msgspec.Struct, frozen=True):
    """One class. Counts over the window; what has no denominator is None."""

    class_name: str
    arrived: int
    answered: int
    judged: int
    met: int
    promised: int
    promised_met: int
    failed: int
    cancelled: int
    output_tokens: int
    rejected: dict[str, int]  # by reason
    attainment: float | None
    kept: float | None
    goodput_per_s: float


class SloReport(msgspec.Struct, frozen=True):
    """All classes that had a request in the window. `window_s`: how far it really reaches back."""

    window_s: float
    at_s: float  # Unix time of its end
    classes: tuple[ClassSlo, ...]
    prefix_hit_rate: float | None  # of the prompt tokens that engines looked up, those they had


def router_counters(standing: Standing) -> Counters:
    """One router's counters, flat."""
    flat: dict[Key, float] = {}
    for name, count in standing.classes.items():
        flat |= {(_CLASS, name, field): float(getattr(count, field)) for field in _COUNTED}
        flat |= {(_REJECTED, name, reason): float(number) for reason, number in count.rejected.items()}
    return flat


def engine_counters(worker: WorkerStatus) -> Counters:
    """One engine's, of its present life."""
    return {_QUERIES: float(worker.prefix_query_tokens), _HITS: float(worker.prefix_hit_tokens)}


def make_report(window: CounterWindow, window_s: float, at_s: float, until_s: float | None = None) -> SloReport:
    """Of the window that ended at `until_s` on the window's clock, or now. `at_s`: the same in Unix time."""
    real_s, rises = window.increase(window_s, until_s)
    names = sorted({key[1] for key in rises if key[0] in (_CLASS, _REJECTED)})
    queries = rises.get(_QUERIES, 0.0)
    return SloReport(
        window_s=round(real_s, 3),
        at_s=round(at_s, 3),
        classes=tuple(_class_slo(name, rises, real_s) for name in names),
        prefix_hit_rate=_share(rises.get(_HITS, 0.0), queries),
    )


def _class_slo(name: str, rises: Mapping[Key, float], real_s: float) -> ClassSlo:
    count = {field: round(rises.get((_CLASS, name, field), 0.0)) for field in _COUNTED}
    rejected = {key[2]: round(rise) for key, rise in sorted(rises.items()) if key[:2] == (_REJECTED, name)}
    return ClassSlo(
        class_name=name,
        **count,
        rejected=rejected,
        attainment=_share(count["met"], count["judged"]),
        kept=_share(count["promised_met"], count["promised"]),
        goodput_per_s=round(count["met"] / real_s, 4) if real_s > 0 else 0.0,
    )


def _share(part: float, whole: float) -> float | None:
    return round(min(1.0, part / whole), 6) if whole > 0 else None
