"""Claim: placements made for every class of traffic serve mixes of classes to come better, and move less.

    python -m tests.bench.expert_classes [--loads FILE] [--match TEXT] [--seeds N]

Each load is a class of traffic. Windows of an engine's load are mixes of the classes, sampled; the engine does not say
whose tokens they are. The mix changes now and then (bursts), at random (free), hardly for 24 windows and then in bursts
(shift), or one class turns into the next and none comes back (drift):

    EPLB      plans anew after every window
    last      Headrace without classes: the forecast and the last window
    windows   these and, without classes, loads half-way to the four windows of late that are farthest apart
    classes   these and loads half-way to each class, its profile learned from the windows and from the router's counts,
              each of which is off by 10 % (one standard deviation)

Balancedness (even load over the slowest rank's) of the window that follows: mean and p5; `first`: of window 25, the
first that is not like those before where traffic shifts. Gigabytes moved. In the end the distance of the profiles from
the true ones, and of the common one: total variation, mean over layers.
"""

import argparse
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.class_profiles import ClassProfiles
from controlplane.placement.class_scenarios import class_scenarios
from controlplane.placement.cost import Aim
from controlplane.placement.eplb import linear
from controlplane.placement.loads import read_scenarios
from controlplane.placement.objective import Prices, moved_slots
from controlplane.placement.rebalance import Rebalancer
from controlplane.placement.simulate import Eplb, Ours, Policy, served
from controlplane.placement.types import Placement, Scenario, Tokens, Topology
from tests.placement_cases import domains

Floats = NDArray[np.float64]
Numbers = tuple[float, float, float, float]  # balancedness, p5, first, gigabytes

NUM_WINDOWS, WINDOW_S, WINDOW_TOKENS = 48, 60.0, 50_000
KEPT, SHIFT = 64, 24
COUNT_ERROR = 0.1
SHAPES = ((8, 8), (32, 64))
PRICES = Prices(expert_bytes=12.6e6, token_bytes=0.0)


def bursts(rng: np.random.Generator, num_classes: int) -> list[Floats]:
    """A new mix after three windows on average, most of it one or two classes."""
    found, mix = [], rng.dirichlet([0.3] * num_classes)
    for _ in range(NUM_WINDOWS):
        if rng.random() < 0.3:
            mix = rng.dirichlet([0.3] * num_classes)
        found.append(mix)
    return found


def drift(_: np.random.Generator, num_classes: int) -> list[Floats]:
    """One class turns into the next."""
    places = np.linspace(0.0, num_classes - 1.0, NUM_WINDOWS)
    return [np.maximum(0.0, 1.0 - np.abs(np.arange(num_classes) - place)) for place in places]


def shift(rng: np.random.Generator, num_classes: int) -> list[Floats]:
    """Little changes, and then much."""
    return [*(rng.dirichlet([30.0] * num_classes) for _ in range(SHIFT)), *bursts(rng, num_classes)[SHIFT:]]


MIXES: Mapping[str, Callable[[np.random.Generator, int], list[Floats]]] = {
    "bursts": bursts,
    "drift": drift,
    "free": lambda rng, num: [rng.dirichlet([1.0] * num) for _ in range(NUM_WINDOWS)],
    "shift": shift,
}


@dataclass(slots=True)
class WithOthers:
    """The rebalancer, told of other loads besides."""

    rebalancer: Rebalancer
    others: Callable[[Tokens, float], list[Scenario]]
    _windows: int = 0

    def after(self, tokens: Tokens, current: Placement) -> Placement:
        """What it holds after its decision."""
        self._windows += 1
        at_s = self._windows * WINDOW_S
        self.rebalancer.placement = current
        self.rebalancer.observe(tokens, at_s, WINDOW_S, self.others(tokens, at_s))
        return replace(self.rebalancer.placement, shares=None)


class ByClass:
    """One load for each class."""

    def __init__(self, classes: Sequence[Scenario], mixes: Sequence[Floats], rng: np.random.Generator) -> None:
        self._names = [item.name for item in classes]
        self._true = np.stack([item.tokens / item.tokens.sum(axis=1, keepdims=True) for item in classes])
        self._counts = (self._counted(mix, rng) for mix in mixes)
        self._windows: deque[Tokens] = deque(maxlen=KEPT)
        self.learned = ClassProfiles(3600.0)

    def _counted(self, mix: Floats, rng: np.random.Generator) -> dict[str, float]:
        off = np.maximum(0.0, 1.0 + COUNT_ERROR * rng.standard_normal(len(mix)))
        return dict(zip(self._names, mix * off, strict=True))

    def windows(self, tokens: Tokens, _: float) -> list[Scenario]:
        """Without classes."""
        self._windows.append(tokens / tokens.sum(axis=1, keepdims=True))
        now, found = self._windows[-1], list[Scenario]()
        away = [float(np.abs(window - now).sum()) for window in self._windows]
        while len(found) < 4 and max(away) > 0.0:  # always the farthest from the nearest of those chosen
            far = self._windows[int(np.argmax(away))]
            found.append(Scenario(f"window {len(found)}", (now + far) / 2, 0.0))
            away = [min(old, float(np.abs(one - far).sum())) for old, one in zip(away, self._windows, strict=True)]
        return found

    def others(self, tokens: Tokens, at_s: float) -> list[Scenario]:
        """By what was learned."""
        self.learned.add(tokens, next(self._counts), at_s)
        found = self.learned.estimate()
        assert found is not None
        return class_scenarios(found, tokens)

    def distance(self) -> tuple[float, float]:
        """Of the profiles and of the common one from the true ones."""
        found = self.learned.estimate()
        assert found is not None
        own = [found.shares[found.names.index(name)] for name in self._names if name in found.names]
        true = [self._true[number] for number, name in enumerate(self._names) if name in found.names]
        apart = np.abs(np.stack(own) - np.stack(true)).sum(axis=2).mean() / 2
        return float(apart), float(np.abs(found.common - np.stack(true)).sum(axis=2).mean() / 2)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: means over seeds."""

    mixes: str
    ranks: int
    redundant: int
    planner: str
    balancedness: float
    p5: float
    first: float
    moved_gb: float

    def __str__(self) -> str:
        return (
            f"{self.mixes:<7} {self.ranks:>5} {self.redundant:>5} {self.planner:<8} {self.balancedness:>6.3f}"
            f" {self.p5:>6.3f} {self.first:>6.3f} {self.moved_gb:>8.1f}"
        )


def measured(
    classes: Sequence[Scenario], name: str, topology: Topology, seed: int
) -> tuple[dict[str, Numbers], tuple[float, float]]:
    """Every planner on the same windows, and how well profiles were learned."""
    rng = np.random.default_rng(seed)
    mixes = MIXES[name](rng, len(classes))
    true = np.stack([item.tokens / item.tokens.sum(axis=1, keepdims=True) for item in classes])
    windows = [
        np.stack([rng.multinomial(WINDOW_TOKENS, row / row.sum()) for row in np.tensordot(mix, true, 1)]).astype(float)
        for mix in mixes
    ]
    start = linear(true.shape[1], true.shape[2], topology)

    def rebalancer() -> Rebalancer:
        return Rebalancer(topology, PRICES, start, Aim(horizon_s=WINDOW_S))

    by_class = ByClass(classes, mixes, np.random.default_rng(seed + 1))
    policies: dict[str, Policy] = {
        "EPLB": Eplb(topology),
        "last": Ours(rebalancer(), WINDOW_S),
        "windows": WithOthers(rebalancer(), by_class.windows),
        "classes": WithOthers(rebalancer(), by_class.others),
    }
    return {planner: followed(policy, windows, topology, start) for planner, policy in policies.items()}, (
        by_class.distance()
    )


def followed(policy: Policy, windows: Sequence[Tokens], topology: Topology, start: Placement) -> Numbers:
    """The windows, each served by what was decided after the one before it."""
    current, moves, found = start, 0, []
    for tokens, coming in pairwise(windows):
        chosen = policy.after(tokens, current)
        moves += int(moved_slots(chosen, current).sum())
        current = chosen
        found.append(served(current, topology, coming))
    each = np.stack(found)
    first = float(each[SHIFT - 1].mean())
    return float(each.mean()), float(np.quantile(each, 0.05)), first, moves * PRICES.expert_bytes / 1e9


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=Path, default=os.environ.get("LOADS") or None)
    parser.add_argument("--match", default="expert_counts/", help="of the file's loads those whose name has this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, choices=[ranks for ranks, _ in SHAPES], help="only these")
    asked = parser.parse_args()
    made_up = [Scenario(name, load) for name, load in domains().items()]
    classes = read_scenarios(asked.loads, match=asked.match) if asked.loads else made_up
    print("mixes   ranks redun planner     next     p5  first    moved")
    rows: list[Row] = []
    distances: dict[str, tuple[float, float]] = {}
    for ranks, redundant in SHAPES:
        if asked.ranks not in (None, ranks):
            continue
        topology = Topology.even(1, ranks, (classes[0].tokens.shape[1] + redundant) // ranks)
        for name in MIXES:
            runs = [measured(classes, name, topology, seed) for seed in range(asked.seeds)]
            distances[name] = fmean(run[1][0] for run in runs), fmean(run[1][1] for run in runs)
            for planner in runs[0][0]:
                each = [run[0][planner] for run in runs]
                rows.append(
                    Row(name, ranks, redundant, planner, *(round(fmean(of), 4) for of in zip(*each, strict=True)))
                )
                print(rows[-1], flush=True)
    for name, (own, common) in distances.items():
        print(f"{name}: profiles are {own:.3f} from the true ones, the common one is {common:.3f}")
    line = {"bench": "expert_classes", "seeds": asked.seeds, "distances": distances}
    print(json.dumps({**line, "rows": [asdict(item) for item in rows]}))


if __name__ == "__main__":
    main()
