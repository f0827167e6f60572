"""Claim: one cost in seconds meets more targets than the rules that peers ship.

    python -m tests.bench.policies [--seeds N] [--workloads NAME ...] [--policies NAME ...]

Every policy runs in the same core on the same arrivals, with admission off, in tests/sim: simulated engines whose times
follow a roofline and not the router's model. What that cannot show is what no simulation can: real engines. Baselines
are given the exact index and shared load, which most of the peers do not have (router/baselines).

good/s: requests a second with TTFT and TPOT within their targets. Seconds are of served requests. imbal: busy time of
the busiest worker over the mean of its pool.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from router.baselines import BASELINES
from router.choice.policy import LeastCost
from tests.builders import make_terms
from tests.sim import trace
from tests.sim.fleet import Fleet
from tests.sim.hardware import Hardware
from tests.sim.report import Report, report
from tests.sim.simulation import PolicyFactory, Simulation
from tests.sim.workload import Arrival, Lengths, Shape, generate

OURS = "least_cost"
POLICIES: dict[str, PolicyFactory] = {OURS: LeastCost, **BASELINES}
WARM_UP_S = 15.0
EQUAL = 0.01  # attainments closer than that are the same

MIXED = Fleet(mixed=8)
PD = Fleet(prefill=3, decode=5)
LONG = make_terms(ttft_s=5.0, tpot_s=0.1)


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals for a seed, on a fleet."""

    fleet: Fleet
    arrivals: Callable[[int], list[Arrival]]
    until_s: float


# 200 system prompts of some 3,000 tokens: more than one worker's cache holds, less than all of them hold.
SHARED = Shape(rate_per_s=77.0, duration_s=60.0, prompt=Lengths(600), num_systems=200, system=Lengths(3000, 0.4))
COLD = Shape(rate_per_s=40.0, duration_s=60.0, prompt=Lengths(2500))
CHATS = Shape(rate_per_s=20.0, duration_s=60.0, prompt=Lengths(300), output=Lengths(250), num_systems=10, turns=6.0)


def _synthetic(shape: Shape, fleet: Fleet = MIXED) -> Workload:
    return Workload(fleet, lambda seed: generate(shape, seed), shape.duration_s)


def _trace() -> Workload:
    fleet = Fleet(mixed=8, hardware=Hardware(block_size_tokens=trace.BLOCK_SIZE_TOKENS))
    return Workload(
        fleet, lambda seed: trace.conversation(LONG, num_requests=2500, seed=seed, speed_up=1.5), float("inf")
    )


# The full load is the rate at which the best policies found begin to miss targets, 8 workers of one H100 each.
WORKLOADS: dict[str, Workload] = {
    "mixed 70%": _synthetic(SHARED),
    "mixed 100%": _synthetic(replace(SHARED, rate_per_s=110.0)),
    "mixed uneven": _synthetic(replace(SHARED, rate_per_s=85.0), Fleet(mixed=8, speeds=(1.0, 1.0, 1.0, 0.6))),
    "mixed bursty": _synthetic(replace(SHARED, burstiness=4.0)),
    "mixed cold": _synthetic(COLD),
    "3P5D shared": _synthetic(replace(SHARED, rate_per_s=75.0), PD),
    "3P5D cold": _synthetic(replace(COLD, rate_per_s=30.0), PD),
    "chats": _synthetic(CHATS),
    "mooncake trace": _trace(),
}


def measure(policy: PolicyFactory, workload: Workload, seed: int) -> Report | None:
    """One run; None where the workload's data is not there."""
    arrivals = workload.arrivals(seed)
    if not arrivals:
        return None
    simulation = Simulation(policy, workload.fleet, seed=seed)
    simulation.run(arrivals)
    return report(simulation, from_s=WARM_UP_S, until_s=workload.until_s)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: means over seeds."""

    workload: str
    policy: str
    goodput_per_s: float
    attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    hit_rate: float
    imbalance: float

    def __str__(self) -> str:
        return (
            f"{self.workload:<15} {self.policy:<13} {self.goodput_per_s:>7.2f} {self.attainment:>7.3f}"
            f" {self.ttft_p50_s:>8.3f} {self.ttft_p99_s:>8.3f} {self.tpot_p50_s:>8.4f} {self.tpot_p99_s:>8.4f}"
            f" {self.hit_rate:>6.3f} {self.imbalance:>6.2f}"
        )


def mean_row(workload: str, policy: str, reports: Sequence[Report]) -> Row:
    """One policy on one workload."""

    def mean(of: Callable[[Report], float]) -> float:
        return round(fmean(map(of, reports)), 5)

    return Row(
        workload,
        policy,
        goodput_per_s=mean(lambda r: r.total.goodput_per_s),
        attainment=mean(lambda r: r.total.attainment),
        ttft_p50_s=mean(lambda r: r.total.ttft_s[0]),
        ttft_p99_s=mean(lambda r: r.total.ttft_s[2]),
        tpot_p50_s=mean(lambda r: r.total.tpot_s[0]),
        tpot_p99_s=mean(lambda r: r.total.tpot_s[2]),
        hit_rate=mean(lambda r: r.hit_rate),
        imbalance=mean(lambda r: r.imbalance),
    )


def beaten(rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each workload the baselines that met more targets than ours."""
    ours = {row.workload: row.attainment for row in rows if row.policy == OURS}
    better: dict[str, list[str]] = {}
    for row in rows:
        if row.workload in ours and row.attainment > ours[row.workload] + EQUAL:
            better.setdefault(row.workload, []).append(f"{row.policy} {row.attainment:.3f}")
    return better


def main() -> None:
    """Print the table, where baselines win, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    asked = parser.parse_args()
    began_s = time.process_time()
    print("workload        policy         good/s  attain ttft p50      p99 tpot p50      p99    hit  imbal")
    rows: list[Row] = []
    for name in asked.workloads:
        for policy in asked.policies:
            found = [measure(POLICIES[policy], WORKLOADS[name], seed) for seed in range(1, asked.seeds + 1)]
            reports = [item for item in found if item is not None]
            if not reports:
                print(f"{name:<15} skipped: {trace.PATH} is not there")
                break
            rows.append(mean_row(name, policy, reports))
            print(rows[-1], flush=True)
    better = beaten(rows)
    for name, by in better.items():
        print(f"{name}: more targets than {OURS} are met by {', '.join(by)}")
    if not better:
        print(f"no baseline meets more targets than {OURS} (by more than {EQUAL:.0%}) on any workload")
    cpu_s = round(time.process_time() - began_s, 1)
    line = {"bench": "policies", "seeds": asked.seeds, "cpu_s": cpu_s, "beaten_by": better}
    print(json.dumps({**line, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
