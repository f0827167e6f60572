"""kvstore/prefix_index.py by example. Numbers: its invariants; the proof is in tests/property."""

import pytest
from xxhash import xxh3_64_intdigest

from kvstore.prefix_index import PrefixIndex

AMPLE_BYTES = 1 << 20


def chain(name: str, num_blocks: int) -> list[int]:
    return [xxh3_64_intdigest(f"{name} {at}".encode()) for at in range(num_blocks)]


A, B = chain("a", 8), chain("b", 8)  # two prompts that have nothing in common
FORK = A[:1] + chain("fork", 7)


def bits(*slots: int) -> int:
    return sum(1 << slot for slot in slots)


def make_index(num_slots: int, budget_bytes: int = AMPLE_BYTES) -> PrefixIndex:
    index = PrefixIndex(budget_bytes, slots_per_bucket=8)
    for slot in range(num_slots):
        assert index.open_slot() == slot
    return index


def test_a_match_has_a_row_for_each_depth_that_some_slot_reaches() -> None:
    index = make_index(4)
    index.store(0, A)
    index.store(1, A[:3])
    index.store(2, A[:3])
    index.store(3, FORK)
    assert index.match(A) == ((1, bits(0, 1, 2, 3)), (3, bits(0, 1, 2)), (8, bits(0)))
    assert index.match(FORK) == ((1, bits(0, 1, 2, 3)), (8, bits(3)))
    assert index.match([*A[:3], *B]) == ((1, bits(0, 1, 2, 3)), (3, bits(0, 1, 2)))
    assert index.match(A[:2]) == ((1, bits(0, 1, 2, 3)), (2, bits(0, 1, 2)))
    index.validate()


def test_nobody_holds_an_empty_prompt_or_a_strange_one() -> None:
    index = make_index(1)
    index.store(0, A)
    assert index.match([]) == index.match(B) == ()


def test_a_prefix_of_what_is_held_is_held() -> None:
    index = make_index(1)
    index.store(0, A)
    for num_blocks in range(1, len(A) + 1):
        assert index.match(A[:num_blocks]) == ((num_blocks, bits(0)),)


def test_more_slots_than_any_machine_word_has_bits() -> None:
    index = make_index(300)
    for slot in range(300):
        index.store(slot, A[: 1 + slot % 2])
    assert index.match(A) == ((1, (1 << 300) - 1), (2, bits(*range(1, 300, 2))))


def test_storing_and_removing_twice_changes_nothing() -> None:
    index = make_index(2)
    assert index.store(0, [*A, *A]) == index.store(0, A) == 0
    assert index.held_by(0) == index.num_blocks == 8
    index.remove(1, A)
    index.remove(0, [A[7], A[7]])
    index.remove(0, [A[7]])
    assert index.held_by(0) == 7
    assert index.match(A) == ((7, bits(0)),)
    index.validate()


def test_invariant_1_a_block_that_nobody_holds_is_forgotten() -> None:
    index = make_index(2)
    index.store(0, A)
    index.store(1, A)
    index.remove(0, A[::-1])
    assert index.num_blocks == 8
    index.remove(1, A[::-1])
    assert index.num_blocks == index.num_holder_sets == 0


def test_invariant_2_a_retired_slot_is_gone_at_once_and_swept_in_steps() -> None:
    index = make_index(2)
    index.store(0, A)
    index.store(1, A[:4] + B)
    index.retire(0)
    assert index.match(A) == ((4, bits(1)),)
    assert index.num_blocks == 16
    num_steps = 0
    while index.needs_sweep:
        index.sweep(1)
        num_steps += 1
        assert index.match(A) == ((4, bits(1)),)
    assert num_steps > 1
    assert index.num_blocks == 12
    index.validate()


def test_invariant_2_slots_that_always_held_the_same_are_told_apart_when_one_is_gone() -> None:
    index = make_index(3)
    for slot in range(3):
        index.store(slot, A)
    index.retire(1)
    index.sweep(AMPLE_BYTES)
    assert index.match(A) == ((8, bits(0, 2)),)
    assert index.num_holder_sets == 1
    index.validate()


def test_invariant_3_a_number_is_opened_again_only_when_it_is_swept() -> None:
    index = make_index(2)
    index.store(0, A)
    index.retire(0)
    assert index.open_slot() == 2
    index.sweep(AMPLE_BYTES)
    assert index.open_slot() == 0
    assert index.match(A) == ()
    assert index.num_live_slots == 3


def test_invariant_3_a_slot_that_is_not_open_is_not_used() -> None:
    index = make_index(1)
    index.retire(0)
    for use in (index.retire, index.held_by, index.is_truncated):
        with pytest.raises(AssertionError, match="slot 0 is not open"):
            use(0)
    with pytest.raises(AssertionError, match="slot 0 is not open"):
        index.store(0, A)


def test_invariant_4_after_the_first_refusal_a_slot_takes_nothing_more() -> None:
    index, many = make_index(2, budget_bytes=4000), chain("many", 200)
    refused = index.store(0, many)
    held = 200 - refused
    assert 0 < held < 200
    assert index.is_truncated(0)
    assert not index.is_truncated(1)
    assert index.match(many) == ((held, bits(0)),)
    index.remove(0, many[held - 1 : held // 2 : -1])
    assert index.room_blocks > 0
    assert index.store(0, A) == 8, "its owner has to load it again"
    assert index.num_refused_blocks == refused + 8
    assert index.match(many) == ((held // 2 + 1, bits(0)),)
    index.retire(0)
    index.sweep(AMPLE_BYTES)
    fresh = index.open_slot()
    assert index.store(fresh, A) == 0
    index.validate()


def test_invariant_4_a_slot_is_lost_when_there_is_no_memory_even_to_remove() -> None:
    for budget_bytes in range(1500, 10_000, 16):
        index = make_index(8, budget_bytes)
        if not any(index.store(slot, A) for slot in range(8)):
            break  # the least that all blocks fit into
    for slot in range(7):  # each to another depth, so that each takes another set
        index.remove(slot, A[:slot:-1])
    lost = [slot for slot in range(8) if index.is_truncated(slot)]
    assert lost
    assert all(index.held_by(slot) == 0 for slot in lost)
    depths = {slot: len(A) if slot == 7 else slot + 1 for slot in range(8) if slot not in lost}
    expected = [(depth, bits(*(slot for slot in depths if depths[slot] >= depth))) for depth in sorted(depths.values())]
    assert index.match(A) == tuple(expected)
    index.sweep(AMPLE_BYTES)
    assert not index.needs_sweep
    assert index.match(A) == tuple(expected)
    assert not index.store(lost[0], []), "its owner may go on without knowing"
    index.remove(lost[0], A)
    index.retire(lost[0])
    index.sweep(AMPLE_BYTES)
    assert index.open_slot() == lost[0]
    index.validate()


def test_invariant_5_a_budget_that_holds_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="1000 bytes are too few"):
        PrefixIndex(1000)


def test_invariant_5_hashes_that_share_their_bits_are_refused_before_the_directory_eats_the_memory() -> None:
    index = make_index(1)
    alike = [number for number in range(1000)]
    refused = index.store(0, alike)
    assert refused
    assert index.bytes_used < AMPLE_BYTES // 10
    assert index.match(alike) == ((1000 - refused, bits(0)),)


def test_invariant_6_a_depth_that_nobody_announced_is_found_and_remembered() -> None:
    """Removals leave the spans of the blocks before them as they were: too long."""
    index, long = make_index(2), chain("long", 200)
    index.store(0, long)
    index.store(1, long)
    index.remove(1, long[:49:-1])
    for _ in range(2):
        assert index.match(long) == ((50, bits(0, 1)), (200, bits(0)))
    index.validate()
