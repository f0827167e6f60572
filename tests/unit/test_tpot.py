"""The TPOTs promised on a worker, and what a step yields there."""

import math

import pytest

from router.fleet.tpot import TpotLoad, tokens_per_step

NEVER = math.inf


def load(*tpots_s: float) -> TpotLoad:
    held = TpotLoad()
    for tpot_s in tpots_s:
        held.add(tpot_s)
    return held


def test_an_idle_worker_has_promised_nothing() -> None:
    assert (TpotLoad().count, TpotLoad().min_s) == (0, NEVER)


def test_sequences_without_a_promise_are_counted_and_promise_nothing() -> None:
    held = load(NEVER, 0.05, NEVER)
    assert (held.count, held.min_s) == (3, 0.05)
    held.remove(0.05)
    assert (held.count, held.min_s) == (2, NEVER)


def test_equal_promises_are_held_as_often_as_they_were_made() -> None:
    held = load(0.03, 0.03, 0.1)
    held.remove(0.03)
    assert held.min_s == 0.03
    held.remove(0.03)
    assert held.min_s == 0.1


@pytest.mark.parametrize("tpot_s", [0.05, 0.1])
def test_what_was_not_promised_cannot_be_taken_back(tpot_s: float) -> None:
    held = load(0.1)
    held.remove(0.1)
    with pytest.raises(AssertionError, match="invariant 2"):
        held.remove(tpot_s)


@pytest.mark.parametrize("tpot_s", [0.0, -1.0, math.nan])
def test_a_promise_takes_time(tpot_s: float) -> None:
    with pytest.raises(AssertionError):
        TpotLoad().add(tpot_s)


@pytest.mark.parametrize(
    ("drafts", "draft_tokens", "accepted_tokens", "expected"),
    [
        (1_600, 6_400, 1_500, 1.9375),
        (10, 30, 30, 4.0),
        (10, 30, 31, 4.0),  # counters read at different instants
        (10, 30, 0, 1.0),
        (10, 30, -1, 1.0),
        (0, 0, 0, 1.0),
    ],
)
def test_a_step_yields_one_token_and_what_is_accepted_of_the_draft(
    drafts: int, draft_tokens: int, accepted_tokens: int, expected: float
) -> None:
    assert tokens_per_step(drafts, draft_tokens, accepted_tokens) == expected
