"""The fit against a twin that keeps every sample, and what holds whatever it is fed."""

import math
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.latency import LatencyPrior, WorkerLatency
from router.latency.least_squares import OUTLYING, RIDGE, SPREAD_FLOOR, SPREAD_GAIN, SPREAD_START, RecursiveLeastSquares
from router.latency.margin import MARGIN_MAX, QUANTILE, TOLERANCE, WINDOW, PredictionErrors
from router.latency.nonnegative import solve_nonnegative

Vector = NDArray[np.float64]

PRIOR = (0.010, 0.2, 0.005)
MEMORY = 64.0
COEFFICIENTS = st.tuples(st.floats(0.001, 0.1), st.floats(0.02, 2.0), st.floats(0.0005, 0.05))
FACTORS = st.floats(2.0, 30.0).flatmap(lambda factor: st.sampled_from((factor, 1 / factor)))
SEEDS = st.integers(0, 2**32)


def work(rng: Random) -> tuple[float, float, float]:
    """A prompt and those before it: their number, kilotokens, and millions of pairs of tokens."""
    lengths = [min(30_000.0, math.exp(rng.gauss(6.5, 1.2))) for _ in range(1 + min(15, int(rng.expovariate(0.5))))]
    return float(len(lengths)), sum(lengths) / 1e3, sum(length**2 for length in lengths) / 1e6


def dot(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def mean_error(fit: RecursiveLeastSquares, true: tuple[float, ...], rng: Random) -> float:
    """Relative to the truth, over fresh work."""
    errors = []
    for _ in range(50):
        features = work(rng)
        errors.append(abs(fit.predict_s(features) / dot(true, features) - 1.0))
    return sum(errors) / len(errors)


def teach(fit: RecursiveLeastSquares, true: tuple[float, ...], rng: Random, samples: int, noise: float = 0.05) -> None:
    for _ in range(samples):
        features = work(rng)
        fit.observe(features, dot(true, features) * math.exp(rng.gauss(0.0, noise)))


# -- the solver


def best_by_brute_force(matrix: Vector, vector: Vector) -> float:
    """The least value over all supports; every minimum over x >= 0 is the free minimum of its support."""
    size = len(vector)
    values = [0.0]
    for support in (s for n in range(1, size + 1) for s in combinations(range(size), n)):
        x = np.zeros(size)
        x[list(support)] = np.linalg.solve(matrix[np.ix_(support, support)], vector[list(support)])
        if x.min() >= 0.0:
            values.append(float(x @ matrix @ x / 2 - vector @ x))
    return min(values)


@given(st.integers(1, 4), SEEDS)
def test_the_solution_is_not_negative_and_the_best(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(size + 2, size))
    matrix, vector = rows.T @ rows + RIDGE * np.eye(size), rng.normal(size=size)
    solution = np.array(solve_nonnegative([[float(entry) for entry in row] for row in matrix], vector.tolist()))
    assert solution.min() >= 0.0
    value = solution @ matrix @ solution / 2 - vector @ solution
    best = best_by_brute_force(matrix, vector)
    assert value == pytest.approx(best, rel=1e-6, abs=1e-9)
    for step in rng.normal(size=(50, size)) * 0.01:  # nothing near it is better
        near = np.maximum(0.0, solution + step)
        assert near @ matrix @ near / 2 - vector @ near >= value - 1e-9


# -- the fit


class Twin:
    """Keeps every sample and fits all of them anew."""

    def __init__(self) -> None:
        self.shares: list[Vector] = []
        self.ratios: list[float] = []
        self.weights: list[float] = []
        self.spread = SPREAD_START

    def multipliers(self) -> list[float]:
        if not self.ratios:
            return [1.0] * len(PRIOR)
        later = np.cumsum([0.0, *self.weights[:0:-1]])[::-1]
        weights = np.array(self.weights) * (1.0 - 1.0 / MEMORY) ** later
        shares, ratios = np.array(self.shares), np.array(self.ratios)
        level = math.exp(float(weights @ np.log(ratios)) / (float(weights.sum()) + 0.5))
        matrix = shares.T @ (weights[:, None] * shares) + RIDGE * np.eye(len(PRIOR))
        return solve_nonnegative(matrix.tolist(), (shares.T @ (weights * ratios) + RIDGE * level).tolist())

    def observe(self, features: tuple[float, ...], seconds: float, weight: float) -> None:
        parts = np.array(PRIOR) * np.array(features)
        shares = parts / parts.sum()
        predicted, ratio = float(shares @ np.array(self.multipliers())), seconds / float(parts.sum())
        limit = OUTLYING * self.spread
        deviation = max(predicted, ratio) / min(predicted, ratio) - 1.0
        self.spread = max(SPREAD_FLOOR, self.spread + SPREAD_GAIN * weight * (min(deviation, limit) - self.spread))
        self.shares.append(shares)
        self.ratios.append(min(ratio, predicted * (1.0 + limit)))
        self.weights.append(weight)


@given(COEFFICIENTS, SEEDS, st.floats(0.0, 0.5))
def test_the_recursion_fits_what_all_samples_together_say(true: tuple[float, ...], seed: int, noise: float) -> None:
    rng, fit, twin = Random(seed), RecursiveLeastSquares(PRIOR, MEMORY), Twin()
    for _ in range(30):
        features, weight = work(rng), rng.choice((1.0, 0.3))
        seconds = dot(true, features) * math.exp(rng.gauss(0.0, noise))
        assume(not fit.observe(features, seconds, weight))  # a change of regime has its own tests
        twin.observe(features, seconds, weight)
        expected = tuple(m * part for m, part in zip(twin.multipliers(), PRIOR, strict=True))
        probe = work(rng)
        assert fit.predict_s(probe) == pytest.approx(dot(expected, probe), rel=1e-5)


@given(COEFFICIENTS, SEEDS)
def test_it_recovers_a_worker_under_noise(true: tuple[float, ...], seed: int) -> None:
    rng, fit = Random(seed), RecursiveLeastSquares(PRIOR, MEMORY)
    teach(fit, true, rng, 100, noise=0.1)
    assert mean_error(fit, true, rng) < 0.25  # the worst of many; half of them are below 0.02


@given(COEFFICIENTS, FACTORS, SEEDS)
def test_an_old_regime_is_forgotten_within_32_samples(true: tuple[float, ...], factor: float, seed: int) -> None:
    """Invariant 4: a worker that became at least twice as slow or fast, seen with 5 % of noise."""
    rng, fit = Random(seed), RecursiveLeastSquares(PRIOR, MEMORY)
    teach(fit, true, rng, 100)
    changed = tuple(factor * part for part in true)
    teach(fit, changed, rng, 32)
    assert mean_error(fit, changed, rng) < 0.3  # the worst of many; half of them are below 0.02


@given(COEFFICIENTS, st.floats(0.8, 1.25), SEEDS)
def test_a_small_change_is_followed_within_four_memories(true: tuple[float, ...], factor: float, seed: int) -> None:
    rng, fit = Random(seed), RecursiveLeastSquares(PRIOR, MEMORY)
    teach(fit, true, rng, 100)
    changed = tuple(factor * part for part in true)
    teach(fit, changed, rng, int(4 * MEMORY))
    assert mean_error(fit, changed, rng) < 0.1


@given(COEFFICIENTS, SEEDS, st.floats(1.5, 1e4))
def test_one_sample_in_twenty_may_be_nonsense(true: tuple[float, ...], seed: int, nonsense: float) -> None:
    """Invariant 3."""
    rng, fit = Random(seed), RecursiveLeastSquares(PRIOR, MEMORY)
    for index in range(200):
        features = work(rng)
        fit.observe(features, dot(true, features) * (nonsense if index % 20 == 10 else math.exp(rng.gauss(0.0, 0.05))))
    assert mean_error(fit, true, rng) < 0.25


@given(st.floats(0.05, 20.0), SEEDS)
def test_where_samples_are_alike_the_prior_gives_the_proportions(factor: float, seed: int) -> None:
    """The level of a ridge: work that was never seen is as many times slower as the work that was."""
    rng, fit = Random(seed), RecursiveLeastSquares(PRIOR, MEMORY)
    alike = (1.0, 0.5, 0.25)
    for _ in range(60):
        fit.observe(alike, factor * dot(PRIOR, alike) * math.exp(rng.gauss(0.0, 0.02)))
    other = (4.0, 20.0, 100.0)
    assert fit.predict_s(other) == pytest.approx(factor * dot(PRIOR, other), rel=0.3)


SAMPLES = st.lists(
    st.tuples(
        st.tuples(st.integers(1, 500).map(float), st.floats(0.0, 1e6), st.floats(0.0, 1e9)),
        st.one_of(st.floats(0.0, 100.0), st.floats(0.0, 86_400.0), st.just(0.0)),
        st.floats(0.001, 1.0),
    ),
    max_size=40,
)


@given(SAMPLES)
def test_whatever_it_is_fed_predictions_are_finite_not_negative_and_monotone(
    samples: list[tuple[tuple[float, float, float], float, float]],
) -> None:
    """Invariant 1."""
    fit = RecursiveLeastSquares(PRIOR, MEMORY)
    for features, seconds, weight in samples:
        fit.observe(features, seconds, weight)
        assert all(0.0 <= coefficient < math.inf for coefficient in fit.coefficients)
    for features, _, _ in samples:
        predicted_s = fit.predict_s(features)
        assert 0.0 <= predicted_s < math.inf
        for index in range(len(features)):
            more = tuple(f + 1.0 if i == index else f for i, f in enumerate(features))
            assert fit.predict_s(more) >= predicted_s


@given(SAMPLES)
def test_the_same_samples_give_the_same_fit(samples: list[tuple[tuple[float, float, float], float, float]]) -> None:
    fits = [RecursiveLeastSquares(PRIOR, MEMORY) for _ in range(2)]
    changes = [[fit.observe(*sample) for sample in samples] for fit in fits]
    assert changes[0] == changes[1]
    assert fits[0].coefficients == fits[1].coefficients


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("prefill", "step", "transfer", "epoch")), st.floats(0.0, 1e4), st.integers(0, 5_000)
        ),
        max_size=60,
    )
)
def test_a_worker_is_never_negative_and_more_work_never_takes_less(samples: list[tuple[str, float, int]]) -> None:
    latency = WorkerLatency(LatencyPrior())
    for at_s, (kind, duration_s, tokens) in enumerate(samples):
        now_s = float(at_s)
        match kind:
            case "prefill":
                latency.observe_prefill(duration_s, 1 + tokens % 3, tokens, tokens * tokens / 1e6, now_s)
            case "step":
                latency.observe_step(duration_s, tokens % 50, tokens, 1 + tokens, now_s, prompt_tokens=tokens % 7)
            case "transfer":
                latency.observe_transfer(duration_s, tokens, now_s)
            case _:
                latency.new_epoch(now_s)
    assert all(0.0 <= coefficient < math.inf for coefficient in latency.params())
    assert 0.0 <= latency.predict_prefill_s(10, 100) <= latency.predict_prefill_s(11, 100)
    assert latency.predict_prefill_s(10, 100) <= latency.predict_prefill_s(10, 101)
    assert 0.0 <= latency.predict_step_s(3, 100) <= latency.predict_step_s(4, 100) <= latency.predict_step_s(4, 101)
    assert 0.0 <= latency.predict_transfer_s(1) <= latency.predict_transfer_s(2)
    assert all(1.0 <= margin <= MARGIN_MAX for margin in (latency.prefill_margin(), latency.step_margin()))


@given(st.lists(st.tuples(st.floats(1e-3, 10.0), st.floats(0.0, 100.0)), min_size=1, max_size=100))
def test_the_margin_is_a_quantile_of_the_latest_errors(outcomes: list[tuple[float, float]]) -> None:
    errors = PredictionErrors()
    for predicted_s, observed_s in outcomes:
        errors.record(predicted_s, observed_s)
    latest = outcomes[-WINDOW:]
    margin = errors.margin()
    assert 1.0 <= margin <= MARGIN_MAX
    kept = sum(observed <= predicted * (margin + TOLERANCE + 1e-9) for predicted, observed in latest)
    assert kept >= QUANTILE * len(latest) or margin == MARGIN_MAX
    if margin > 1.0:  # and no smaller one would do
        less = 1.0 + (margin - 1.0) * 0.999
        assert sum(observed <= predicted * (less + TOLERANCE) for predicted, observed in latest) < QUANTILE * len(
            latest
        )
