"""Claim: experts placed for several loads, a few slots at a time, are served more evenly than where EPLB puts them.

    python -m tests.bench.experts [--loads FOLDER] [--match TEXT]

Loads are one matrix of tokens by layer and expert for each domain of text; without a folder (or LOADS in the
environment) made-up ones: as OLMoE's, Zipf, and of DeepSeek-V3's size. For each number of ranks and redundant slots:

    in     planned for a domain and served that domain
    next   one domain turns into the next over 20 windows, with sampling noise; the plan made after each window is
           measured on the one that follows. EPLB plans anew every time, ours moves what pays within a window
    out    planned for all domains but one, and served that one, its tokens divided as is best for it (all planners)
    drawn  the same with eight ranks, planned for samples of these domains instead: mean and deviation of 8 draws
    moved  gigabytes over the 20 windows; cross: tokens of these that have to cross nodes (eight ranks each) at least
    plan_s of one plan for one domain, process time

Balancedness: even load over the slowest rank's. Means over domains or windows, and layers; p5 and worst layer of out.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.cost import Aim
from controlplane.placement.eplb import eplb_global, linear
from controlplane.placement.loads import read_scenarios
from controlplane.placement.objective import Prices
from controlplane.placement.planner import plan
from controlplane.placement.rebalance import Rebalancer
from controlplane.placement.simulate import Eplb, Keep, Ours, Policy, Row, replay, served
from controlplane.placement.types import Placement, Scenario, Tokens, Topology
from controlplane.placement.unseen import plan_unseen
from tests.placement_cases import domains

RANKS_OF_NODE = 8
NUM_WINDOWS = 20
NUM_DRAWS = 8
WINDOW_TOKENS = 50_000
WINDOW_S = 60.0
PRICES = Prices(expert_bytes=12.6e6, token_bytes=0.0)  # OLMoE's expert in BF16; balance alone is compared
SHAPES = [(ranks, redundant) for ranks in (8, 16, 32, 64) for redundant in (0, 8, 16, 32, 64) if redundant % ranks == 0]
BIG = (32, 32)

Floats = NDArray[np.float64]
Planner = Callable[[Sequence[Scenario], Topology], Placement]


@dataclass(frozen=True, slots=True)
class Cell:
    """A line of the table."""

    load: str
    ranks: int
    redundant: int
    planner: str
    balancedness_in: float
    balancedness_next: float
    balancedness_out: float
    out_p5: float
    worst_layer: float
    out_drawn: float | None
    out_drawn_sd: float | None
    bytes_moved: float
    cross_node: float
    plan_s: float

    def __str__(self) -> str:
        drawn = f"{self.out_drawn:.3f} ± {self.out_drawn_sd:.3f}" if self.out_drawn is not None else ""
        return (
            f"{self.load:<22} {self.ranks:>5} {self.redundant:>5} {self.planner:<7} {self.balancedness_in:>6.3f}"
            f" {self.balancedness_next:>6.3f} {self.balancedness_out:>6.3f} {self.out_p5:>6.3f}"
            f" {self.worst_layer:>6.3f} {drawn:>13} {self.bytes_moved / 1e9:>6.1f} {self.cross_node:>6.3f}"
            f" {self.plan_s:>7.3f}"
        )


def _linear(scenarios: Sequence[Scenario], topology: Topology) -> Placement:
    num_layers, num_experts = scenarios[0].tokens.shape
    return linear(num_layers, num_experts, topology)


def _eplb(scenarios: Sequence[Scenario], topology: Topology) -> Placement:
    mean = sum(item.tokens / item.tokens.sum(axis=1, keepdims=True) for item in scenarios)
    return eplb_global(np.asarray(mean), topology)


def _ours(scenarios: Sequence[Scenario], topology: Topology) -> Placement:
    return plan(scenarios, topology, PRICES).placement


def _ours_unseen(scenarios: Sequence[Scenario], topology: Topology) -> Placement:
    return plan_unseen(scenarios, topology, PRICES).placement


PLANNERS: dict[str, tuple[Planner, Planner]] = {  # for what is seen, and for what is not
    "linear": (_linear, _linear),
    "EPLB": (_eplb, _eplb),
    "ours": (_ours, _ours_unseen),
}


def drifting(loads: Sequence[Scenario], num_windows: int, seed: int = 0) -> list[Tokens]:
    """Counts of windows while each domain turns into the next."""
    generator = np.random.default_rng(seed)
    rows = [item.tokens / item.tokens.sum(axis=1, keepdims=True) for item in loads]
    found = []
    for place in np.linspace(0.0, len(rows) - 1.0, num_windows):
        first = min(int(place), len(rows) - 2)
        blend = (1.0 - place + first) * rows[first] + (place - first) * rows[first + 1]
        found.append(_sampled(blend, generator))
    return found


def _sampled(tokens: Tokens, generator: np.random.Generator) -> Tokens:
    """A window's counts of a load."""
    counts = [generator.multinomial(WINDOW_TOKENS, row / row.sum()) for row in tokens]
    return np.array(counts, dtype=np.float64)


def unseen_served(loads: Sequence[Scenario], planner: Planner, topology: Topology, seed: int | None = None) -> Floats:
    """(loads, layers) balancedness of each load, planned for the others, or for samples of them."""
    generator, found = np.random.default_rng(seed), []
    for item in loads:
        others = [other for other in loads if other is not item]
        if seed is not None:
            others = [Scenario(other.name, _sampled(other.tokens, generator)) for other in others]
        found.append(served(planner(others, topology), topology, item.tokens, splits_best=True))
    return np.stack(found)


def policy(name: str, topology: Topology, start: Placement) -> Policy:
    """The way of the planner from window to window."""
    if name == "ours":
        return Ours(Rebalancer(topology, PRICES, start, Aim(horizon_s=WINDOW_S)), WINDOW_S)
    return Keep() if name == "linear" else Eplb(topology)


def followed(name: str, windows: Sequence[Tokens], topology: Topology) -> Row:
    """The windows, from the placement that engines start with."""
    num_layers, num_experts = windows[0].shape
    start = linear(num_layers, num_experts, topology)
    return replay(windows, policy(name, topology, start), topology, PRICES, start)


def cell(load: str, loads: Sequence[Scenario], ranks: int, redundant: int, planner: str, num_windows: int) -> Cell:
    """All measurements of one planner."""
    num_experts = loads[0].tokens.shape[1]
    topology = Topology.even(max(1, ranks // RANKS_OF_NODE), ranks, (num_experts + redundant) // ranks)
    seen, unseen = PLANNERS[planner]
    inside, took_s = [], []
    for item in loads:
        began_s = time.process_time()
        placement = seen([item], topology)
        took_s.append(time.process_time() - began_s)
        inside.append(served(placement, topology, item.tokens))
    each = unseen_served(loads, unseen, topology)
    seeds = range(NUM_DRAWS if ranks == RANKS_OF_NODE else 0)
    drawn = [float(unseen_served(loads, unseen, topology, seed).mean()) for seed in seeds]
    row = followed(planner, drifting(loads, num_windows), topology)
    return Cell(
        load,
        ranks,
        redundant,
        planner,
        round(float(np.mean(inside)), 4),
        round(row.balancedness, 4),
        round(float(each.mean()), 4),
        round(float(np.quantile(each, 0.05)), 4),
        round(float(each.min()), 4),
        round(float(np.mean(drawn)), 4) if drawn else None,
        round(float(np.std(drawn, ddof=1)), 4) if drawn else None,
        row.moved_bytes,
        round(row.cross_node, 4),
        round(float(np.mean(took_s)), 4),
    )


def read_loads(folder: Path, match: str) -> dict[str, list[Scenario]]:
    """By file, the loads whose name has `match`; a file with fewer than two says nothing of drift."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        scenarios = read_scenarios(path, match=match)
        if len(scenarios) > 1:
            found[path.stem] = scenarios
    return found


def made_up(num_layers: int, num_experts: int) -> list[Scenario]:
    """Four domains of no model."""
    return [Scenario(name, load) for name, load in domains(1, num_layers, num_experts).items()]


def zipf(num_layers: int, num_experts: int) -> list[Scenario]:
    """Four domains of Zipf loads (exponent 0.6, about OLMoE's skew), each with its own order of experts."""
    generator = np.random.default_rng(2)
    tokens = 1e6 / np.arange(1.0, num_experts + 1.0) ** 0.6
    return [
        Scenario(f"zipf {number}", np.array([generator.permutation(tokens) for _ in range(num_layers)]))
        for number in range(4)
    ]


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=Path, default=os.environ.get("LOADS") or None)
    parser.add_argument("--match", default="expert_counts/", help="of a file's loads those whose name has this")
    asked = parser.parse_args()
    loads = {"made up": made_up(3, 64), "Zipf": zipf(3, 64)}
    if asked.loads is not None:
        loads |= read_loads(Path(asked.loads), asked.match)
    tasks = [(name, items, *shape, NUM_WINDOWS) for name, items in loads.items() for shape in SHAPES]
    tasks.append(("made up, DeepSeek-V3", made_up(58, 256), *BIG, 6))
    figures = "in   next    out out p5  worst         drawn  moved  cross  plan_s"
    print(f"load                   ranks redun planner     {figures}")
    cells = []
    for name, items, ranks, redundant, num_windows in tasks:
        for planner in PLANNERS:
            cells.append(cell(name, items, ranks, redundant, planner, num_windows))
            print(cells[-1], flush=True)
    print(json.dumps({"bench": "experts", "cells": [asdict(item) for item in cells]}))


if __name__ == "__main__":
    main()
