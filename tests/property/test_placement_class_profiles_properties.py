"""Profiles of classes against windows kept one by one. Numbers: invariants of class_profiles.py."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from controlplane.placement.class_profiles import ClassProfiles, Profiles, on_simplex
from controlplane.placement.types import PlacementError, Tokens
from tests.placement_cases import domains, loads

Floats = NDArray[np.float64]

HALF_LIFE_S = 60.0
NAMES = ("a", "b", "c")
TRUE = np.stack([load / load.sum(axis=1, keepdims=True) for load in domains().values()])
TRUE_NAMES = tuple(domains())


@dataclass(frozen=True)
class Window:
    tokens: Tokens
    classes: dict[str, float]
    ended_at_s: float


@st.composite
def windows(draw: st.DrawFn) -> list[Window]:
    """Of one model, in any order, every one with some class."""
    num_layers, num_experts = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    counts = st.floats(0.0, 100.0, allow_subnormal=False).map(lambda count: count if count > 0.01 else 0.0)
    classes = st.dictionaries(st.sampled_from(NAMES), counts, min_size=1).filter(lambda found: any(found.values()))
    one = st.builds(Window, loads(num_layers, num_experts), classes, st.floats(0.0, 300.0))
    return draw(st.lists(one, min_size=1, max_size=8))


def learned(kept: list[Window], prior: float = 1.0) -> Profiles:
    profiles = ClassProfiles(HALF_LIFE_S, prior_tokens_per_expert=prior)
    for window in kept:
        assert profiles.add(window.tokens, window.classes, window.ended_at_s)
    found = profiles.estimate()
    assert found is not None
    return found


def slope(found: Profiles, kept: list[Window], prior: float) -> Floats:
    """Of the sum over windows that is to be least, at the profiles found: (classes, layers, experts)."""
    now_s = max(window.ended_at_s for window in kept)
    total = prior * found.shares.shape[2] * (found.shares - found.common)
    for window in kept:
        mix = np.array([window.classes.get(name, 0.0) for name in found.names])
        mix = mix / mix.sum()
        shares = window.tokens / window.tokens.sum(axis=1, keepdims=True)
        weight = 2.0 ** (-(now_s - window.ended_at_s) / HALF_LIFE_S) * window.tokens.sum(axis=1).mean()
        total = total + weight * mix[:, None, None] * (np.tensordot(mix, found.shares, 1) - shares)
    return np.asarray(total)


@given(windows(), st.sampled_from((0.5, 5.0)))
def test_profiles_are_the_least_squares_of_all_windows(kept: list[Window], prior: float) -> None:
    """Invariants 1 and 2: no move of share from one expert to another makes the sum less, which is enough."""
    found = learned(kept, prior)
    assert (found.shares >= 0.0).all()
    assert np.allclose(found.shares.sum(axis=2), 1.0)
    assert ((found.confidence >= 0.0) & (found.confidence <= 1.0)).all()
    assert np.isclose(found.parts.sum(), 1.0)
    slopes = slope(found, kept, prior)
    least = slopes.min(axis=2, keepdims=True)
    scale = 1.0 + float(np.abs(slopes).max()) + sum(float(window.tokens.sum()) for window in kept)
    # Where an expert has a share, moving it to the one with the least slope gains nothing.
    assert float((found.shares * (slopes - least)).max()) <= 1e-5 * scale


@given(windows(), st.randoms())
def test_order_does_not_matter(kept: list[Window], random: Random) -> None:
    """Invariant 2."""
    shuffled = list(kept)
    random.shuffle(shuffled)
    one, other = learned(kept), learned(shuffled)
    places = [other.names.index(name) for name in one.names]
    assert np.allclose(one.shares, other.shares[places], atol=1e-6)
    assert np.allclose(one.confidence, other.confidence[places], atol=1e-6)


@given(st.integers(0, 1000), st.integers(2, 4))
def test_profiles_come_back_where_the_mix_tells_them_apart(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    profiles = ClassProfiles(HALF_LIFE_S)
    for number in range(12):
        mix = rng.dirichlet([0.5] * num_classes) if number >= num_classes else np.eye(num_classes)[number]
        tokens = 1e8 * np.tensordot(mix, TRUE[:num_classes], 1)
        profiles.add(tokens, dict(zip(TRUE_NAMES, 1e6 * mix, strict=False)), 1.0 * number)
    found = profiles.estimate()
    assert found is not None
    places = [found.names.index(name) for name in TRUE_NAMES[:num_classes]]
    assert np.abs(found.shares[places] - TRUE[:num_classes]).max() < 1e-4
    assert found.confidence.min() > 0.999


@given(st.lists(st.floats(0.5, 10.0), min_size=2, max_size=3), st.integers(1, 20))
def test_a_mix_that_never_changes_tells_nothing(parts: list[float], num_windows: int) -> None:
    tokens = domains()["code"]
    mix = dict(zip(NAMES, parts, strict=False))
    found = learned([Window(tokens, mix, 10.0 * number) for number in range(num_windows)])
    assert np.allclose(found.shares, found.common, atol=1e-9)
    assert found.confidence.max() < 1e-6


@given(windows(), st.dictionaries(st.sampled_from((*NAMES, "unknown")), st.floats(0.01, 100.0), min_size=1))
def test_a_window_divides_into_its_classes(kept: list[Window], classes: dict[str, float]) -> None:
    found, tokens = learned(kept), kept[0].tokens
    parts = found.split(tokens, classes)
    assert set(parts) == set(classes) & set(found.names)
    whole = sum(parts.values(), np.zeros_like(tokens))
    assert all((part >= 0.0).all() for part in parts.values())
    assert (whole <= tokens * (1.0 + 1e-9)).all()
    if set(classes) <= set(found.names):
        assert np.allclose(whole, tokens)


def test_what_a_class_asked_for_is_forgotten() -> None:
    profiles = ClassProfiles(HALF_LIFE_S)
    kinds = list(TRUE)
    for number in range(60):
        first = kinds[0] if number < 20 else kinds[2]
        at_s, mix = 30.0 * number, (0.9, 0.1) if number % 2 else (0.1, 0.9)
        tokens = 1e5 * (mix[0] * first + mix[1] * kinds[1])
        profiles.add(tokens, dict(zip(NAMES, mix, strict=False)), at_s)
        found = profiles.estimate()
        assert found is not None
        off = float(np.abs(found.shares[0] - first).sum(axis=1).mean()) / 2
        if number == 19 or number > 40:
            assert off < 0.02
        elif number == 20:
            assert off > 0.1, "one window is not enough to forget"


@given(st.lists(st.lists(st.floats(-5.0, 5.0), min_size=3, max_size=3), min_size=1, max_size=4))
def test_nearest_points_of_the_simplex(rows: list[list[float]]) -> None:
    """No corner lies nearer to the row than the point found does: the variational inequality of a projection."""
    given_rows = np.array(rows)
    found = on_simplex(given_rows)
    assert (found >= 0.0).all()
    assert np.allclose(found.sum(axis=1), 1.0)
    for corner in np.eye(3):
        assert (((given_rows - found) * (corner - found)).sum(axis=1) <= 1e-9).all()


def test_classes_beyond_the_bound_are_not_told_apart() -> None:
    """Invariant 3."""
    profiles = ClassProfiles(HALF_LIFE_S, num_classes=2)
    tokens = domains()["law"]
    assert profiles.add(tokens, {"a": 1.0, "b": 1.0, "c": 5.0}, 0.0)
    assert not profiles.add(tokens, {"c": 5.0}, 1.0)
    assert not profiles.add(tokens, {"a": 0.0}, 2.0)
    found = profiles.estimate()
    assert found is not None
    assert found.names == ("a", "b")


@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0])
def test_counts_that_cannot_be(count: float) -> None:
    profiles = ClassProfiles(HALF_LIFE_S)
    with pytest.raises(PlacementError, match="finite, none below 0"):
        profiles.add(domains()["law"], {"a": count}, 0.0)
    assert profiles.estimate() is None
    for half_life_s, prior in ((0.0, 1.0), (math.nan, 1.0), (1.0, 0.0)):
        with pytest.raises(PlacementError):
            ClassProfiles(half_life_s, prior_tokens_per_expert=prior)


def test_windows_of_another_model_are_refused() -> None:
    profiles = ClassProfiles(HALF_LIFE_S)
    profiles.add(domains()["law"], {"a": 1.0}, 0.0)
    with pytest.raises(PlacementError, match="the other loads have"):
        profiles.add(domains(num_experts=32)["law"], {"a": 1.0}, 1.0)
    with pytest.raises(PlacementError, match="ended at nan"):
        profiles.add(domains()["law"], {"a": 1.0}, math.nan)
