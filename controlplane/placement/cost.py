"""What a placement costs for several loads at once, in seconds of each layer. Pure.

With p_k the weight of scenario k among all, and straggler_k its load of the slowest rank as part of its tokens
(controlplane.placement.objective), over a horizon of T tokens a layer:

    straggler = expert_s_per_token T ((1 - risk) sum_k p_k straggler_k + risk max_k straggler_k)
    dispatch  = token_bytes T sum_k p_k dispatch_k / (cross_node_bytes_per_s nodes)
    moving    = expert_bytes sum over moved slots of 1 / (link from the nearest live copy * nodes)

Nodes send at the same time, hence the division. An expert of which no live copy is left comes from afar. Every term is
a sum over layers, so layers can be planned one by one, and dispatch and moving are sums over slots and experts as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.objective import Prices, dispatch_share, equal_shares, rank_loads
from controlplane.placement.replicas import replica_counts
from controlplane.placement.split import fast_shares
from controlplane.placement.types import (
    EMPTY,
    Placement,
    PlacementError,
    Scenario,
    Slots,
    Topology,
    scenario_tokens,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a plan is for."""

    horizon_s: float = 300.0  # for which it is used
    risk: float = 0.5  # 0: the expected load counts alone; 1: the worst alone
    splits_best: bool = False  # the engine is given the best token split for each load, not an equal one
    num_groups: int = 8  # of experts that EPLB keeps on a node: 8 in DeepSeek-V3. Only plans to start from need them

    def __post_init__(self) -> None:
        if not 0.0 <= self.risk <= 1.0:
            raise PlacementError(f"risk is {self.risk}, allowed is 0 to 1")
        if self.num_groups < 1:
            raise PlacementError(f"num_groups is {self.num_groups}, allowed is 1 or more")
        if not 0.0 < self.horizon_s < float("inf"):
            raise PlacementError(f"horizon_s is {self.horizon_s}, allowed is above 0")


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds of each layer over the horizon."""

    straggler_s: Floats
    dispatch_s: Floats
    moving_s: Floats

    @property
    def total_s(self) -> Floats:
        """(layers,) all of them."""
        return self.straggler_s + self.dispatch_s + self.moving_s


@dataclass(frozen=True, slots=True)
class Costs:
    """Prices and loads, prepared. Loads are in even loads: 1 is what every rank had if tokens could be cut at will."""

    topology: Topology
    aim: Aim
    tokens: Floats  # (scenarios, layers, experts), the sum of a layer is that of the live ranks' speeds
    parts: Floats  # (scenarios,) adding up to 1
    even_s: float  # seconds of a layer over the horizon if loads were even
    crossing_s: float  # if every token had to cross
    moving_s: Floats  # (layers, experts, ranks) of a slot there

    @classmethod
    def of(
        cls, scenarios: Sequence[Scenario], topology: Topology, prices: Prices, previous: Placement | None, aim: Aim
    ) -> "Costs":
        """For a plan that follows `previous`; None: moving is free."""
        speed = float(topology.speeds.sum())
        tokens: Floats = scenario_tokens(scenarios) * speed
        weights = np.array([scenario.weight for scenario in scenarios])
        if not np.isfinite(weights).all() or (weights < 0.0).any() or not weights.any():
            raise PlacementError("weights of scenarios are finite, none below 0 and one above")
        num_nodes = len(np.unique(topology.nodes[topology.live_ranks]))
        horizon_tokens = prices.tokens_per_s * aim.horizon_s
        return cls(
            topology,
            aim,
            tokens,
            weights / weights.sum(),
            prices.expert_s_per_token * horizon_tokens / speed,
            prices.token_bytes * horizon_tokens / (prices.cross_node_bytes_per_s * num_nodes),
            _moving_s(topology, prices, previous, tokens.shape[1:], num_nodes),
        )

    @property
    def expected(self) -> Floats:
        """(layers, experts) tokens of the mean over scenarios."""
        mean: Floats = np.einsum("k,kle->le", self.parts, self.tokens)
        return mean

    def at(self, layers: NDArray[np.int64]) -> "Costs":
        """The same for some layers."""
        return replace(self, tokens=self.tokens[:, layers], moving_s=self.moving_s[layers])

    def shares(self, slots: Slots) -> Floats:
        """(scenarios, layers, slots): equal, or the best for each scenario."""
        num, layers, experts = self.tokens.shape
        if not self.aim.splits_best:
            return np.broadcast_to(equal_shares(slots, experts), (num, *slots.shape))
        stacked = Placement(np.tile(slots, (num, 1)), experts, self.topology.slots_per_rank)
        shares = fast_shares(stacked, self.topology, self.tokens.reshape(num * layers, experts))
        found: Floats = shares.reshape(num, *slots.shape)
        return found

    def slowest(self, slots: Slots) -> Floats:
        """(scenarios, layers) load of the slowest rank; 1 over balancedness."""
        num, layers, experts = self.tokens.shape
        shares = self.shares(slots).reshape(num * layers, -1)
        stacked = Placement(np.tile(slots, (num, 1)), experts, self.topology.slots_per_rank, shares)
        tokens = self.tokens.reshape(num * layers, experts)
        found: Floats = rank_loads(stacked, self.topology, tokens).max(axis=1).reshape(num, layers)
        return found

    def straggler_s(self, slowest: Floats) -> Floats:
        """(layers,) from (scenarios, layers)."""
        expected: Floats = np.einsum("k,kl->l", self.parts, slowest)
        found: Floats = self.even_s * ((1.0 - self.aim.risk) * expected + self.aim.risk * slowest.max(axis=0))
        return found

    def terms(self, slots: Slots) -> Terms:
        """All of a plan's seconds."""
        return Terms(self.straggler_s(self.slowest(slots)), self.dispatch_s(slots), self.slots_moving_s(slots))

    def dispatch_s(self, slots: Slots) -> Floats:
        """(layers,)."""
        plan = Placement(slots, self.tokens.shape[2], self.topology.slots_per_rank)
        found: Floats = self.crossing_s * dispatch_share(plan, self.topology, self.expected)
        return found

    def slots_moving_s(self, slots: Slots) -> Floats:
        """(layers,)."""
        layer, slot = np.nonzero(slots != EMPTY)
        price = self.moving_s[layer, slots[layer, slot], slot // self.topology.slots_per_rank]
        found: Floats = np.bincount(layer, weights=price, minlength=len(slots)).astype(np.float64)
        return found

    @property
    def node_of_slot(self) -> NDArray[np.int64]:
        """(slots,) live nodes numbered from 0; 0 for slots of dead ranks, which hold nothing."""
        ranks = self.topology.nodes
        live = np.unique(ranks[self.topology.live_ranks])
        number = np.minimum(np.searchsorted(live, ranks), len(live) - 1)
        return np.repeat(number, self.topology.slots_per_rank)

    def bound_s(self) -> Floats:
        """(layers,) that no placement's straggler term is below: no rank below the even load, nor below its largest
        replica where every expert has as many as is best for it."""
        num, layers, experts = self.tokens.shape
        flat = self.tokens.reshape(num * layers, experts)
        counts = replica_counts(flat, len(self.topology.live_slots))
        largest = (flat / counts).max(axis=1).reshape(num, layers) / self.topology.speeds.max()
        return self.straggler_s(np.maximum(1.0, largest))


def _moving_s(
    topology: Topology, prices: Prices, previous: Placement | None, shape: tuple[int, ...], num_nodes: int
) -> Floats:
    num_ranks = len(topology.ranks)
    price = np.zeros((shape[0], shape[1], num_ranks))
    if previous is None:
        return price
    price += prices.expert_bytes / (prices.cross_link_bytes_per_s * num_nodes)
    live = np.zeros(topology.num_slots, dtype=bool)
    live[topology.live_slots] = True
    layer, slot = np.nonzero((previous.slots != EMPTY) & live)
    expert, rank = previous.slots[layer, slot], slot // topology.slots_per_rank
    for other in topology.live_ranks:
        near = topology.nodes[rank] == topology.nodes[other]
        price[layer[near], expert[near], other] = prices.expert_bytes / (prices.link_bytes_per_s * num_nodes)
    price[layer, expert, rank] = 0.0
    return price
