"""How well promises were kept, by class, over a window: what `/slo` serves. Pure.

attainment        met / judged: of the streamed answers whose gaps could be seen, those that met both targets
kept              promised_met / promised: the same of those whose targets had been promised
goodput_per_s     met / window
most_waiting      the most requests that routers held at one look
Not judged are answers in one piece, and those of which the engine did not say how many tokens they have.
"""

from collections.abc import Iterable, Mapping

import msgspec

from controlplane.counter_window import Counters, CounterWindow, Key
from controlplane.fleet_status import WorkerStatus
from controlplane.gauge_window import GaugeWindow
from router.class_counts import ClassCount
from router.standing import Standing

_COUNTED = tuple(field.name for field in msgspec.structs.fields(ClassCount) if field.name != "rejected")
_CLASS, _REJECTED, _TENANT = "class", "rejected", "tenant"
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
    most_waiting: int


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


def tenant_counters(standing: Standing) -> Counters:
    """One router's refusals of tenants, flat."""
    refused = standing.refused_tenants.items()
    return {
        (_TENANT, name, reason): float(number) for name, by_reason in refused for reason, number in by_reason.items()
    }


def refused_tenants(rises: Mapping[Key, float]) -> dict[str, dict[str, int]]:
    """By tenant and reason, of what `tenant_counters` gave."""
    found: dict[str, dict[str, int]] = {}
    for (_, name, reason), rise in sorted(rises.items()):
        found.setdefault(name, {})[reason] = round(rise)
    return found


def waiting_by_class(standings: Iterable[Standing]) -> dict[str, float]:
    """Requests that all routers hold now."""
    waiting: dict[str, float] = {}
    for standing in standings:
        for name, number in standing.waiting_by_class.items():
            waiting[name] = waiting.get(name, 0.0) + number
    return waiting


def engine_counters(worker: WorkerStatus) -> Counters:
    """One engine's, of its present life."""
    return {_QUERIES: float(worker.prefix_query_tokens), _HITS: float(worker.prefix_hit_tokens)}


def make_report(
    window: CounterWindow, queues: GaugeWindow, window_s: float, at_s: float, until_s: float | None = None
) -> SloReport:
    """Of the window that ended at `until_s` on the windows' clock, or now. `at_s`: the same in Unix time."""
    real_s, rises = window.increase(window_s, until_s)
    waiting = queues.most(window_s, until_s)
    names = sorted({key[1] for key in rises if key[0] in (_CLASS, _REJECTED)} | waiting.keys())
    queries = rises.get(_QUERIES, 0.0)
    return SloReport(
        window_s=round(real_s, 3),
        at_s=round(at_s, 3),
        classes=tuple(_class_slo(name, rises, real_s, waiting.get(name, 0.0)) for name in names),
        prefix_hit_rate=_share(rises.get(_HITS, 0.0), queries),
    )


def _class_slo(name: str, rises: Mapping[Key, float], real_s: float, most_waiting: float) -> ClassSlo:
    count = {field: round(rises.get((_CLASS, name, field), 0.0)) for field in _COUNTED}
    rejected = {key[2]: round(rise) for key, rise in sorted(rises.items()) if key[:2] == (_REJECTED, name)}
    return ClassSlo(
        class_name=name,
        **count,
        rejected=rejected,
        attainment=_share(count["met"], count["judged"]),
        kept=_share(count["promised_met"], count["promised"]),
        goodput_per_s=round(count["met"] / real_s, 4) if real_s > 0 else 0.0,
        most_waiting=round(most_waiting),
    )


def _share(part: float, whole: float) -> float | None:
    return round(min(1.0, part / whole), 6) if whole > 0 else None
