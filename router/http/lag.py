"""Measures how long the event loop takes for one turn."""

import asyncio
import time
from collections.abc import Callable

PERIOD_S = 0.05


class TurnWatch:
    """Measures a turn every `PERIOD_S` and tells it with the time: about a microsecond each."""

    def __init__(self, on_turn: Callable[[float, float], None]) -> None:
        self._on_turn = on_turn
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(PERIOD_S, self._begin)

    def stop(self) -> None:
        """Measure no more."""
        self._timer.cancel()

    def _begin(self) -> None:
        # uvloop runs what a timer asks for in the same turn, behind all that is ready: measured from there to the next
        # turn, the work of both would be left out. What that asks for in turn runs at the beginning of the next.
        self._timer = self._loop.call_later(PERIOD_S, self._begin)
        self._loop.call_soon(self._before)

    def _before(self) -> None:
        self._loop.call_soon(self._turn_begins)

    def _turn_begins(self) -> None:
        self._loop.call_soon(self._turn_ends, time.monotonic())  # the loop's own clock counts milliseconds

    def _turn_ends(self, began_at_s: float) -> None:
        now_s = time.monotonic()
        self._on_turn(now_s, now_s - began_at_s)
