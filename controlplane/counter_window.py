"""Counters of many processes as one, over a window of time. Pure.

Invariants
 1. A total never falls. A process that ended keeps what it had counted.
 2. What a source had counted before our first look of all counts for nothing: nobody knows when that was. A source that
    appears later has counted since it started.
 3. A counter that fell has started again from 0.
 4. At most `window_s / step_s + 2` looks are kept, and `max_sources` sources remembered.
 5. At most `max_keys` totals are kept: those that have risen last. One that was given up and rises again may be missed
    until the window is over.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping

Key = tuple[str, ...]
Counters = Mapping[Key, float]


class CounterWindow:
    """Feed it with `observe`; ask it with `increase`. `now_s` never falls."""

    def __init__(self, window_s: float, step_s: float = 1.0, *, max_sources: int = 4096, max_keys: int = 4096) -> None:
        self._window_s = window_s
        self._step_s = step_s
        self._max_sources = max_sources
        self._max_keys = max_keys
        self._last: dict[str, Counters] = {}  # by source, the longest unseen first
        self._totals: dict[Key, float] = {}  # the longest without a rise first
        self._looks: deque[tuple[float, dict[Key, float]]] = deque()

    @property
    def newest_s(self) -> float | None:
        """When the last look was; None: there was none."""
        return self._looks[-1][0] if self._looks else None

    def observe(self, now_s: float, sources: Mapping[str, Counters]) -> None:
        """What each source has counted by now."""
        is_first = not self._looks
        for name, counters in sources.items():
            before = self._last.pop(name, counters if is_first else {})
            self._last[name] = counters
            for key, value in counters.items():
                was = before.get(key, 0.0)
                if rise := value - was if value >= was else value:
                    self._totals[key] = self._totals.pop(key, 0.0) + rise
        while len(self._last) > self._max_sources:
            del self._last[next(iter(self._last))]
        while len(self._totals) > self._max_keys:
            del self._totals[next(iter(self._totals))]
        if len(self._looks) > 1 and now_s - self._looks[-2][0] < self._step_s:
            self._looks.pop()  # the newest stands for its step
        self._looks.append((now_s, dict(self._totals)))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - self._window_s:
            self._looks.popleft()

    def increase(self, window_s: float, until_s: float | None = None) -> tuple[float, dict[Key, float]]:
        """Seconds really looked back, up to `window_s`, and by how much each total rose in them; until now or then."""
        if not self._looks:
            return 0.0, {}
        times = [at_s for at_s, _ in self._looks]
        end = len(times) - 1 if until_s is None else max(0, bisect_right(times, until_s) - 1)
        start = max(0, bisect_right(times, times[end] - window_s) - 1)
        (from_s, was), (to_s, now) = self._looks[start], self._looks[end]
        rises = {key: value - was.get(key, 0.0) for key, value in now.items()}
        return to_s - from_s, {key: rise for key, rise in rises.items() if rise > 0.0}
