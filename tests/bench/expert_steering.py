"""Claim: engines whose experts are placed for every class of traffic gain nothing from steering classes between them.

    python -m tests.bench.expert_steering [--loads FILE] [--match TEXT] [--seeds N] [--engines N] [--ranks N ...]

Each load is a class of traffic with prompts of its own: in bursts, all the time, or all the time with one long prompt
a class that engines have cached, so that classes stay apart. Several expert-parallel engines, one
placement on all of them: planned for the mean of the classes (what engines report without classes), or for each class
as a scenario. Requests go to engines by the production core in tests/sim: `plain` as it is, `steered` with one more
term, in seconds, of what a request of this class makes the steps of those that run there longer or shorter:

    experts(d) = share step(d) (g(n + e_k) - g(n)) seqs(d) steps that they share         g: slowest rank over even load

n: sequences of each class on engine d as it really is now, and loads by class are known exactly: no router can know as
much. `x10`: the term ten times as large. A step's time is half for experts and in proportion to the slowest rank's
tokens. Decode steps of small batches wait for weights and not for tokens; so real engines gain less.

stretch: busy time over what it were if loads were even. Differences to `plain` are of the same arrivals; +-: two
standard errors over seeds.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.loads import read_scenarios
from controlplane.placement.objective import Prices, even_loads, rank_loads
from controlplane.placement.planner import plan
from controlplane.placement.types import Placement, Scenario, Topology
from router.choice.cost import Costs, column
from router.choice.interfaces import Pick
from router.choice.policy import LeastCost
from router.choice.view import View
from tests.builders import make_terms
from tests.placement_cases import domains
from tests.sim.fleet import Fleet
from tests.sim.simulation import Simulation
from tests.sim.workload import Arrival, Lengths, Shape, generate

MOE_SHARE = 0.5  # of a step, if loads are even
DURATION_S, WARM_UP_S = 50.0, 10.0
BURST_S = 10.0
STEERING = {"plain": 0.0, "steered": 1.0, "x10": 10.0}
PRICES = Prices(expert_bytes=12.6e6, token_bytes=0.0)


class Stragglers:
    """How much longer the slowest rank takes than if loads were even, by the classes of the tokens."""

    def __init__(self, classes: Sequence[Scenario], placement: Placement, topology: Topology) -> None:
        self.names = [item.name for item in classes]
        even = [rank_loads(placement, topology, c.tokens) / even_loads(topology, c.tokens)[:, None] for c in classes]
        self._loads: NDArray[np.float64] = np.stack(even)  # (classes, layers, ranks)

    def over_even(self, tokens: NDArray[np.float64]) -> float:
        """Of so many tokens of each class, mean over layers; 1 of none."""
        total = tokens.sum()
        if not total:
            return 1.0
        return float(np.tensordot(tokens, self._loads, 1).max(axis=1).mean() / total)

    def counted(self, kinds: Mapping[str, int]) -> NDArray[np.float64]:
        """By class, in order."""
        return np.array([float(kinds.get(name, 0)) for name in self.names])


class Steered(LeastCost):
    """The production policy, and the term for experts."""

    def __init__(self, rng: Random, weight: float) -> None:
        super().__init__(rng)
        self._weight = weight
        self.simulation: Simulation | None = None
        self.stragglers: Stragglers | None = None

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """With the term added to every decode row."""
        if self._weight and self.simulation is not None and self.stragglers is not None:
            outcome = self.simulation.outcomes[int.from_bytes(view.request.digest, "little")]
            one = self.stragglers.counted({outcome.turn.terms.class_name: 1})
            change = np.empty(len(view.decode))
            for place, worker_id in enumerate(view.decode.ids):
                there = self.stragglers.counted(self.simulation.workers[worker_id].engine.kinds())
                change[place] = self.stragglers.over_even(there + one) - self.stragglers.over_even(there)
            harmed = view.decode.seqs * costs.given.shared_steps * costs.given.harm_rate + 1.0
            more_s = self._weight * MOE_SHARE * change * column(costs.decode.step_s) * harmed
            costs.local_s = column(costs.local_s) + (more_s - more_s.min())  # the same for all rows changes no choice
        return super().pick(view, costs)


@dataclass(frozen=True, slots=True)
class Workload:
    """What the classes ask, each with system prompts of its own."""

    is_bursty: bool  # a class asks at several times its rate for a while, then not at all; else all the time
    num_systems: int
    system: Lengths


WORKLOADS = {
    "bursts": Workload(True, 8, Lengths(1500, 0.4)),
    "steady": Workload(False, 8, Lengths(1500, 0.4)),
    "cached": Workload(False, 1, Lengths(6000, 0.1)),  # a class goes to where its prompt is
}


def arrivals_of(workload: Workload, classes: Sequence[str], rate_per_s: float, seed: int) -> list[Arrival]:
    """At `rate_per_s` on average, of all classes together."""
    found: list[Arrival] = []
    for number, name in enumerate(classes):
        shape = Shape(
            rate_per_s=rate_per_s / (1 if workload.is_bursty else len(classes)),
            duration_s=DURATION_S,
            prompt=Lengths(600),
            output=Lengths(250, most=1024),
            classes=((make_terms(class_name=name, ttft_s=1.0, tpot_s=0.05), 1.0),),
            num_systems=workload.num_systems,
            system=workload.system,
        )
        rng = Random(1000 * seed + number)
        spans = _spans(rng, len(classes)) if workload.is_bursty else [(0.0, DURATION_S)]
        found += [a for a in generate(shape, 77 * seed + number) if any(b <= a.at_s < e for b, e in spans)]
    return sorted(found, key=lambda arrival: arrival.at_s)


def _spans(rng: Random, num_classes: int) -> list[tuple[float, float]]:
    """In which a class asks: one part in `num_classes` of the time."""
    at_s, is_on = 0.0, rng.random() < 1.0 / num_classes
    spans: list[tuple[float, float]] = []
    while at_s < DURATION_S:
        length_s = rng.expovariate(1.0 / (BURST_S if is_on else BURST_S * (num_classes - 1)))
        if is_on:
            spans.append((at_s, at_s + length_s))
        at_s, is_on = at_s + length_s, not is_on
    return spans


@dataclass(frozen=True, slots=True)
class Run:
    """One run's numbers."""

    stretch: float
    tpot_mean_s: float
    tpot_p99_s: float
    ttft_p99_s: float
    hit_rate: float


def run(stragglers: Stragglers, arrivals: Sequence[Arrival], weight: float, seed: int, engines: int) -> Run:
    """The same arrivals with the term `weight` times."""
    policies: list[Steered] = []

    def policy(rng: Random) -> Steered:
        policies.append(Steered(rng, weight))
        return policies[-1]

    simulation = Simulation(policy, Fleet(mixed=engines), seed=seed)
    for made in policies:
        made.simulation, made.stragglers = simulation, stragglers

    def stretch(kinds: Mapping[str, int]) -> float:
        return 1.0 + MOE_SHARE * (stragglers.over_even(stragglers.counted(kinds)) - 1.0)

    for worker in simulation.workers.values():
        worker.engine.stretch = stretch
    simulation.run(arrivals)
    seen = [o for o in simulation.outcomes if o.first_arrived_at_s >= WARM_UP_S]
    tpots_s, ttfts_s = [o.tpot_s for o in seen], [o.ttft_s for o in seen]
    engines_run = [worker.engine for worker in simulation.workers.values()]
    return Run(
        sum(engine.busy_s for engine in engines_run) / sum(engine.unstretched_s for engine in engines_run),
        fmean(tpots_s),
        float(np.quantile(tpots_s, 0.99)),
        float(np.quantile(ttfts_s, 0.99)),
        sum(o.cached_tokens for o in seen) / sum(o.turn.num_prompt_tokens for o in seen),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: means over seeds, and differences to `plain` in parts of it."""

    traffic: str
    ranks: int
    placement: str
    steering: str
    stretch: float
    tpot_mean_s: float
    tpot_p99_s: float
    ttft_p99_s: float
    hit_rate: float
    stretch_gain: float
    stretch_gain_error: float
    tpot_gain: float
    tpot_gain_error: float

    def __str__(self) -> str:
        return (
            f"{self.traffic:<7} {self.ranks:>5} {self.placement:<8} {self.steering:<8} {self.stretch:>8.4f}"
            f" {1e3 * self.tpot_mean_s:>8.2f} {1e3 * self.tpot_p99_s:>8.2f} {self.ttft_p99_s:>8.3f}"
            f" {self.hit_rate:>6.3f} {self.stretch_gain:>8.2%} +- {self.stretch_gain_error:.2%}"
            f" {self.tpot_gain:>8.2%} +- {self.tpot_gain_error:.2%}"
        )


def gain(plain: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """What is saved of `plain`, mean over pairs and two standard errors."""
    parts = [1.0 - b / a for a, b in zip(plain, other, strict=True)]
    return fmean(parts), 2.0 * stdev(parts) / sqrt(len(parts)) if len(parts) > 1 else 0.0


def row(traffic: str, ranks: int, placement: str, steering: str, runs: Sequence[Run], plain: Sequence[Run]) -> Row:
    """Of the runs of all seeds."""
    return Row(
        traffic,
        ranks,
        placement,
        steering,
        fmean(r.stretch for r in runs),
        fmean(r.tpot_mean_s for r in runs),
        fmean(r.tpot_p99_s for r in runs),
        fmean(r.ttft_p99_s for r in runs),
        fmean(r.hit_rate for r in runs),
        *gain([r.stretch for r in plain], [r.stretch for r in runs]),
        *gain([r.tpot_mean_s for r in plain], [r.tpot_mean_s for r in runs]),
    )


def placements(classes: Sequence[Scenario], topology: Topology) -> dict[str, Placement]:
    """One for all engines: for the mean of the classes, or for each of them and the mean."""
    mean = Scenario("mean", np.sum([item.tokens / item.tokens.sum() for item in classes], axis=0))
    return {
        "mean": plan([mean], topology, PRICES).placement,
        "classes": plan([mean, *classes], topology, PRICES).placement,
    }


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=Path, default=os.environ.get("LOADS") or None)
    parser.add_argument("--match", default="expert_counts/", help="of the file's loads those whose name has this")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second of an engine, all classes")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--redundant", type=int, nargs="+", default=[8, 64])
    asked = parser.parse_args()
    made_up = [Scenario(name, load) for name, load in domains().items()]
    classes = read_scenarios(asked.loads, match=asked.match) if asked.loads else made_up
    names = [item.name for item in classes]
    print("traffic ranks placement steering stretch  tpot ms      p99 ttft p99    hit  stretch gain      tpot gain")
    rows: list[Row] = []
    seeds = range(1, asked.seeds + 1)
    for traffic, workload in WORKLOADS.items():
        rate_per_s = asked.rate * asked.engines
        arrivals = {seed: arrivals_of(workload, names, rate_per_s, seed) for seed in seeds}
        for ranks, redundant in zip(asked.ranks, asked.redundant, strict=True):
            topology = Topology.even(1, ranks, (classes[0].tokens.shape[1] + redundant) // ranks)
            for name, placement in placements(classes, topology).items():
                stragglers = Stragglers(classes, placement, topology)
                plain: list[Run] = []
                for steering, weight in STEERING.items():
                    runs = [run(stragglers, arrivals[seed], weight, seed, asked.engines) for seed in seeds]
                    plain = plain or runs
                    rows.append(row(traffic, ranks, name, steering, runs, plain))
                    print(rows[-1], flush=True)
    print(json.dumps({"bench": "expert_steering", "seeds": asked.seeds, "rows": [asdict(item) for item in rows]}))


if __name__ == "__main__":
    main()
