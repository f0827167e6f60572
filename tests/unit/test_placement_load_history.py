"""Loads of late, and whether they have changed."""

from dataclasses import replace

import numpy as np
import pytest

from controlplane.placement.load_history import LoadHistory, drift, drift_parts
from controlplane.placement.loads import ExpertLoadWindow
from controlplane.placement.types import PlacementError, Tokens
from tests.placement_cases import domains

WINDOW = ExpertLoadWindow("m", "e", 1, "chat", 10.0, 100.0, np.array([[8.0, 0.0]]))


def window(*tokens: float, at_s: float, name: str = "chat", engine: str = "e", epoch: int = 1) -> ExpertLoadWindow:
    return ExpertLoadWindow("m", engine, epoch, name, 10.0, at_s, np.array([tokens]))


def test_a_token_counts_half_after_the_half_life() -> None:
    history = LoadHistory(60.0)
    assert history.add(window(8.0, 0.0, at_s=100.0), 100.0)
    assert history.add(window(0.0, 6.0, at_s=160.0), 160.0)
    assert history.decayed("chat", 160.0).tolist() == [[4.0, 6.0]]
    assert history.decayed("chat", 220.0).tolist() == [[2.0, 3.0]]


def test_windows_may_come_in_any_order_from_several_engines() -> None:
    history = LoadHistory(60.0)
    assert history.add(window(0.0, 6.0, at_s=160.0), 161.0)
    assert history.add(window(8.0, 0.0, at_s=100.0, engine="f"), 161.0)
    assert history.decayed("chat", 160.0).tolist() == [[4.0, 6.0]]
    assert [one.ended_at_s for one in history.windows("chat")] == [100.0, 160.0]


def test_a_window_told_twice_counts_once() -> None:
    history = LoadHistory(60.0)
    assert history.add(window(8.0, 1.0, at_s=100.0), 100.0)
    assert not history.add(window(8.0, 1.0, at_s=100.0), 105.0)
    assert not history.add(window(8.0, 1.0, at_s=90.0), 105.0)
    assert history.add(window(8.0, 1.0, at_s=90.0, epoch=2), 105.0), "a new life, its clock set back"
    assert not history.add(window(8.0, 1.0, at_s=110.0, epoch=1), 115.0)


def test_a_clock_that_is_ahead_does_not_make_the_rest_old() -> None:
    history = LoadHistory(60.0)
    history.add(window(8.0, 0.0, at_s=1e9), 100.0)
    history.add(window(0.0, 8.0, at_s=100.0, engine="f"), 100.0)
    assert history.decayed("chat", 100.0).tolist() == [[8.0, 8.0]]


def test_the_class_silent_longest_gives_way() -> None:
    history = LoadHistory(60.0, num_classes=2)
    for at_s, name in ((100.0, "chat"), (110.0, "code")):
        assert history.add(window(1.0, 1.0, at_s=at_s, name=name), at_s)
    assert not history.add(window(1.0, 1.0, at_s=90.0, name="old"), 110.0)
    assert history.add(window(1.0, 1.0, at_s=120.0, name="batch"), 120.0)
    assert history.traffic_classes == ["batch", "code"]
    with pytest.raises(PlacementError, match=r"no load of class 'chat', there is \['batch', 'code'\]"):
        history.decayed("chat", 120.0)


def test_engines_remembered_are_so_many() -> None:
    history = LoadHistory(60.0, num_engines=2)
    for engine in ("e", "f", "e", "g"):
        at_s = 100.0 if engine != "e" else 101.0 + len(history.traffic_classes)
        history.add(window(1.0, 1.0, at_s=at_s, engine=engine), 200.0)
    assert not history.add(window(1.0, 1.0, at_s=100.0, engine="g"), 200.0)
    assert not history.add(window(1.0, 1.0, at_s=100.0, engine="e"), 200.0)


def test_a_time_is_compared_with_the_time_before_it() -> None:
    history = LoadHistory(60.0, num_windows=3)
    for number in range(5):
        history.add(window(float(number), 1.0, at_s=100.0 + number), 200.0)
    now = history.between("chat", 103.0, 104.0)
    before = history.between("chat", 0.0, 103.0)
    assert now is not None and before is not None
    assert (before.tolist(), now.tolist()) == ([[5.0, 2.0]], [[4.0, 1.0]])
    assert history.between("chat", 104.0, 200.0) is None


def test_scenarios_weigh_by_what_is_left_of_the_tokens() -> None:
    history = LoadHistory(60.0)
    history.add(window(30.0, 30.0, at_s=100.0), 100.0)
    history.add(window(5.0, 5.0, at_s=160.0, name="code"), 160.0)
    found = history.scenarios(160.0)
    assert [(one.name, one.weight, one.tokens.tolist()) for one in found] == [
        ("chat", 0.75, [[15.0, 15.0]]),
        ("code", 0.25, [[5.0, 5.0]]),
    ]
    assert history.scenarios(1e9) == []


def test_what_does_not_belong_together_is_an_error() -> None:
    history = LoadHistory(60.0)
    history.add(WINDOW, 100.0)
    with pytest.raises(PlacementError, match="shape"):
        history.add(window(1.0, 2.0, 3.0, at_s=110.0), 110.0)
    with pytest.raises(PlacementError, match="a load of 'n' among those of 'm'"):
        history.add(replace(WINDOW, model="n"), 110.0)
    history.forget("chat")
    assert history.add(replace(WINDOW, model="n", tokens=np.array([[1.0]])), 110.0)


def test_settings_are_checked() -> None:
    with pytest.raises(PlacementError, match="half_life_s is 0"):
        LoadHistory(0.0)
    with pytest.raises(PlacementError, match="at least 1"):
        LoadHistory(1.0, num_windows=0)


def test_drift_is_the_part_of_tokens_that_go_elsewhere() -> None:
    before = np.array([[6e9, 4e9], [5e9, 5e9]])
    now = np.array([[3e9, 7e9], [5e9, 5e9]])
    assert drift(before, now) == pytest.approx(0.15, abs=1e-4)
    assert drift(before, before) == 0.0


def sampled(shares: Tokens, num_tokens: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).multinomial(num_tokens, shares).astype(np.float64)


@pytest.mark.parametrize("num_tokens", [300, 3_000, 300_000])
def test_samples_of_one_load_have_not_drifted(num_tokens: int) -> None:
    """Of many pairs: the distance is the floor on average, and drift is next to nothing beside it."""
    shares = np.tile(np.random.default_rng(0).dirichlet(np.full(64, 0.5)), (16, 1))
    pairs = [(sampled(shares, num_tokens, 2 * at), sampled(shares, num_tokens, 2 * at + 1)) for at in range(40)]
    parts = np.array([drift_parts(before, now) for before, now in pairs])
    distance, floor = parts.mean(axis=0)
    assert distance <= floor * 1.02
    assert distance >= floor * 0.8
    assert max(drift(before, now) for before, now in pairs) < 0.15 * floor


def test_tokens_that_come_in_clumps_need_the_size_of_these() -> None:
    """Every draw sends 50 tokens to one expert: without `clump_tokens` that looks like drift."""
    shares = np.tile(np.random.default_rng(0).dirichlet(np.full(64, 0.5)), (16, 1))
    before, now = (50.0 * sampled(shares, 1_000, seed) for seed in (1, 2))
    assert drift(before, now) > 0.05
    assert drift(before, now, clump_tokens=50.0) < 0.01


def test_domains_are_apart_and_halves_of_one_are_not() -> None:
    loads = domains()
    apart = [drift(loads[one], loads[other]) for one in loads for other in loads if one < other]
    assert min(apart) > 0.1
    shares = loads["law"] / loads["law"].sum(axis=1, keepdims=True)
    assert drift(sampled(shares, 2_000, 1), sampled(shares, 2_000, 2)) < 0.02
