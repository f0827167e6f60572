"""Windows of load replayed through ways to place experts. Pure: who calls times it.

A policy sees a window when it has ended and says what the ranks hold during the next one, on which it is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.eplb import eplb_global, keep_places
from controlplane.placement.objective import Prices, balancedness, dispatch_share, moved_slots
from controlplane.placement.rebalance import Rebalancer
from controlplane.placement.split import fast_shares
from controlplane.placement.types import Placement, Tokens, Topology


class Policy(Protocol):
    """Says what to hold next."""

    def after(self, tokens: Tokens, current: Placement) -> Placement:
        """The window's load is known now."""
        ...


class Keep:
    """What was there stays: vLLM without EPLB, if it began so."""

    def after(self, tokens: Tokens, current: Placement) -> Placement:
        """The same."""
        return current


@dataclass(frozen=True, slots=True)
class Eplb:
    """EPLB for the last window, after every window or once balancedness is below what was asked (SGLang's rule)."""

    topology: Topology
    below: float = float("inf")

    def after(self, tokens: Tokens, current: Placement) -> Placement:
        """EPLB's, with what stays on a rank in its slot."""
        if balancedness(current, self.topology, tokens).mean() >= self.below:
            return current
        return keep_places(eplb_global(tokens, self.topology), current)


@dataclass(slots=True)
class Ours:
    """The rebalancer, window after window."""

    rebalancer: Rebalancer
    window_s: float
    _windows: int = 0

    def after(self, tokens: Tokens, current: Placement) -> Placement:
        """What it holds after its decision."""
        self._windows += 1
        self.rebalancer.placement = current
        self.rebalancer.observe(tokens, self._windows * self.window_s, self.window_s)
        return replace(self.rebalancer.placement, shares=None)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy over all windows but the first, which it learns from."""

    balancedness: float  # mean over windows and layers
    p5: float
    worst_layer: float  # the mean over windows of the layer with the least
    rebalances: int
    moved_slots: int
    moved_bytes: float
    cross_node: float  # part of the tokens that have to cross


def replay(
    windows: Sequence[Tokens],
    policy: Policy,
    topology: Topology,
    prices: Prices,
    start: Placement,
    *,
    splits_best: bool = False,
) -> Row:
    """`splits_best`: each window's tokens are divided as is best for it, whatever the policy."""
    current, found, crossing = start, [], []
    rebalances = moved = 0
    for seen, coming in pairwise(windows):
        chosen = policy.after(seen, current)
        moves = int(moved_slots(chosen, current).sum())
        moved += moves
        rebalances += moves > 0
        current = chosen
        found.append(served(current, topology, coming, splits_best=splits_best))
        crossing.append(dispatch_share(current, topology, coming).mean())
    each = np.stack(found)
    return Row(
        float(each.mean()),
        float(np.quantile(each, 0.05)),
        float(each.mean(axis=0).min()),
        rebalances,
        moved,
        moved * prices.expert_bytes,
        float(np.mean(crossing)),
    )


def served(
    placement: Placement, topology: Topology, tokens: Tokens, *, splits_best: bool = False
) -> NDArray[np.float64]:
    """(layers,) balancedness of a load that a placement serves."""
    if splits_best:
        placement = replace(placement, shares=fast_shares(placement, topology, tokens))
    return balancedness(placement, topology, tokens)
