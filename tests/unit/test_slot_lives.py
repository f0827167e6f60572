"""kvstore/slot_lives.py by example. Numbers: its invariants."""

import pytest

from kvstore.slot_lives import FREE, LOST, OPEN, RETIRED, TRUNCATED, SlotLives


def make_lives(num_slots: int) -> SlotLives:
    lives = SlotLives()
    assert [lives.open() for _ in range(num_slots)] == list(range(num_slots))
    return lives


def sweep(lives: SlotLives) -> None:
    lives.begin_pass()
    lives.end_pass()


def test_a_slot_leads_its_life() -> None:
    lives = make_lives(1)
    assert lives.state(0) == OPEN
    lives.truncate(0)
    assert lives.state(0) == TRUNCATED
    lives.lose(0)
    assert lives.state(0) == LOST
    assert lives.num_live == 1
    lives.retire(0)
    assert (lives.states, lives.num_live) == ([RETIRED], 0)
    sweep(lives)
    assert lives.states == [FREE]


def test_invariant_1_a_lost_slot_that_was_swept_has_nothing_to_hide_until_it_is_retired() -> None:
    lives = make_lives(2)
    lives.lose(1)
    assert lives.hidden == 0b10
    sweep(lives)
    assert lives.hidden == 0
    assert lives.state(1) == LOST
    lives.retire(1)
    assert lives.hidden == 0b10


def test_invariant_2_a_slot_retired_during_a_pass_waits_for_the_next() -> None:
    lives = make_lives(2)
    lives.retire(0)
    lives.begin_pass()
    lives.retire(1)
    lives.end_pass()
    assert lives.hidden == 0b10
    assert lives.open() == 0
    assert lives.open() == 2
    sweep(lives)
    assert lives.open() == 1


def test_invariant_2_so_does_one_that_was_lost_before_the_pass_and_retired_during_it() -> None:
    lives = make_lives(1)
    lives.lose(0)
    lives.begin_pass()
    lives.retire(0)
    lives.end_pass()
    assert lives.open() == 1, "0 is still hidden"
    sweep(lives)
    assert lives.hidden == 0
    assert lives.open() == 0


def test_the_lowest_free_number_comes_first() -> None:
    lives = make_lives(4)
    for slot in (3, 1, 2):
        lives.retire(slot)
    sweep(lives)
    assert [lives.open() for _ in range(4)] == [1, 2, 3, 4]


def test_a_slot_that_is_not_open_has_no_state() -> None:
    lives = make_lives(1)
    lives.retire(0)
    with pytest.raises(AssertionError, match="slot 0 is not open"):
        lives.state(0)
    with pytest.raises(AssertionError, match="slot 0 is not open"):
        lives.retire(0)
