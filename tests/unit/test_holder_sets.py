"""kvstore/holder_sets.py by example. Numbers: its invariants."""

import sys
from random import Random

import pytest

from kvstore.holder_sets import HolderSets


def real_bytes(sets: HolderSets) -> int:
    """What CPython says its parts take."""
    tables = (sets.bits, sets._num_blocks, sets._number_of, sets._free)
    parts = [*sets.bits, *sets._num_blocks, *sets._number_of.values()]
    return sum(map(sys.getsizeof, tables)) + sum(sys.getsizeof(part) for part in parts if part > 256)


def test_invariant_1_equal_sets_have_one_number() -> None:
    sets = HolderSets()
    number = sets.add(0b101)
    sets.move(0, number, 3)
    assert sets.add(0b101) == number == sets.find(0b101)
    assert sets.add(0b100) != number
    assert sets.find(0b111) is None


def test_invariant_2_a_set_without_blocks_is_forgotten_and_its_number_used_again() -> None:
    sets = HolderSets()
    first = sets.add(1)
    sets.move(0, first, 2)
    second = sets.add(3)
    sets.move(first, second, 2)
    assert sets.find(1) is None
    assert sets.counts() == {second: 2}
    assert sets.add(8) == first


def test_invariant_2_a_new_set_that_gets_no_blocks_is_forgotten() -> None:
    sets = HolderSets()
    sets.move(0, sets.add(1), 0)
    assert len(sets) == 0


def test_a_set_is_renamed_for_all_its_blocks_at_once() -> None:
    sets = HolderSets()
    number = sets.add(0b111)
    sets.move(0, number, 5)
    sets.rename(number, 0b101)
    assert sets.find(0b101) == number
    assert sets.find(0b111) is None
    assert sets.counts() == {number: 5}
    other = sets.add(0b001)
    sets.move(0, other, 1)
    with pytest.raises(AssertionError, match="invariant 1"):
        sets.rename(number, 0b001)


@pytest.mark.parametrize("num_slots", [1, 60, 1000])
def test_invariant_3_bytes_used_is_no_less_than_what_is_spent(num_slots: int) -> None:
    sets, random, numbers = HolderSets(), Random(1), list[int]()
    for step in range(6000):
        bits = 1 << num_slots | random.getrandbits(32)
        before, cost_bytes = sets.bytes_used, sets.cost_bytes(bits)
        number = sets.add(bits)
        assert sets.bytes_used == before + cost_bytes
        sets.move(0, number, 1000)
        numbers.append(number)
        if step > 3000 and random.random() < 0.9:
            sets.move(numbers.pop(random.randrange(len(numbers))), 0, 1000)
        if step % 500 == 499:
            assert real_bytes(sets) <= sets.bytes_used
