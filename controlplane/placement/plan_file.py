"""Plans in files and on the wire: JSON, `version` first. Pure.

    {"version": 1, "experts": 256, "ranks": 32, "slots_per_rank": 9, "slots": [[layer 0's experts by slot], ...],
     "shares": [[...], ...] or null, "seconds": {...}, "balancedness": {...}, ...}

Only what is named here up to `shares` is read back; the rest is for people and other programs. -1: a dead rank's slot.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from controlplane.placement.objective import Prices, dispatch_share
from controlplane.placement.planner import Plan
from controlplane.placement.types import EMPTY, Placement, PlacementError, Scenario, Topology, check_placement

PLAN_VERSION = 1


class _Wire(msgspec.Struct):
    version: int
    experts: int
    ranks: int
    slots_per_rank: int
    slots: list[list[int]]
    shares: list[list[float]] | None = None


def describe_plan(plan: Plan, topology: Topology, prices: Prices, scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """The plan, and what is expected of it under these loads, as plain values."""
    placement, terms = plan.placement, plan.terms
    redundant = len(topology.live_slots) - placement.num_experts
    return {
        "version": PLAN_VERSION,
        "experts": placement.num_experts,
        "ranks": len(topology.ranks),
        "slots_per_rank": topology.slots_per_rank,
        "slots": placement.slots.tolist(),
        "shares": None if placement.shares is None else np.round(placement.shares, 6).tolist(),
        "nodes": len(np.unique(topology.nodes)),
        "layers": placement.num_layers,
        "seconds": {
            "total": plan.total_s,
            "straggler": float(terms.straggler_s.sum()),
            "dispatch": float(terms.dispatch_s.sum()),
            "moving": float(terms.moving_s.sum()),
            "bound": plan.bound_s,
            "kept": plan.kept_s,
        },
        "balancedness": {scenario.name: _evenness(plan.balancedness[scenario.name]) for scenario in scenarios},
        "cross_node": {
            scenario.name: float(dispatch_share(placement, topology, scenario.tokens).mean()) for scenario in scenarios
        },
        "moved_slots": plan.moved_slots,
        "needed_slots": plan.needed_slots,
        "moved_bytes": plan.moved_bytes,
        "redundant_slots": redundant,
        "redundant_bytes": float(redundant * placement.num_layers * prices.expert_bytes),
        "reasons": list(plan.reasons),
    }


def _evenness(values: NDArray[np.float64]) -> dict[str, float | int]:
    return {
        "mean": float(values.mean()),
        "p5": float(np.quantile(values, 0.05)),
        "worst": float(values.min()),
        "worst_layer": int(values.argmin()),
    }


def decode_plan(raw: bytes, name: str) -> Placement:
    """The placement in a plan; raises PlacementError that names the file and the rule."""
    try:
        wire = msgspec.json.decode(raw, type=_Wire)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlacementError(f"{name}: not a plan: {error}") from None
    if wire.version != PLAN_VERSION:
        raise PlacementError(f"{name}: a plan of version {wire.version}; this Headrace reads {PLAN_VERSION}")
    placement = Placement(
        _table(wire.slots, np.int64, f"{name}: slots"),
        wire.experts,
        wire.slots_per_rank,
        None if wire.shares is None else _table(wire.shares, np.float64, f"{name}: shares"),
    )
    try:
        topology = Topology.even(1, wire.ranks, wire.slots_per_rank)
        if placement.slots.shape[1] == topology.num_slots:
            firsts = placement.slots[:, :: topology.slots_per_rank]
            topology = topology.with_dead((firsts != EMPTY).any(axis=0).tolist())
        check_placement(placement, topology)
    except PlacementError as error:
        raise PlacementError(f"{name}: {error}") from None
    return placement


def _table(rows: list[Any], dtype: Any, name: str) -> Any:
    if not rows or len({len(row) for row in rows}) != 1:
        raise PlacementError(f"{name}: rows of {sorted({len(row) for row in rows})} entries, expected one length")
    return np.array(rows, dtype=dtype)
