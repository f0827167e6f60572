"""Whether requests are turned away because this process itself is late. Pure.

Lateness is how long one turn of the event loop takes: every request that is ready waits up to that. A burst or one slow
callback makes a long turn; overload makes every turn long. So, as CoDel does with queues (RFC 8289), the *shortest*
turn of a window is judged: while it stays above the target, fewer requests are admitted; below it, more again.

Invariants
 1. Nothing is shed before a whole window, and `MIN_TURNS` turns, had none as short as the target.
 2. While a share `admitted` is let in, of any n requests in a row between n*admitted - 1 and n*admitted + 1 are.
 3. `admitted` never falls under `MIN_ADMITTED`: what is let in is how the end of the overload is noticed.
"""

MIN_ADMITTED = 0.01
MIN_TURNS = 3  # judged at once: a single long one is no overload
_MAX_CUT = 0.5  # of what is admitted, in one window
_RISE = 0.05  # the same upwards
_LEAST_RISE = 0.02  # of everything, so that little becomes all in some ten seconds


class LoadShedder:
    """Judges lateness, counts requests."""

    __slots__ = ("_credit", "_num_turns", "_shortest_s", "_target_s", "_window_ends_at_s", "_window_s", "admitted")

    def __init__(self, *, target_s: float, window_s: float) -> None:
        self._target_s = target_s
        self._window_s = window_s
        self._window_ends_at_s: float | None = None
        self._shortest_s: float | None = None
        self._num_turns = 0
        self._credit = 0.0
        self.admitted = 1.0  # share of requests that are let in, MIN_ADMITTED to 1

    def on_turn(self, now_s: float, turn_s: float) -> None:
        """A turn of the event loop took `turn_s`. Call it many times a window."""
        if self._window_ends_at_s is None:
            self._window_ends_at_s = now_s + self._window_s
        if self._shortest_s is None or turn_s < self._shortest_s:
            self._shortest_s = turn_s
        self._num_turns += 1
        if now_s >= self._window_ends_at_s and self._num_turns >= MIN_TURNS:
            self._judge(self._shortest_s)
            self._window_ends_at_s, self._shortest_s, self._num_turns = now_s + self._window_s, None, 0

    def admits(self) -> bool:
        """Whether the next request is let in. Evenly spread, no dice."""
        if self.admitted >= 1.0:
            return True
        self._credit += self.admitted
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def _judge(self, shortest_s: float) -> None:
        if shortest_s > self._target_s:
            self.admitted = max(MIN_ADMITTED, self.admitted * max(_MAX_CUT, self._target_s / shortest_s))
        elif self.admitted < 1.0:
            self.admitted = min(1.0, self.admitted * (1.0 + _RISE) + _LEAST_RISE)
            self._credit = min(self._credit, 1.0)
