"""What a simulation says of a policy."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.sim.clients import Outcome
from tests.sim.simulation import Simulation


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class of service, or all together. Shares are of the requests that were asked."""

    asked: int
    good: int  # both targets met
    served: int
    promised: int
    promises_kept: float  # share of the promised, those that were dropped before they were served among them
    goodput_per_s: float
    attainment: float
    ttft_s: tuple[float, float, float]  # p50, p90, p99 of the served
    tpot_s: tuple[float, float, float]
    rejected: dict[str, int]  # by reason, for good
    came_back: int  # to a place that was kept
    truthful: float  # share of these that were then served with their targets


@dataclass(frozen=True, slots=True)
class Report:
    """A run."""

    total: ClassReport
    classes: dict[str, ClassReport]
    hit_rate: float  # prompt tokens found in a cache
    prefilled_tokens: int
    imbalance: float  # busiest worker's busy time over the mean, the worse of the pools
    tenants: dict[str, int]  # good requests


def report(simulation: Simulation, *, from_s: float = 0.0, until_s: float = float("inf")) -> Report:
    """Of the requests first asked within [from_s, until_s)."""
    outcomes = [o for o in simulation.outcomes if from_s <= o.first_arrived_at_s < until_s]
    last_s = max((o.first_arrived_at_s for o in outcomes), default=from_s)
    duration_s = max(1e-9, min(until_s, last_s) - from_s)
    names = sorted({o.turn.terms.class_name for o in outcomes})
    served = [o for o in outcomes if o.decision is not None and o.reject is None]
    return Report(
        total=_of(outcomes, duration_s),
        classes={name: _of([o for o in outcomes if o.turn.terms.class_name == name], duration_s) for name in names},
        hit_rate=sum(o.cached_tokens for o in served) / max(1, sum(o.turn.num_prompt_tokens for o in served)),
        prefilled_tokens=sum(worker.engine.prefilled_tokens for worker in simulation.workers.values()),
        imbalance=_imbalance(simulation),
        tenants=dict(Counter(o.turn.terms.tenant for o in outcomes if o.is_good)),
    )


def _of(outcomes: Sequence[Outcome], duration_s: float) -> ClassReport:
    served = [o for o in outcomes if o.decision is not None and o.reject is None]
    good = sum(o.is_good for o in served)
    promised = [o for o in served if o.decision is not None and o.decision.promised]
    came_back = sum(o.places for o in outcomes)
    num_promises = len(promised) + sum(o.promises_dropped for o in outcomes)
    return ClassReport(
        asked=len(outcomes),
        good=good,
        served=len(served),
        promised=len(promised),
        promises_kept=sum(o.is_good for o in promised) / max(1, num_promises),
        goodput_per_s=good / duration_s,
        attainment=good / max(1, len(outcomes)),
        ttft_s=_percentiles(o.ttft_s for o in served),
        tpot_s=_percentiles(o.tpot_s for o in served),
        rejected=dict(Counter(str(o.reject) for o in outcomes if o.reject is not None)),
        came_back=came_back,
        truthful=sum(o.places_kept for o in outcomes) / max(1, came_back),
    )


def _percentiles(values: Iterable[float]) -> tuple[float, float, float]:
    found = list(values)
    if not found:
        return 0.0, 0.0, 0.0
    p50, p90, p99 = np.percentile(found, (50, 90, 99))
    return float(p50), float(p90), float(p99)


def _imbalance(simulation: Simulation) -> float:
    pools: dict[str, list[float]] = {}
    for worker in simulation.workers.values():
        pools.setdefault(worker.spec.role, []).append(worker.engine.busy_s)
    return max(max(busy) / max(1e-9, sum(busy) / len(busy)) for busy in pools.values())
