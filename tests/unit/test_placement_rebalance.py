"""When experts move, and what it brings over windows of load."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from controlplane.placement.cost import Aim
from controlplane.placement.eplb import linear
from controlplane.placement.forecast import Forecast
from controlplane.placement.objective import Prices, balancedness
from controlplane.placement.planner import plan
from controlplane.placement.rebalance import Rebalancer
from controlplane.placement.simulate import Eplb, Keep, Ours, replay
from controlplane.placement.types import Placement, PlacementError, Scenario, Tokens, Topology
from tests.placement_cases import domains

EIGHT = Topology.even(1, 8, 9)
OLMOE_PRICES = Prices(expert_bytes=12.6e6, token_bytes=0.0)
WINDOW_S = 60.0


def drifting(names: list[str], num_windows: int = 20, tokens: int = 50_000, seed: int = 0) -> list[Tokens]:
    """Counts while one domain turns into the next."""
    loads, generator = domains(), np.random.default_rng(seed)
    found = []
    for place in np.linspace(0.0, len(names) - 1.0, num_windows):
        first = min(int(place), len(names) - 2)
        blend = (1.0 - place + first) * loads[names[first]] + (place - first) * loads[names[first + 1]]
        counts = [generator.multinomial(tokens, row / row.sum()) for row in blend]
        found.append(np.array(counts, dtype=np.float64))
    return found


def planned_for(tokens: Tokens) -> Placement:
    return plan([Scenario("first", tokens)], EIGHT, OLMOE_PRICES).placement


def test_drift_is_followed_with_a_quarter_of_the_bytes() -> None:
    windows = drifting(["chat", "code", "law", "prose"])
    start = linear(3, 64, EIGHT)
    ours = replay(
        windows, Ours(Rebalancer(EIGHT, OLMOE_PRICES, start, max_moves=60), WINDOW_S), EIGHT, OLMOE_PRICES, start
    )
    eplb = replay(windows, Eplb(EIGHT), EIGHT, OLMOE_PRICES, start)
    kept = replay(windows, Keep(), EIGHT, OLMOE_PRICES, start)
    assert ours.balancedness >= 0.93 and ours.balancedness > eplb.balancedness > kept.balancedness
    assert ours.moved_bytes <= eplb.moved_bytes / 4
    assert (kept.moved_slots, kept.rebalances) == (0, 0)


def test_steady_load_moves_nothing_after_the_first_plans() -> None:
    windows = drifting(["law", "law"], num_windows=8)
    rebalancer = Rebalancer(EIGHT, Prices(expert_bytes=1e10, token_bytes=0.0), planned_for(windows[0]))
    decisions = [rebalancer.observe(tokens, WINDOW_S * number, WINDOW_S) for number, tokens in enumerate(windows)]
    assert not any(decision.is_move for decision in decisions)
    assert all(decision.reason.startswith("keep") for decision in decisions)


def test_moves_wait_until_waiting_has_cost_as_much() -> None:
    loads = domains()
    start = planned_for(loads["code"])
    # A slot takes 0.1 s to move, what it brings comes slowly: 10,000 tokens a second.
    prices = Prices(expert_bytes=16e9, token_bytes=0.0, tokens_per_s=1e4)
    rebalancer = Rebalancer(EIGHT, prices, start, Aim(horizon_s=6000.0))
    lost: list[float] = []
    for number in range(1, 400):
        decision = rebalancer.observe(loads["law"], WINDOW_S * number, WINDOW_S)
        moving_s = float(decision.plan.terms.moving_s.sum())
        if decision.is_move:
            break
        lost.append(decision.lost_s)
        assert decision.lost_s < moving_s
        assert np.array_equal(rebalancer.placement.slots, start.slots)
    assert decision.is_move and decision.lost_s >= moving_s and decision.gain_s > moving_s
    assert len(lost) > 2 and all(later > earlier for earlier, later in pairwise(lost))
    assert decision.lost_s - lost[-1] == pytest.approx(lost[-1] - lost[-2], rel=0.05)
    assert "saves" in decision.reason and "by waiting" in decision.reason
    assert np.array_equal(rebalancer.placement.slots, decision.plan.placement.slots)


def test_odd_window_does_not_start_dear_moves() -> None:
    loads = domains()
    prices = Prices(expert_bytes=16e9, token_bytes=0.0, tokens_per_s=1e4)
    rebalancer = Rebalancer(EIGHT, prices, planned_for(loads["code"]), Aim(horizon_s=6000.0))
    for number, name in enumerate(("code", "code", "prose", "code", "code", "code")):
        assert not rebalancer.observe(loads[name], WINDOW_S * number, WINDOW_S).is_move


def test_dead_rank_moves_at_once() -> None:
    load = domains()["law"]
    topology = Topology.even(1, 9, 9)
    start = plan([Scenario("law", load)], topology, OLMOE_PRICES).placement
    broken = topology.with_dead([rank != 0 for rank in range(9)])
    dear = Prices(expert_bytes=1e15, token_bytes=0.0)
    decision = Rebalancer(broken, dear, start).observe(load, 0.0, WINDOW_S)
    assert decision.is_move and decision.plan.needed_slots == decision.plan.moved_slots > 0
    assert "serve nothing" in decision.reason


def test_time_goes_forward() -> None:
    rebalancer = Rebalancer(EIGHT, OLMOE_PRICES, linear(3, 64, EIGHT))
    rebalancer.observe(domains()["law"], 60.0, WINDOW_S)
    for at_s, window_s in ((59.0, WINDOW_S), (120.0, 0.0), (120.0, float("nan"))):
        with pytest.raises(PlacementError, match="a window of"):
            rebalancer.observe(domains()["law"], at_s, window_s)


def test_forecast_follows_a_line_better_than_the_last_window() -> None:
    windows = drifting(["code", "prose"])
    forecast = Forecast()
    errors: list[tuple[float, float]] = []

    def error(guess: NDArray[np.float64], tokens: Tokens) -> float:
        return float(np.abs(guess - tokens / tokens.sum(axis=1, keepdims=True)).sum())

    assert forecast.next() is None
    for number, (seen, coming) in enumerate(pairwise(windows)):
        forecast.observe(seen)
        guess = forecast.next()
        assert guess is not None and np.allclose(guess.sum(axis=1), 1.0) and guess.min() >= 0.0
        if number > 1:
            errors.append((error(guess, coming), error(seen / seen.sum(axis=1, keepdims=True), coming)))
    assert np.mean([ours for ours, _ in errors]) < 0.85 * np.mean([last for _, last in errors])


def test_forecast_refuses_another_shape() -> None:
    forecast = Forecast()
    forecast.observe(np.ones((2, 4)))
    with pytest.raises(PlacementError, match="shape"):
        forecast.observe(np.ones((2, 5)))


def test_eplb_below_a_threshold_moves_only_then() -> None:
    windows = drifting(["chat", "code"])
    start = linear(3, 64, EIGHT)
    never, always = (replay(windows, Eplb(EIGHT, below), EIGHT, OLMOE_PRICES, start) for below in (0.0, 2.0))
    assert never.rebalances == 0 and always.rebalances == len(windows) - 1
    some = replay(windows, Eplb(EIGHT, 0.85), EIGHT, OLMOE_PRICES, start)
    assert 0 < some.moved_bytes < always.moved_bytes
    split = replay(windows, Eplb(EIGHT, 0.85), EIGHT, OLMOE_PRICES, start, splits_best=True)
    assert split.balancedness > some.balancedness
    assert balancedness(start, EIGHT, windows[0]).mean() < some.balancedness
