"""Predicted against reported cached tokens. Numbers in test names are invariants of router/parity.py."""

from router.parity import MIN_ANSWERS, WINDOW, Parity


def observe(parity: Parity, times: int, predicted: int, reported: int) -> list[bool]:
    return [parity.observe("m", predicted, reported, 32) for _ in range(times)]


def test_right_predictions_are_trusted_also_within_a_block() -> None:
    parity = Parity()
    assert not any(observe(parity, 500, 128, 128) + observe(parity, 500, 128, 160))
    assert parity.is_trusted("m")
    assert parity.models()["m"].error == 0.0


def test_invariant_1_wrong_predictions_lose_trust_once_there_are_enough() -> None:
    parity = Parity()
    changes = observe(parity, MIN_ANSWERS, 1024, 0)
    assert changes == [False] * (MIN_ANSWERS - 1) + [True]
    assert not parity.is_trusted("m")
    assert parity.is_trusted("another")


def test_invariant_1_a_blind_index_is_a_drift_too() -> None:
    parity = Parity()
    observe(parity, MIN_ANSWERS, 0, 1024)
    assert not parity.is_trusted("m")


def test_invariant_2_trust_comes_back_with_right_predictions() -> None:
    parity = Parity()
    observe(parity, MIN_ANSWERS, 1024, 0)
    assert observe(parity, WINDOW * 2, 1024, 1024).count(True) == 1
    assert parity.is_trusted("m")


def test_answers_without_any_cached_block_say_nothing() -> None:
    parity = Parity()
    observe(parity, 500, 0, 16)
    assert parity.models() == {}


def test_a_few_wrong_ones_among_many_do_no_harm() -> None:
    parity = Parity()
    for at in range(1000):
        parity.observe("m", 1024, 0 if at % 5 == 0 else 1024, 32)
    assert parity.is_trusted("m")
