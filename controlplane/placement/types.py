"""Expert loads, ranks and placements, and what must hold for each. Pure.

A mixture-of-experts layer has logical experts (the model's) and physical slots (copies in a rank's memory). Slots are
numbered over the ranks: slot s lies on rank s // slots_per_rank. Arrays are (layers, experts) or (layers, slots).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.float64]  # (layers, experts): routed to each in a window
Slots = NDArray[np.int64]  # (layers, slots): the logical expert in each; EMPTY on a dead rank
Shares = NDArray[np.float64]  # (layers, slots): part of its expert's tokens that a slot takes

EMPTY = -1

_Number = TypeVar("_Number", np.int64, np.float64)

_MOST_TOKENS = 1e18  # no window has as many, and sums of them are finite


class PlacementError(ValueError):
    """Input from which no plan can be made. The message names the layer, if there is one, and the rule."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One expert-parallel rank."""

    node: int
    speed: float = 1.0  # tokens a second, relative to the others
    is_alive: bool = True


@dataclass(frozen=True, slots=True)
class Topology:
    """The ranks of one engine. Every rank has the same number of slots a layer: engines know no other."""

    ranks: tuple[Rank, ...]
    slots_per_rank: int

    def __post_init__(self) -> None:
        if self.slots_per_rank < 1:
            raise PlacementError(f"slots_per_rank is {self.slots_per_rank}: a rank has at least one slot")
        if not any(rank.is_alive for rank in self.ranks):
            raise PlacementError("no rank is alive")
        for number, rank in enumerate(self.ranks):
            if not 0.0 < rank.speed < float("inf"):
                raise PlacementError(f"rank {number}: speed is {rank.speed}, allowed is above 0")

    @classmethod
    def even(cls, num_nodes: int, num_ranks: int, slots_per_rank: int) -> "Topology":
        """Equal ranks, as many on each node."""
        if num_nodes < 1 or num_ranks < 1 or num_ranks % num_nodes:
            raise PlacementError(f"{num_ranks} ranks do not divide over {num_nodes} nodes")
        per_node = num_ranks // num_nodes
        return cls(tuple(Rank(number // per_node) for number in range(num_ranks)), slots_per_rank)

    def with_dead(self, is_alive: Sequence[bool]) -> "Topology":
        """The same ranks, of which only these are alive."""
        ranks = tuple(replace(rank, is_alive=alive) for rank, alive in zip(self.ranks, is_alive, strict=True))
        return Topology(ranks, self.slots_per_rank)

    @property
    def num_slots(self) -> int:
        """Slots of all ranks, also of dead ones."""
        return len(self.ranks) * self.slots_per_rank

    @property
    def live_ranks(self) -> NDArray[np.int64]:
        """Numbers of the ranks that are alive."""
        return np.array([number for number, rank in enumerate(self.ranks) if rank.is_alive], dtype=np.int64)

    @property
    def live_slots(self) -> NDArray[np.int64]:
        """Their slots."""
        within = np.arange(self.slots_per_rank)
        found: NDArray[np.int64] = (self.live_ranks[:, None] * self.slots_per_rank + within).ravel()
        return found

    @property
    def speeds(self) -> NDArray[np.float64]:
        """(ranks,) relative speeds; 0 where dead."""
        return np.array([rank.speed if rank.is_alive else 0.0 for rank in self.ranks])

    @property
    def nodes(self) -> NDArray[np.int64]:
        """(ranks,) the node of each."""
        return np.array([rank.node for rank in self.ranks], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load that a plan should be good for: a window, a domain, a traffic class, a forecast."""

    name: str
    tokens: Tokens
    weight: float = 1.0  # in the expectation; the worst case counts all alike

    def __post_init__(self) -> None:
        check_tokens(self.tokens, self.name)


@dataclass(frozen=True, slots=True)
class Placement:
    """One engine's plan. Compare `slots` by value with `np.array_equal`."""

    slots: Slots
    num_experts: int
    slots_per_rank: int
    shares: Shares | None = field(default=None, compare=False)  # None: equal among an expert's replicas

    @property
    def num_layers(self) -> int:
        """MoE layers."""
        return len(self.slots)

    @property
    def replica_counts(self) -> NDArray[np.int64]:
        """(layers, experts) slots of each expert."""
        return sum_by_expert(self.slots, np.ones_like(self.slots), self.num_experts)


def sum_by_expert(slots: Slots, values: NDArray[_Number], num_experts: int) -> NDArray[_Number]:
    """(layers, experts): values of slots, over the slots of each expert."""
    sums = np.zeros((len(slots), num_experts), dtype=values.dtype)
    layer, slot = np.nonzero(slots != EMPTY)
    np.add.at(sums, (layer, slots[layer, slot]), values[layer, slot])
    return sums


def check_tokens(tokens: Tokens, name: str = "load", *, shape: tuple[int, int] | None = None) -> None:
    """Raise PlacementError unless these are loads that a plan can be made from."""
    if tokens.ndim != 2 or not tokens.size:
        raise PlacementError(f"{name}: shape {tokens.shape}, expected (layers, experts)")
    if shape is not None and tokens.shape != shape:
        raise PlacementError(f"{name}: shape {tokens.shape}, the other loads have {shape}")
    for layer, row in enumerate(tokens):
        if not np.isfinite(row).all():
            expert = int(np.flatnonzero(~np.isfinite(row))[0])
            raise PlacementError(f"{name}: layer {layer}: expert {expert} has load {row[expert]}, not a finite number")
        if (row < 0.0).any():
            expert = int(np.flatnonzero(row < 0.0)[0])
            raise PlacementError(f"{name}: layer {layer}: expert {expert} has load {row[expert]}, below 0")
        if row.max() > _MOST_TOKENS:
            expert = int(row.argmax())
            raise PlacementError(f"{name}: layer {layer}: expert {expert} has load {row[expert]}, above {_MOST_TOKENS}")
        if not row.any():
            raise PlacementError(f"{name}: layer {layer}: all experts have load 0, so nothing can be said of it")


def check_room(num_experts: int, topology: Topology) -> None:
    """Raise PlacementError unless every expert finds a slot on a rank that is alive."""
    room = len(topology.live_slots)
    if room < num_experts:
        alive, total = len(topology.live_ranks), len(topology.ranks)
        raise PlacementError(
            f"{num_experts} experts need as many slots, {alive} of {total} ranks alive with "
            f"{topology.slots_per_rank} each have {room}"
        )


def check_placement(placement: Placement, topology: Topology) -> None:
    """Raise PlacementError unless every expert of every layer has a slot and every live slot an expert, no dead one."""
    if placement.slots.ndim != 2 or placement.slots.shape[1] != topology.num_slots:
        raise PlacementError(f"a plan of shape {placement.slots.shape}, expected (layers, {topology.num_slots} slots)")
    if placement.slots_per_rank != topology.slots_per_rank:
        raise PlacementError(f"a plan for {placement.slots_per_rank} slots a rank, not {topology.slots_per_rank}")
    live = np.zeros(topology.num_slots, dtype=bool)
    live[topology.live_slots] = True
    for layer, row in enumerate(placement.slots):
        if (row[live] < 0).any() or (row >= placement.num_experts).any():
            raise PlacementError(
                f"layer {layer}: every slot of a live rank holds one of {placement.num_experts} experts"
            )
        if (row[~live] != EMPTY).any():
            raise PlacementError(f"layer {layer}: a dead rank holds nothing")
        missing = np.setdiff1d(np.arange(placement.num_experts), row[live])
        if len(missing):
            raise PlacementError(f"layer {layer}: expert {int(missing[0])} has no slot")
    if placement.shares is not None:
        _check_shares(placement, placement.shares)


def scenario_tokens(scenarios: Sequence[Scenario]) -> NDArray[np.float64]:
    """(scenarios, layers, experts), each layer of each scenario scaled to a sum of 1: a step's tokens go somewhere."""
    if not scenarios:
        raise PlacementError("no load to plan for")
    shape = scenarios[0].tokens.shape
    for scenario in scenarios:
        check_tokens(scenario.tokens, scenario.name, shape=(shape[0], shape[1]))
    stacked = np.stack([scenario.tokens for scenario in scenarios])
    scaled: NDArray[np.float64] = stacked / stacked.sum(axis=2, keepdims=True)
    return scaled


def _check_shares(placement: Placement, shares: Shares) -> None:
    if shares.shape != placement.slots.shape or not np.isfinite(shares).all() or (shares < 0.0).any():
        raise PlacementError(f"shares of shape {shares.shape}, expected {placement.slots.shape}, none below 0")
    sums = sum_by_expert(placement.slots, shares, placement.num_experts)
    off = np.argwhere(np.abs(sums - 1.0) > 1e-6)
    if len(off):
        raise PlacementError(f"layer {int(off[0][0])}: the shares of expert {int(off[0][1])} do not add up to 1")
