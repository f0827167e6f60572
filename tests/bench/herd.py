"""Claim: sixteen routers do not all pick the worker that looks best to each of them.

    python -m tests.bench.herd

16 router replicas, 64 equal workers, one report and one exchange of promises a second. Between two exchanges no replica
sees what the others send. Shown is how many prompts the busiest worker gets in an interval against the mean, with the
replicas' exchange and without it, with the draw among near-equals and without it; and what this does to the slowest one
in a hundred. "by chance": the same number of prompts thrown at random.
"""

import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from random import Random
from statistics import fmean

from router.choice.cost import Costs
from router.choice.policy import LeastCost
from router.choice.view import View
from tests.sim.fleet import Fleet
from tests.sim.report import report
from tests.sim.simulation import PolicyFactory, Simulation
from tests.sim.workload import Lengths, Shape, generate

NUM_ROUTERS = 16
NUM_WORKERS = 64
INTERVAL_S = 1.0
WARM_UP_S = 8.0
SHAPE = Shape(rate_per_s=450.0, duration_s=20.0, prompt=Lengths(1500, 0.0), output=Lengths(60))


class NoBand(LeastCost):
    """Always the one that looks cheapest."""

    def _band_s(self, view: View, costs: Costs, best_s: float) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """One way to run the fleet."""

    name: str
    busiest_over_mean: float
    worst_interval: float
    ttft_p50_s: float
    ttft_p99_s: float


def intervals(times_by_worker: dict[str, list[float]]) -> list[float]:
    """Busiest worker over mean, for each interval after the warm-up."""
    found = []
    for k in range(round(WARM_UP_S / INTERVAL_S), round(SHAPE.duration_s / INTERVAL_S)):
        sent = [sum(k <= at / INTERVAL_S < k + 1 for at in times) for times in times_by_worker.values()]
        found.append(max(sent) / (sum(sent) / len(sent)))
    return found


def measure(name: str, policy: PolicyFactory, exchange_s: float, num_routers: int = NUM_ROUTERS) -> Found:
    """One run."""
    fleet = Fleet(mixed=NUM_WORKERS, num_routers=num_routers, exchange_s=exchange_s, heartbeat_s=INTERVAL_S)
    simulation = Simulation(policy, fleet, seed=1)
    simulation.run(generate(SHAPE, 1))
    over = intervals({str(worker.spec.id): worker.dispatches for worker in simulation.workers.values()})
    p50, _, p99 = report(simulation, from_s=WARM_UP_S).total.ttft_s
    return Found(name, round(fmean(over), 2), round(max(over), 2), round(p50, 3), round(p99, 3))


def by_chance() -> float:
    """What throwing the prompts at random gives."""
    rng, over = Random(1), []
    per_interval = round(SHAPE.rate_per_s * INTERVAL_S)
    for _ in range(200):
        sent = Counter(rng.randrange(NUM_WORKERS) for _ in range(per_interval))
        over.append(max(sent.values()) / (per_interval / NUM_WORKERS))
    return round(fmean(over), 2)


def main() -> None:
    """Print the table and one JSON line."""
    began_s = time.process_time()
    print(f"{'':<32} busiest/mean   worst  ttft p50    p99")
    rows = []
    for name, policy, exchange_s, num_routers in (
        ("one router", LeastCost, math.inf, 1),
        ("16, exchange and band", LeastCost, INTERVAL_S, NUM_ROUTERS),
        ("16, exchange, no band", NoBand, INTERVAL_S, NUM_ROUTERS),
        ("16, no exchange, band", LeastCost, math.inf, NUM_ROUTERS),
        ("16, no exchange, no band", NoBand, math.inf, NUM_ROUTERS),
    ):
        found = measure(name, policy, exchange_s, num_routers)
        rows.append(found)
        print(
            f"{name:<32} {found.busiest_over_mean:>12} {found.worst_interval:>7}"
            f" {found.ttft_p50_s:>9} {found.ttft_p99_s:>6}",
            flush=True,
        )
    chance = by_chance()
    print(f"{'by chance':<32} {chance:>12}")
    line = {r.name: [r.busiest_over_mean, r.worst_interval, r.ttft_p50_s, r.ttft_p99_s] for r in rows}
    cpu_s = round(time.process_time() - began_s, 1)
    print(json.dumps({"bench": "herd", "cpu_s": cpu_s, "by_chance": chance, "rows": line}))


if __name__ == "__main__":
    main()
