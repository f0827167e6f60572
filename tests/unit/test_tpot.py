"""Whether one more sequence breaks anybody's promise."""

import math

import pytest

from router.tpot import (
    NO_SPECULATION,
    AcceptanceCurve,
    TpotLoad,
    admits_tpot,
    budget_feasible,
    chain_curve,
    least_budget,
)

NEVER = math.inf


def load(*tpots_s: float) -> TpotLoad:
    held = TpotLoad()
    for tpot_s in tpots_s:
        held.add(tpot_s)
    return held


def step_s(seqs: float) -> float:
    """20 ms, and 1 ms a sequence."""
    return 0.020 + 0.001 * seqs


def test_an_idle_worker_has_promised_nothing() -> None:
    idle = TpotLoad()
    assert (idle.count, idle.min_s, idle.sum_inverse) == (0, NEVER, 0.0)
    assert idle.virtual_seqs() == 1.0


def test_sequences_without_a_promise_are_counted_and_promise_nothing() -> None:
    held = load(NEVER, 0.05, NEVER)
    assert (held.count, held.min_s) == (3, 0.05)
    assert held.sum_inverse == pytest.approx(20.0)
    held.remove(0.05)
    assert (held.count, held.min_s, held.sum_inverse) == (2, NEVER, 0.0)


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


def test_an_absurd_promise_is_no_error() -> None:
    held = load(1e-320)
    assert held.sum_inverse == pytest.approx(1e9)
    held.remove(1e-320)
    assert held.sum_inverse == 0.0


def test_a_virtual_batch_counts_the_steps_that_each_needs() -> None:
    """SCORPIO: sum of tightest / tpot."""
    assert load(0.05, 0.10, 0.20).virtual_seqs() == pytest.approx(1 + 1 / 2 + 1 / 4)
    assert load(0.10, 0.20).virtual_seqs(0.05) == pytest.approx(1 / 2 + 1 / 4 + 1)
    assert load(NEVER, NEVER).virtual_seqs() == 3.0


@pytest.mark.parametrize(
    ("held", "new_s", "is_admitted"),
    [
        ((), 0.021, True),
        ((), 0.0209, False),  # not even alone
        ((0.030,) * 9, NEVER, True),  # step(10) is 30 ms
        ((0.030,) * 10, NEVER, False),  # also a sequence without a promise takes part in every step
        ((NEVER,) * 10, 0.030, False),
        ((NEVER,) * 500, NEVER, True),
        ((0.030, *(1.0,) * 9), 1.0, False),
    ],
)
def test_a_stock_engine_steps_everybody_every_time(held: tuple[float, ...], new_s: float, is_admitted: bool) -> None:
    assert admits_tpot(load(*held), new_s, step_s) is is_admitted


def test_an_engine_that_paces_takes_more_of_the_patient() -> None:
    held = load(0.030, *(0.3,) * 50)
    assert not admits_tpot(held, 0.3, step_s)
    assert admits_tpot(held, 0.3, step_s, is_paced=True)  # virtually 1 + 51 / 10 sequences
    assert not admits_tpot(load(*(0.030,) * 10), 0.3, step_s, is_paced=True)


def test_the_margin_leaves_room() -> None:
    held = load(*(0.040,) * 9)
    assert admits_tpot(held, 0.040, step_s)
    assert admits_tpot(held, 0.040, step_s, margin=1.3)
    assert not admits_tpot(held, 0.040, step_s, margin=1.4)


def test_nodes_that_a_draft_needs() -> None:
    curve = AcceptanceCurve((0.8, 0.5, 0.25))
    assert [curve.nodes_needed(tokens) for tokens in (0.0, 1.0, 1.5, 1.8, 2.3, 2.55)] == [1, 1, 2, 2, 3, 4]
    assert curve.nodes_needed(2.56) == NEVER
    assert curve.tokens_per_step == pytest.approx(2.55)


def test_without_speculation_a_step_is_worth_one_token() -> None:
    assert [NO_SPECULATION.nodes_needed(tokens) for tokens in (0.0, 1.0, 1.0001)] == [1, 1, NEVER]


@pytest.mark.parametrize("probabilities", [(0.5, 0.6), (1.1,), (-0.1,), (math.nan,)])
def test_a_curve_that_cannot_be_is_refused(probabilities: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"prob|likelier"):
        AcceptanceCurve(probabilities)


def test_a_chain_is_known_by_what_it_yields() -> None:
    """100 drafts of 4 tokens with alpha = 1/2 have 50 + 25 + 12.5 + 6.25 tokens accepted."""
    assert chain_curve(1_600, 6_400, 1_500).path_probabilities == pytest.approx((1 / 2, 1 / 4, 1 / 8, 1 / 16))
    assert chain_curve(10, 30, 30).path_probabilities == pytest.approx((1.0, 1.0, 1.0))
    assert chain_curve(10, 30, 0).tokens_per_step == pytest.approx(1.0)
    assert chain_curve(0, 0, 0) == NO_SPECULATION


def test_adaserves_published_steps_need_the_tokens_that_it_says() -> None:
    """Its artifact's profile of Llama-70B: 512 nodes take 125 ms, so the 36 ms class needs 3.47 tokens a step."""
    profile = {128: 0.055, 256: 0.085, 384: 0.105, 512: 0.125}

    def verify_s(nodes: int) -> float:
        return profile[next(size for size in profile if nodes <= size)]

    curve = AcceptanceCurve(tuple(0.8**k for k in range(1, 9)))
    assert curve.nodes_needed(verify_s(512) / 0.036) == 6  # five yield 3.36
    assert curve.nodes_needed(verify_s(128) / 0.036) == 2


def test_a_budget_grows_until_it_is_enough_or_never_is() -> None:
    curve = AcceptanceCurve((0.9, 0.8, 0.7))

    def verify_s(nodes: int) -> float:
        return 0.02 + 0.001 * nodes

    assert least_budget([], verify_s, curve, 100) == 0
    assert least_budget([0.05] * 4, verify_s, curve, 100) == 4
    assert least_budget([0.02] * 10, verify_s, curve, 100) == 30  # with 20 of them 40 ms need 2 tokens, and yield 1.9
    assert least_budget([0.02] * 10, verify_s, curve, 29) is None
    assert budget_feasible([0.05, NEVER], verify_s, curve, 2)
    assert not budget_feasible([0.05, NEVER], verify_s, curve, 1)
    assert not budget_feasible([0.005], verify_s, curve, 10_000)
