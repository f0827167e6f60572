"""Every window comes back as it was, and whatever else a file holds is a PlacementError; histories against lists."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controlplane.placement.load_history import LoadHistory, drift, drift_parts
from controlplane.placement.loads import ExpertLoadWindow, decode, encode, parse_scenarios
from controlplane.placement.types import PlacementError, Tokens
from tests.placement_cases import loads

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
COUNTS = st.floats(0.0, 1e18)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("a", "version", "windows")), inner),
)


@st.composite
def windows(draw: st.DrawFn) -> ExpertLoadWindow:
    num_experts = draw(st.integers(1, 3))
    row = st.lists(COUNTS, min_size=num_experts, max_size=num_experts).filter(any)
    return ExpertLoadWindow(
        draw(NAMES),
        draw(NAMES),
        draw(st.integers(0, 2**62)),
        draw(NAMES),
        draw(st.floats(0.0, exclude_min=True, allow_infinity=False)),
        draw(st.floats(allow_nan=False, allow_infinity=False)),
        np.array(draw(st.lists(row, min_size=1, max_size=3))),
    )


@given(st.lists(windows(), min_size=1, max_size=3))
def test_windows_come_back_as_they_were(several: list[ExpertLoadWindow]) -> None:
    """Invariant 1."""
    found = decode(encode(several))
    assert all(one.is_same(other) for one, other in zip(found, several, strict=True))
    assert encode(found) == encode(several)


@given(st.binary(max_size=20) | JSON.map(lambda item: json.dumps(item).encode()))
def test_anything_else_is_an_error_of_ours(raw: bytes) -> None:
    try:
        found = parse_scenarios(raw, "f")
    except PlacementError as error:
        assert str(error).startswith("f: ")
    else:
        assert len({one.tokens.shape for one in found}) == 1


@given(st.data())
def test_a_window_with_anything_in_its_place_is_an_error_of_ours(data: st.DataObject) -> None:
    item = json.loads(encode([data.draw(windows())]))
    item["windows"][0][data.draw(st.sampled_from(sorted(item["windows"][0])))] = data.draw(JSON)
    try:
        decode(json.dumps(item).encode())
    except PlacementError:
        return


HALF_LIFE_S, NUM_WINDOWS, NUM_CLASSES = 10.0, 3, 2


class HistoryMachine(RuleBasedStateMachine):
    """LoadHistory against lists of the windows that were added."""

    def __init__(self) -> None:
        super().__init__()
        self.history = LoadHistory(HALF_LIFE_S, num_windows=NUM_WINDOWS, num_classes=NUM_CLASSES)
        self.twin: dict[str, list[ExpertLoadWindow]] = {}
        self.last: dict[tuple[str, str], tuple[int, float]] = {}
        self.now_s = 0.0

    @rule(passed_s=st.integers(0, 30))
    def wait(self, passed_s: int) -> None:
        self.now_s += passed_s

    @rule(
        name=st.sampled_from("abc"),
        engine=st.sampled_from("xy"),
        epoch=st.integers(0, 2),
        age_s=st.integers(-5, 40),
        tokens=st.lists(st.integers(0, 5), min_size=2, max_size=2).filter(any),
    )
    def add(self, name: str, engine: str, epoch: int, age_s: int, tokens: list[int]) -> None:
        window = ExpertLoadWindow(
            "m", engine, epoch, name, 1.0, self.now_s - age_s, np.array([tokens], dtype=np.float64)
        )
        is_added = self.history.add(window, self.now_s)
        is_late = (epoch, window.ended_at_s) <= self.last.get((name, engine), (-1, 0.0))
        ended = replace(window, ended_at_s=min(window.ended_at_s, self.now_s))
        is_room = name in self.twin or self.make_room(ended)
        assert is_added == (is_room and not is_late)
        if is_added:
            self.twin.setdefault(name, []).append(ended)
            self.last[name, engine] = epoch, window.ended_at_s

    def make_room(self, window: ExpertLoadWindow) -> bool:
        """Invariant 4."""
        if len(self.twin) < NUM_CLASSES:
            return True
        ends = {name: max(one.ended_at_s for one in added) for name, added in self.twin.items()}
        oldest = min(ends, key=lambda name: (ends[name], name))
        if ends[oldest] > window.ended_at_s:
            return False
        self.drop(oldest)
        return True

    def drop(self, name: str) -> None:
        self.twin.pop(name, None)
        self.last = {key: number for key, number in self.last.items() if key[0] != name}

    @rule(name=st.sampled_from("abc"))
    def forget(self, name: str) -> None:
        self.history.forget(name)
        self.drop(name)

    @invariant()
    def counts_are_the_decayed_sum(self) -> None:
        """Invariants 1 and 4."""
        assert self.history.traffic_classes == sorted(self.twin)
        for name, added in self.twin.items():
            weights = [2.0 ** (-(self.now_s - one.ended_at_s) / HALF_LIFE_S) for one in added]
            twin = sum(one.tokens * weight for one, weight in zip(added, weights, strict=True))
            assert self.history.decayed(name, self.now_s) == pytest.approx(twin, rel=1e-9)

    @invariant()
    def the_latest_windows_are_kept(self) -> None:
        """Invariants 2, 3 and 6. Of windows that end alike any may be kept."""
        for name, added in self.twin.items():
            ends = [one.ended_at_s for one in self.history.windows(name)]
            assert ends == sorted(one.ended_at_s for one in added)[-NUM_WINDOWS:]
            assert max(ends) <= self.now_s

    @invariant()
    def scenarios_weigh_by_tokens(self) -> None:
        found = self.history.scenarios(self.now_s)
        assert math.isclose(sum(one.weight for one in found), 1.0 if self.twin else 0.0, rel_tol=1e-9)


TestLoadHistory = HistoryMachine.TestCase


@given(st.data(), st.integers(1, 3), st.integers(2, 6))
def test_drift_is_a_part_of_the_tokens(data: st.DataObject, num_layers: int, num_experts: int) -> None:
    before, now = (data.draw(loads(num_layers, num_experts, most=10**6)) for _ in range(2))
    distance, floor = drift_parts(before, now)
    assert 0.0 <= distance <= 1.0 + 1e-12
    assert floor >= 0.0
    assert drift(before, now) == pytest.approx(drift(now, before))
    assert drift(before, before * 3.0) == 0.0
    assert drift(before, now) <= distance


def true_distance(before: Tokens, now: Tokens) -> float:
    return float(np.abs(before - now).sum(axis=1).mean()) / 2.0


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from((200, 2_000, 20_000)),
    st.sampled_from((200, 5_000, 100_000)),
    st.sampled_from((0.3, 1.0, 10.0)),
    st.floats(0.0, 1.0),
)
def test_drift_of_samples_is_between_the_true_distance_and_the_floor_below_it(
    seed: int, num_before: int, num_now: int, concentration: float, mixed: float
) -> None:
    """Shares move from one Dirichlet draw towards another; counts are multinomial."""
    random = np.random.default_rng(seed)
    was, other = random.dirichlet(np.full(64, concentration), (2, 8))
    now_is = (1.0 - mixed) * was + mixed * other
    before = random.multinomial(num_before, was).astype(np.float64)
    now = random.multinomial(num_now, now_is).astype(np.float64)
    distance = true_distance(was, now_is)
    _, floor = drift_parts(before, now)
    found = drift(before, now)
    # Eight layers of 64 experts: the mean over them is within this of what it is on average.
    spread = 0.02 + 0.2 * floor
    assert distance - floor - spread <= found <= distance + spread
