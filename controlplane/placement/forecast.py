"""What experts will get in the next window. Pure.

Holt's linear trend with damping (Gardner, McKenzie 1985), each expert of each layer for itself, of shares of a layer's
tokens. With level s, trend b, and a window x:

    s' = a x + (1 - a) (s + phi b)     b' = c (s' - s) + (1 - c) phi b     next = s' + phi b', not below 0

Loads drift as traffic shifts from one domain to another, which is a line for as long as it takes: the mean of past
windows is always late. Constants were picked on blends of four domains (tests/bench/experts.py).
"""

from dataclasses import dataclass

import numpy as np

from controlplane.placement.types import Tokens, check_tokens

_LEVEL = 0.7
_TREND = 0.7
_DAMPING = 0.9


@dataclass(slots=True)
class Forecast:
    """Of the loads seen so far."""

    level_weight: float = _LEVEL
    trend_weight: float = _TREND
    damping: float = _DAMPING
    _level: Tokens | None = None
    _trend: Tokens | None = None

    def observe(self, tokens: Tokens) -> None:
        """One more window."""
        check_tokens(tokens, "window", shape=None if self._level is None else self._shape())
        seen = tokens / tokens.sum(axis=1, keepdims=True)
        if self._level is None or self._trend is None:
            self._level, self._trend = seen, np.zeros_like(seen)
            return
        drift = self.damping * self._trend
        level = self.level_weight * seen + (1.0 - self.level_weight) * (self._level + drift)
        self._trend = self.trend_weight * (level - self._level) + (1.0 - self.trend_weight) * drift
        self._level = level

    def next(self, windows: float = 1.0) -> Tokens | None:
        """Parts of each layer's tokens so many windows ahead, adding up to 1. None before the first window."""
        if self._level is None or self._trend is None:
            return None
        found = np.maximum(self._level + windows * self.damping * self._trend, 0.0)
        result: Tokens = found / found.sum(axis=1, keepdims=True)
        return result

    def _shape(self) -> tuple[int, int]:
        assert self._level is not None
        return self._level.shape[0], self._level.shape[1]
