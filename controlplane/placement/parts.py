"""Shares of an expert's tokens as whole numbers, which is what engines can keep to: one table entry a part. Pure.

An engine picks one of an expert's entries by a hash of the token's place in the batch, so a slot that stands there k
times of n gets about k/n of them.
"""

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import EMPTY, Placement, Shares, Slots, sum_by_expert

PARTS = 16  # of an expert with replicas: shares are off by 3 % at most, and tables stay small


def parts_of(placement: Placement) -> NDArray[np.int64]:
    """(layers, slots) parts; an expert with one slot has one. Needs shares."""
    assert placement.shares is not None
    counts = placement.replica_counts
    layers = np.arange(placement.num_layers)[:, None]
    experts = np.maximum(placement.slots, 0)
    parts = np.where(counts[layers, experts] == 1, 1, np.rint(placement.shares * PARTS).astype(np.int64))
    parts[placement.slots == EMPTY] = 0
    sums = sum_by_expert(placement.slots, parts, placement.num_experts)
    for layer, expert in np.argwhere(sums == 0):  # many replicas of a little each
        parts[layer, placement.slots[layer] == expert] = 1
    return parts


def shares_of(slots: Slots, parts: NDArray[np.int64], num_experts: int) -> Shares:
    """What an engine with these parts divides tokens by; 0 for an empty slot. An expert that has slots has a part."""
    sums = sum_by_expert(slots, parts, num_experts)[np.arange(len(slots))[:, None], np.maximum(slots, 0)]
    return np.where(slots == EMPTY, 0.0, parts / np.maximum(sums, 1))
