"""One kind of time of one worker: its fit, its errors, and which samples to believe. Pure.

Invariants
 1. A cold sample, or one that is no duration, changes no prediction and no margin.
 2. Every believed sample is compared with the prediction made without it, then learned from.
"""

import math
from collections.abc import Sequence

from router.latency.least_squares import RecursiveLeastSquares
from router.latency.margin import PredictionErrors

# The first calls of an engine's life compile kernels, capture graphs, grow pools and shake hands with other engines.
# Both have to be over: the time, because under load many calls share that delay, and the samples, because an engine
# that nobody asked for a minute is still cold.
COLD_S = 5.0
COLD_SAMPLES = 3
EPOCH_WEIGHT = 8.0  # samples' worth of belief that an engine is after a restart what it was before
SECONDS_MAX = 86_400.0  # what took longer was not the engine's work
FEATURE_MAX = 1e15  # a prompt of a million tokens has 10^6


class FittedTime:
    """Predicts seconds from features and learns from what was observed."""

    def __init__(self, prior: Sequence[float], memory: float) -> None:
        self._fit = RecursiveLeastSquares(prior, memory)
        self._errors = PredictionErrors()
        self._warm_at_s = -math.inf
        self._cold_samples_left = COLD_SAMPLES

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Seconds a unit of each feature."""
        self._fit.solve()
        return self._fit.coefficients

    @property
    def margin(self) -> float:
        """Safety factor, see PredictionErrors."""
        return self._errors.margin()

    @property
    def mean_abs_error(self) -> float:
        """Running mean of relative errors; 0 while there are none."""
        return self._errors.mean_abs_error

    def new_epoch(self, now_s: float) -> None:
        """The engine has been started (again): cold samples follow, then perhaps another behaviour."""
        self._warm_at_s = now_s + COLD_S
        self._cold_samples_left = COLD_SAMPLES
        self._fit.relax(EPOCH_WEIGHT)

    def predict_s(self, features: Sequence[float]) -> float:
        """Seconds of work with these features."""
        self._fit.solve()
        return self._fit.predict_s(features)

    def observe(
        self, features: Sequence[float], seconds: float, now_s: float, weight: float = 1.0, unsure_s: float = 0.0
    ) -> bool:
        """Learn from a sample; False if it was not believed: cold, or no duration (NaN, negative, beyond a day).

        Features are the caller's own arithmetic, the first a count of at least 1. A wrong one raises AssertionError.
        It took `seconds` give or take `unsure_s`: of that, the time nearest to the prediction is learned.
        """
        assert features[0] >= 1.0 and min(features) >= 0.0 and sum(features) <= FEATURE_MAX, features  # no NaN either
        assert 0.0 < weight <= 1.0, weight
        self._fit.solve_if_it_matters()
        predicted_s = self._fit.predict_s(features)
        if unsure_s:
            seconds = min(seconds + unsure_s, max(seconds - unsure_s, predicted_s))
        if not 0.0 <= seconds <= SECONDS_MAX:
            return False
        if self._cold_samples_left > 0 or now_s < self._warm_at_s:
            self._cold_samples_left -= 1
            return False
        self._errors.record(predicted_s, seconds)
        if self._fit.add(features, seconds, weight):
            self._errors.clear()
        return True
