"""What experts were loaded with lately, by traffic class; and whether that has changed. Pure.

Decayed counts weigh a token by 2^(-age / half-life): the sum over windows of tokens * 2^(-(now - ended) / half-life).
Recent windows are kept one by one besides, to compare a time with the time before it.

Invariants
 1. A class's decayed counts are that sum over every window added since the class was new, in whichever order.
 2. A class has its `num_windows` windows that ended last, in order of their end.
 3. Of one engine and class no window is added twice: the next one is of a later epoch, or of the same and ends later.
 4. No more than `num_classes` classes are known, those whose windows ended last. Of each, invariant 3 holds for
    the `num_engines` engines heard of last.
 5. All windows are of one model and shape.
 6. No window ended later than it was added: one that says so, its clock being ahead, ended then.
"""

import math
from bisect import insort
from dataclasses import dataclass, field, replace

import numpy as np

from controlplane.placement.loads import ExpertLoadWindow
from controlplane.placement.types import PlacementError, Scenario, Tokens, check_tokens


@dataclass(slots=True)
class _Class:
    """One traffic class."""

    decayed: Tokens  # as of `as_of_s`
    as_of_s: float  # end of its latest window
    windows: list[ExpertLoadWindow] = field(default_factory=list)
    last: dict[str, tuple[int, float]] = field(default_factory=dict)  # engine -> (epoch, end) of its latest window


class LoadHistory:
    """Loads of one model. Memory: `num_classes` times `num_windows` + 1 matrices at most."""

    def __init__(
        self, half_life_s: float, *, num_windows: int = 8, num_classes: int = 16, num_engines: int = 256
    ) -> None:
        if not (math.isfinite(half_life_s) and half_life_s > 0.0):
            raise PlacementError(f"half_life_s is {half_life_s}, allowed is above 0")
        if min(num_windows, num_classes, num_engines) < 1:
            raise PlacementError("num_windows, num_classes and num_engines are at least 1")
        self._half_life_s = half_life_s
        self._num_windows, self._num_classes, self._num_engines = num_windows, num_classes, num_engines
        self._model: str | None = None
        self._shape: tuple[int, int] | None = None
        self._classes: dict[str, _Class] = {}

    @property
    def traffic_classes(self) -> list[str]:
        """Those known, in order of name."""
        return sorted(self._classes)

    def add(self, window: ExpertLoadWindow, now_s: float) -> bool:
        """Count a window; False if it, or a later one of its engine and class, was counted, or no class gives way."""
        check_tokens(window.tokens, window.name, shape=self._shape)
        if self._model not in (None, window.model):
            raise PlacementError(f"{window.name}: a load of {window.model!r} among those of {self._model!r}")
        number = window.engine_epoch, window.ended_at_s
        window = replace(window, ended_at_s=min(window.ended_at_s, now_s))
        known = self._classes.get(window.traffic_class)
        if known is not None and window.engine in known.last and number <= known.last[window.engine]:
            return False
        if known is None:
            if not self._has_room(window):
                return False
            known = self._classes[window.traffic_class] = _Class(np.zeros(window.tokens.shape), window.ended_at_s)
        self._model, self._shape = window.model, (window.tokens.shape[0], window.tokens.shape[1])
        self._count(known, window)
        known.last.pop(window.engine, None)  # the one heard of last is the last
        known.last[window.engine] = number
        if len(known.last) > self._num_engines:
            del known.last[next(iter(known.last))]
        return True

    def decayed(self, traffic_class: str, now_s: float) -> Tokens:
        """(layers, experts) as of now, which is no earlier than the class's latest window."""
        known = self._known(traffic_class)
        return known.decayed * self._left(now_s - known.as_of_s)

    def windows(self, traffic_class: str) -> list[ExpertLoadWindow]:
        """Its latest ones, in order of their end."""
        return list(self._known(traffic_class).windows)

    def between(self, traffic_class: str, since_s: float, until_s: float) -> Tokens | None:
        """(layers, experts) of the windows kept that ended in (since, until], in sum; None if there are none."""
        parts = [
            window.tokens for window in self._known(traffic_class).windows if since_s < window.ended_at_s <= until_s
        ]
        return np.sum(parts, axis=0) if parts else None

    def scenarios(self, now_s: float) -> list[Scenario]:
        """One for each class, weighted by its part of all decayed tokens. What has faded to nothing is left out."""
        loads = {name: self.decayed(name, now_s) for name in self.traffic_classes}
        whole = sum(float(tokens.sum()) for tokens in loads.values())
        return [
            Scenario(name, tokens, float(tokens.sum()) / whole)
            for name, tokens in loads.items()
            if tokens.any(axis=1).all()
        ]

    def forget(self, traffic_class: str) -> None:
        """Drop all of a class."""
        self._classes.pop(traffic_class, None)
        if not self._classes:
            self._model = self._shape = None

    def _known(self, traffic_class: str) -> _Class:
        if traffic_class not in self._classes:
            raise PlacementError(f"no load of class {traffic_class!r}, there is {self.traffic_classes}")
        return self._classes[traffic_class]

    def _has_room(self, window: ExpertLoadWindow) -> bool:
        """Whether there is for a new class; the one silent longest gives way to it if it is older."""
        if len(self._classes) < self._num_classes:
            return True
        oldest = min(self._classes, key=lambda name: (self._classes[name].as_of_s, name))
        if self._classes[oldest].as_of_s > window.ended_at_s:
            return False
        del self._classes[oldest]
        return True

    def _count(self, known: _Class, window: ExpertLoadWindow) -> None:
        if window.ended_at_s > known.as_of_s:
            known.decayed *= self._left(window.ended_at_s - known.as_of_s)
            known.as_of_s = window.ended_at_s
        known.decayed += window.tokens * self._left(known.as_of_s - window.ended_at_s)
        insort(known.windows, window, key=lambda one: one.ended_at_s)
        del known.windows[: -self._num_windows]

    def _left(self, age_s: float) -> float:
        return math.exp2(-max(0.0, age_s) / self._half_life_s)


def drift(before: Tokens, now: Tokens, *, clump_tokens: float = 1.0) -> float:
    """The part of the tokens that go to other experts than before, above what chance would do; mean over layers.

    In a layer with n tokens before and m now, of which expert e has the shares p_e and q_e, the distance is the total
    variation sum_e |p_e - q_e| / 2, in 0..1. Two samples of one distribution are apart too: p_e - q_e then has variance
    s_e^2 = c_e (1 - c_e) (1/n + 1/m), with c_e the share in both together, and a normal variable is sqrt(2 / pi) s_e
    away from its mean on average. So chance alone does

        floor = sum_e sqrt(2 / pi) s_e / 2

    and drift = max(0, mean over layers of (distance - floor)). As far as counts are normal, on average it is no more
    than the true distance (E|d + s Z| <= |d| + s sqrt(2 / pi)) and no more than the floor below it (Jensen:
    E|d + s Z| >= |d|): small windows make it blind, not alarmed. Where tokens of a prompt go to the same experts, n of
    them tell as much as n / `clump_tokens` free ones.
    """
    check_tokens(before, "load before")
    check_tokens(now, "load now", shape=(before.shape[0], before.shape[1]))
    distance, floor = drift_parts(before, now, clump_tokens=clump_tokens)
    return max(0.0, distance - floor)


def drift_parts(before: Tokens, now: Tokens, *, clump_tokens: float = 1.0) -> tuple[float, float]:
    """The distance and the floor of `drift`, each as its mean over layers."""
    totals = before.sum(axis=1, keepdims=True), now.sum(axis=1, keepdims=True)
    distance = np.abs(before / totals[0] - now / totals[1]).sum(axis=1) / 2.0
    both = (before + now) / (totals[0] + totals[1])
    variance = both * (1.0 - both) * clump_tokens * (1.0 / totals[0] + 1.0 / totals[1])
    floor = np.sqrt(2.0 / np.pi * variance).sum(axis=1) / 2.0
    return float(distance.mean()), float(floor.mean())
