"""How many slots each expert gets."""

import numpy as np
import pytest

from controlplane.placement.replicas import envelope, replica_counts, replicate, tokens_a_slot
from controlplane.placement.types import PlacementError
from tests.placement_cases import skewed


def counts(tokens: list[float], num_slots: int, most: int | None = None) -> list[int]:
    found: list[int] = replica_counts(np.array([tokens]), num_slots, most=most)[0].tolist()
    return found


def test_the_expert_with_the_most_tokens_a_slot_gets_the_next() -> None:
    assert counts([60.0, 20.0, 10.0], 3) == [1, 1, 1]
    assert counts([60.0, 20.0, 10.0], 5) == [3, 1, 1]
    assert counts([60.0, 20.0, 10.0], 7) == [4, 2, 1]


def test_on_a_tie_the_lower_number_wins() -> None:
    assert counts([5.0, 5.0, 5.0], 5) == [2, 2, 1]


def test_no_expert_gets_more_slots_than_it_may() -> None:
    assert counts([100.0, 1.0, 0.0], 6, most=3) == [3, 2, 1]
    with pytest.raises(PlacementError, match="7 slots for 3 experts: more than 2 for each"):
        counts([100.0, 1.0, 0.0], 7, most=2)


def test_an_expert_without_tokens_has_one_slot() -> None:
    assert counts([0.0, 3.0], 4) == [1, 3]


def test_fewer_slots_than_experts_are_an_error() -> None:
    with pytest.raises(PlacementError, match="3 experts need as many slots, there are 2"):
        counts([1.0, 1.0, 1.0], 2)


def test_the_slots_are_all_experts_once_and_then_as_they_were_given() -> None:
    given, expert_of = replicate(np.array([[60.0, 50.0, 10.0]]), 6)
    assert given.tolist() == [[3, 2, 1]]
    assert expert_of.tolist() == [[0, 1, 2, 0, 1, 0]]


def test_the_envelope_is_what_the_worst_load_brings() -> None:
    loads = np.array([[[9.0, 1.0, 1.0]], [[1.0, 8.0, 1.0]]])
    assert envelope(loads).tolist() == [[9.0, 8.0, 1.0]]
    shared = replica_counts(envelope(loads), 5)
    assert max(tokens_a_slot(load, shared)[0] for load in loads) == 4.5


def test_all_layers_of_a_large_model_at_once() -> None:
    tokens = skewed(1)
    found = replica_counts(tokens, 320)
    assert (found.sum(axis=1) == 320).all()
    alone = np.concatenate([replica_counts(row[None], 320) for row in tokens])
    assert np.array_equal(found, alone)
