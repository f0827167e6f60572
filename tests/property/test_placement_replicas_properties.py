"""Replica counts against every count vector there is, and against the threshold that characterises the optimum."""

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controlplane.placement.replicas import envelope, replica_counts, tokens_a_slot
from tests.placement_cases import loads


def vectors(num_experts: int, num_slots: int, most: int) -> list[tuple[int, ...]]:
    """All counts of at least one and at most `most` each, in sum the slots."""
    return [one for one in product(range(1, most + 1), repeat=num_experts) if sum(one) == num_slots]


@given(st.data(), st.integers(1, 4), st.integers(0, 4), st.integers(1, 5))
def test_no_counts_have_fewer_tokens_a_slot(data: st.DataObject, num_experts: int, more: int, most: int) -> None:
    num_slots = min(num_experts + more, num_experts * most)
    tokens = data.draw(loads(2, num_experts))
    counts = replica_counts(tokens, num_slots, most=most)
    assert (counts.sum(axis=1) == num_slots).all()
    assert ((counts >= 1) & (counts <= most)).all()
    for row, found in zip(tokens, tokens_a_slot(tokens, counts), strict=True):
        best = min((row / np.array(one)).max() for one in vectors(num_experts, num_slots, most))
        assert found == best


@given(st.data(), st.integers(1, 40), st.integers(0, 60))
def test_no_lower_threshold_can_be_kept(data: st.DataObject, num_experts: int, more: int) -> None:
    """Below tau every expert needs floor(w / tau) + 1 slots; if those are more than there are, tau is the optimum."""
    tokens = data.draw(loads(1, num_experts, most=2000))
    counts = replica_counts(tokens, num_experts + more)
    whole = [int(load) for load in tokens[0]]
    tau = max(Fraction(load, int(count)) for load, count in zip(whole, counts[0], strict=True))
    assert sum(floor(load / tau) + 1 for load in whole) > num_experts + more


@given(st.data(), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3))
def test_counts_for_the_envelope_are_best_in_the_worst_load(
    data: st.DataObject, num_experts: int, more: int, num_loads: int
) -> None:
    several = np.stack([data.draw(loads(1, num_experts)) for _ in range(num_loads)])
    counts = replica_counts(envelope(several), num_experts + more)
    found = max(tokens_a_slot(load, counts)[0] for load in several)
    every = vectors(num_experts, num_experts + more, more + 1)
    assert found == min(max((load[0] / np.array(one)).max() for load in several) for one in every)
