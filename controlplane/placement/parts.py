"""Shares of an expert's tokens as whole numbers, which is what engines can keep to: one table entry a part. Pure.

An engine goes through an expert's entries token by token, so a slot that stands there k times of n gets k/n of them.
"""

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import EMPTY, Placement, Shares, Slots

PARTS = 16  # of an expert with replicas: shares are off by 3 % at most, and tables stay small


def parts_of(placement: Placement) -> NDArray[np.int64]:
    """(layers, slots) parts; an expert with one slot has one. Needs shares."""
    assert placement.shares is not None
    counts = placement.replica_counts
    layers = np.arange(placement.num_layers)[:, None]
    experts = np.maximum(placement.slots, 0)
    parts = np.where(counts[layers, experts] == 1, 1, np.rint(placement.shares * PARTS).astype(np.int64))
    parts[placement.slots == EMPTY] = 0
    sums = np.zeros_like(counts)
    np.add.at(sums, (layers, experts), parts)
    for layer, expert in np.argwhere(sums == 0):  # many replicas of a little each
        parts[layer, placement.slots[layer] == expert] = 1
    return parts


def shares_of(slots: Slots, parts: NDArray[np.int64], num_experts: int) -> Shares:
    """What an engine with these parts divides tokens by. Every slot holds an expert, and every expert has a part."""
    sums = np.zeros((len(slots), num_experts), dtype=np.int64)
    layers = np.arange(len(slots))[:, None]
    np.add.at(sums, (layers, slots), parts)
    found: Shares = parts / sums[layers, slots]
    return found
