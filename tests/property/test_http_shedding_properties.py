"""Invariants of router/http/shedding.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.shedding import MIN_ADMITTED, MIN_TURNS, LoadShedder

TARGET_S, WINDOW_S = 0.1, 0.5
turns = st.lists(st.tuples(st.floats(0.001, 0.3), st.floats(0.0, 2.0)), max_size=60)  # pause before, length
short_turns = st.floats(0.0, TARGET_S)


def make() -> LoadShedder:
    return LoadShedder(target_s=TARGET_S, window_s=WINDOW_S)


def overload(shedder: LoadShedder, *, windows: int, turn_s: float = 0.2, now_s: float = 0.0) -> float:
    for _ in range(windows * 10):
        shedder.on_turn(now_s, turn_s)
        now_s += WINDOW_S / 10 + 1e-6
    return now_s


@given(told=turns)
def test_nothing_is_shed_before_a_whole_window_without_a_short_turn(told: list[tuple[float, float]]) -> None:
    """Invariant 1, against the definition."""
    shedder, now_s = make(), 0.0
    since_short_s, num_long = now_s, 0
    for pause_s, turn_s in told:
        now_s += pause_s
        shedder.on_turn(now_s, turn_s)
        if turn_s <= TARGET_S:
            since_short_s, num_long = now_s, 0
        else:
            num_long += 1
        if shedder.admitted < 1.0:
            assert now_s - since_short_s >= WINDOW_S - 0.3 or num_long >= MIN_TURNS
            return
    assert all(shedder.admits() for _ in range(100))


@given(told=turns)
def test_admitted_stays_a_share(told: list[tuple[float, float]]) -> None:
    """Invariant 3."""
    shedder, now_s = make(), 0.0
    for pause_s, turn_s in told:
        now_s += pause_s
        shedder.on_turn(now_s, turn_s)
        assert MIN_ADMITTED <= shedder.admitted <= 1.0


@given(
    windows=st.integers(1, 12), turn_s=st.floats(0.11, 3.0), num_requests=st.integers(1, 400), start=st.integers(0, 50)
)
def test_the_share_is_kept_over_any_run_of_requests(windows: int, turn_s: float, num_requests: int, start: int) -> None:
    """Invariant 2."""
    shedder = make()
    overload(shedder, windows=windows + 1, turn_s=turn_s)
    assert shedder.admitted < 1.0
    for _ in range(start):
        shedder.admits()
    let_in = sum(shedder.admits() for _ in range(num_requests))
    assert abs(let_in - num_requests * shedder.admitted) <= 1.0 + 1e-6


@given(spike_s=st.floats(0.2, 30.0), short_s=short_turns)
def test_one_long_turn_sheds_nothing(spike_s: float, short_s: float) -> None:
    shedder = make()
    now_s = overload(shedder, windows=3, turn_s=short_s)
    now_s += spike_s
    shedder.on_turn(now_s, spike_s)
    overload(shedder, windows=2, turn_s=short_s, now_s=now_s)
    assert shedder.admitted == 1.0


def test_overload_that_goes_on_sheds_ever_more_and_its_end_lets_all_in() -> None:
    shedder, now_s, shares = make(), 0.0, []
    for _ in range(12):
        now_s = overload(shedder, windows=2, now_s=now_s)
        shares.append(shedder.admitted)
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(MIN_ADMITTED)
    overload(shedder, windows=30, turn_s=0.01, now_s=now_s)
    assert shedder.admitted == 1.0


def test_load_that_answers_to_shedding_settles_near_the_target() -> None:
    """Turns in proportion to what is admitted, as with clients that wait for answers."""
    shedder, now_s = make(), 0.0
    for _ in range(600):
        shedder.on_turn(now_s, 0.4 * shedder.admitted)
        now_s += WINDOW_S / 10 + 1e-6
    assert 0.15 <= shedder.admitted <= 0.4  # 0.25 makes a turn of exactly the target
