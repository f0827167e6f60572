"""Least squares that learns sample by sample, forgets, and cannot be thrown off by a few bad samples. Pure.

A time is modelled as a sum of parts, coefficient * feature, and each part has a prior. A sample is normalised by what
the prior says of it:

    shares_j = prior_j * feature_j / prior seconds       the parts of the work; they add up to 1
    ratio    = seconds / prior seconds                   = sum over j of multiplier_j * shares_j

The multipliers minimise  sum over samples of keep^age * (ratio - shares . m)^2  +  RIDGE * |m - level|^2  for m >= 0.
The level is the geometric mean of the ratios: a worker that has only been seen to be three times slower than the prior
is taken to be so in all parts. Relative errors count, so a short prompt weighs as much as a long one.

Invariants
 1. Multipliers are finite and not negative, so predictions are too, and more work never takes less time.
 2. Without samples all multipliers are 1: the prior.
 3. A sample far above its prediction counts as one OUTLYING spreads above it. (One far below cannot pull further than
    to zero, and counts as it is.)
 4. After REGIME_RUN samples in a row that are outlying to the same side the worker has changed: what was learned is
    moved to the new level and counts as RELAXED_WEIGHT samples from then on.
"""

import math
from collections.abc import Sequence
from operator import mul
from statistics import median

from router.latency.nonnegative import solve_nonnegative

RIDGE = 0.003  # in samples. A multiplier may be off by 3 where samples scatter by 15 %: (0.15 / 3)^2
OUTLYING = 2.0  # mean deviations; about 1.6 standard deviations of normal noise, where Huber's estimate keeps 97 %
SPREAD_START = 1.0  # before anything is known: a factor of two
SPREAD_FLOOR = 0.02  # no engine repeats itself better than that
SPREAD_GAIN = 0.1  # the spread remembers about ten samples
REGIME_RUN = 4  # chance once in 600 samples where a fifth of all is outlying to one side
RELAXED_WEIGHT = 2.0
_SMALL_PART = 0.1  # of the samples
_LEVEL_DOUBT = 0.5  # samples' worth of belief that the prior's level is right
_RATIO_MAX = 1e4  # nothing is ten thousand times slower than the prior, or faster


class RecursiveLeastSquares:
    """One fit. `memory` is the number of samples it remembers: older ones weigh less than 1/e."""

    def __init__(self, prior: Sequence[float], memory: float) -> None:
        assert all(0.0 < part < math.inf for part in prior)
        self._prior = tuple(prior)
        self._keep = 1.0 - 1.0 / memory
        self._squares = [[0.0] * len(prior) for _ in prior]  # sum of shares * shares'
        self._products = [0.0] * len(prior)  # sum of shares * ratio
        self._log_ratios = 0.0
        self._weight = 0.0
        self._spread = SPREAD_START
        self._run: list[float] = []  # log of (seconds / prediction) of the latest outlying samples of one side
        self._multipliers = [1.0] * len(prior)
        self._unsolved_weight = 0.0
        self.coefficients = self._prior  # seconds a unit of each feature, as of the last `solve`

    def predict_s(self, features: Sequence[float]) -> float:
        """Seconds of work with these features, as of the last `solve`."""
        seconds: float = sum(map(mul, self.coefficients, features))
        return seconds

    def observe(self, features: Sequence[float], seconds: float, weight: float = 1.0) -> bool:
        """Take in a sample of weight 0 to 1, and solve; True: the worker has changed (invariant 4)."""
        has_changed = self.add(features, seconds, weight)
        self.solve()
        return has_changed

    def add(self, features: Sequence[float], seconds: float, weight: float = 1.0) -> bool:
        """The same, solving only where the sample is outlying. Half of `observe`."""
        parts = list(map(mul, self._prior, features))
        prior_s = sum(parts)
        shares = [part / prior_s for part in parts]
        predicted = _bounded(sum(map(mul, self._multipliers, shares)))
        ratio = _bounded(seconds / prior_s)
        limit = OUTLYING * self._spread
        deviation = max(ratio, predicted) / min(ratio, predicted) - 1.0
        self._watch_regime(math.log(ratio / predicted) if deviation > limit else 0.0)
        self._spread += SPREAD_GAIN * weight * (min(deviation, limit) - self._spread)
        self._spread = max(SPREAD_FLOOR, self._spread)
        self._add(shares, min(ratio, predicted * (1.0 + limit)), weight)
        has_changed = len(self._run) >= REGIME_RUN
        self._unsolved_weight += weight
        if has_changed:
            self.relax(RELAXED_WEIGHT, median(self._run[-3:]))  # one may have been chance
        elif self._run:
            self._solve()
        return has_changed

    def solve(self) -> None:
        """Take what was added into account."""
        if self._unsolved_weight:
            self._solve()

    def solve_if_it_matters(self) -> None:
        """The same if what was added is more than a small part of all."""
        if self._unsolved_weight > _SMALL_PART * self._weight:
            self._solve()

    def relax(self, weight: float, log_shift: float = 0.0) -> None:
        """Let all that was learned count as `weight` samples at most, moved by the factor exp(`log_shift`)."""
        kept = min(1.0, weight / self._weight) if self._weight > 0.0 else 1.0
        shift = math.exp(log_shift)
        self._squares = [[kept * entry for entry in row] for row in self._squares]
        self._products = [kept * shift * entry for entry in self._products]
        self._log_ratios = kept * (self._log_ratios + log_shift * self._weight)
        self._weight *= kept
        self._spread = SPREAD_START
        self._run = []
        self._solve()

    def _watch_regime(self, log_off: float) -> None:
        """`log_off` is 0 for a sample that is not outlying."""
        if log_off == 0.0 or (self._run and (self._run[-1] > 0.0) != (log_off > 0.0)):
            self._run = []
        if log_off != 0.0:
            self._run.append(log_off)

    def _add(self, shares: Sequence[float], ratio: float, weight: float) -> None:
        keep = self._keep**weight
        for i, share in enumerate(shares):
            part = weight * share
            self._squares[i] = [keep * old + part * other for old, other in zip(self._squares[i], shares, strict=True)]
            self._products[i] = keep * self._products[i] + part * ratio
        self._log_ratios = keep * self._log_ratios + weight * math.log(ratio)
        self._weight = keep * self._weight + weight

    def _solve(self) -> None:
        level = math.exp(self._log_ratios / (self._weight + _LEVEL_DOUBT))
        matrix = [list(row) for row in self._squares]
        for i, row in enumerate(matrix):
            row[i] += RIDGE
        self._multipliers = solve_nonnegative(matrix, [entry + RIDGE * level for entry in self._products])
        self.coefficients = tuple(map(mul, self._multipliers, self._prior))
        self._unsolved_weight = 0.0


def _bounded(ratio: float) -> float:
    return min(_RATIO_MAX, max(1.0 / _RATIO_MAX, ratio))
