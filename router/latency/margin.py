"""How far predictions have been off, and so how much room admission has to leave. Pure."""

import math
from bisect import insort
from collections import deque

WINDOW = 32  # predictions
QUANTILE = 0.9
TOLERANCE = 0.01  # what a clock and a scheduler add; being late by that little is being right
MARGIN_MAX = 2.0  # beyond it the model is of no use, and a larger margin of none either
ERROR_MAX = 10.0
_ERROR_GAIN = 1.0 / WINDOW


class PredictionErrors:
    """Errors of one model's predictions, each made before its sample was learned from."""

    def __init__(self) -> None:
        self._late: deque[float] = deque()  # relative under-prediction, oldest first
        self._sorted: list[float] = []
        self._count = 0
        self.mean_abs_error = 0.0  # |predicted - observed| / observed, running mean; each counted as ERROR_MAX at most

    def record(self, predicted_s: float, observed_s: float) -> None:
        """A prediction has met its outcome."""
        late = observed_s / predicted_s - 1.0 if predicted_s > 0.0 else math.inf if observed_s > 0.0 else 0.0
        late = min(MARGIN_MAX - 1.0, max(0.0, late - TOLERANCE))
        self._late.append(late)
        insort(self._sorted, late)
        if len(self._late) > WINDOW:
            self._sorted.remove(self._late.popleft())
        off_s = abs(predicted_s - observed_s)
        error = min(ERROR_MAX, off_s / observed_s) if observed_s > 0.0 else ERROR_MAX if off_s > 0.0 else 0.0
        self._count += 1
        self.mean_abs_error += max(_ERROR_GAIN, 1.0 / self._count) * (error - self.mean_abs_error)

    def clear(self) -> None:
        """The errors so far say nothing of the predictions to come."""
        self._late.clear()
        self._sorted.clear()
        self._count = 0
        self.mean_abs_error = 0.0

    def margin(self) -> float:
        """Factor from 1 to MARGIN_MAX by which to stretch a prediction so that nine outcomes of ten are within it.

        1 while there is nothing to go by, and where predictions are right within TOLERANCE.
        """
        if not self._sorted:
            return 1.0
        return 1.0 + self._sorted[math.ceil(QUANTILE * len(self._sorted)) - 1]
