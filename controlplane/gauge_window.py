"""What was there at each look, over a window of time: how much of it there was at most. Pure.

Invariants
 1. At most `window_s / step_s + 2` looks are kept; of looks within one step the largest numbers.
 2. What is 0 takes no room.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from itertools import islice


class GaugeWindow:
    """Feed it with `observe`; ask it with `most`. `now_s` never falls."""

    def __init__(self, window_s: float, step_s: float = 1.0) -> None:
        self._window_s = window_s
        self._step_s = step_s
        self._looks: deque[tuple[float, dict[str, float]]] = deque()

    def observe(self, now_s: float, numbers: Mapping[str, float]) -> None:
        """What there is now."""
        seen = {name: number for name, number in numbers.items() if number > 0.0}
        if self._looks and now_s - self._looks[-1][0] < self._step_s:
            began_s, before = self._looks.pop()
            now_s, seen = began_s, _larger(before, seen)
        self._looks.append((now_s, seen))
        while self._looks[0][0] < now_s - self._window_s:
            self._looks.popleft()

    def most(self, window_s: float, until_s: float | None = None) -> dict[str, float]:
        """The largest number of each in the looks of (until_s - window_s, until_s], or of the newest `window_s`."""
        if not self._looks:
            return {}
        end_s = self._looks[-1][0] if until_s is None else until_s
        start, end = (bisect_right(self._looks, at_s, key=_at_s) for at_s in (end_s - window_s, end_s))
        found: dict[str, float] = {}
        for _, seen in islice(self._looks, start, end):
            if seen:
                found = _larger(found, seen)
        return found


def _at_s(look: tuple[float, dict[str, float]]) -> float:
    return look[0]


def _larger(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: max(one.get(name, 0.0), other.get(name, 0.0)) for name in {**one, **other}}
