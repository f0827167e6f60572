"""Work with due times, and what a pool of workers can do by then: the processor-demand test. Pure.

While a request waits no worker idles: by a time t the workers have done at least sum(max(0, t - f_w)) of the work that
goes before it, f_w being when worker w has done what was sent to it. So it starts no later than when that sum reaches
the work before it; from there it needs its own time on its worker. A list in order of due time is kept in full if that
holds for every item (Baruah, Rosier, Howell 1990, for items that are all here already; Graham 1969 for more than one
worker). With one worker it is exact.

An item also needs room in a decode batch, as does each that goes before it (`decode_room.py`). Work and room are looked
at one by one, and the later one counts.

Invariant
 1. Items are ordered by due time, then by sequence number; the columns are aligned with them.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from router.choice.decode_room import DecodeRoom
from router.fleet.table import Column

Seconds = Column


class Aside(Struct, frozen=True):
    """Work, and room in decode batches, set aside for clients that were told to come back.

    It may take no more than `share` of the time that a newcomer has: if none of them comes, the pool does not stand
    idle. What is promised already is protected from all of it.
    """

    until: Callable[[Seconds], Seconds]  # instants -> work of those whose time is no later than each
    num_until: Callable[[Seconds], Column]  # instants -> their number
    share: float


class PoolWork(Struct, frozen=True):
    """The workers behind a queue. `free_in_s`: for each, finite seconds until it has done what was sent to it."""

    free_in_s: Seconds
    aside: Aside | None = None
    decode: DecodeRoom | None = None  # None: there is room for whoever asks

    @property
    def speed(self) -> int:
        """Seconds of work done in a second."""
        return len(self.free_in_s)

    def starts_in_s(self, work_s: Seconds) -> Seconds:
        """Seconds until so much work has been done beside what was sent before. Needs a worker."""
        free_in_s = np.sort(self.free_in_s)
        num = np.arange(1, len(free_in_s) + 1)
        sent_s = np.cumsum(free_in_s)
        work_when_free_s = num * free_in_s - sent_s
        # The number of workers that are free by then, at least one.
        at = np.maximum(np.searchsorted(work_when_free_s, work_s, side="right") - 1, 0)
        starts: Seconds = (work_s + sent_s[at]) / num[at]
        return starts


class Newcomer(NamedTuple):
    """An item that is not in yet. Work set aside until its latest start counts for it."""

    cost_s: float
    due_at_s: float
    latest_start_at_s: float


class Probe(NamedTuple):
    """What would become of a newcomer, and of the others because of it."""

    start_in_s: float  # predicted seconds until it is started
    least_slack_s: float  # of what is due after it, once it is in; negative: one is late. inf: nothing is
    num_ahead: int  # due no later than it
    aside_s: float  # work set aside that was counted for it
    room_in_s: float = 0.0  # of `start_in_s`, until there is room in a decode batch


class Demand:
    """Items of work in order of due time. About 20 us a look at 1,000 items: the columns are arrays, not objects."""

    def __init__(self) -> None:
        self._keys: list[tuple[float, int]] = []  # (due, sequence number)
        self._due_at_s = array("d")
        self._cost_s = array("d")
        self._own_s = array("d")

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, due_at_s: float, seq: int, cost_s: float, own_s: float) -> int:
        """Put an item in; return its position. `seq` tells items with the same due time apart."""
        at = bisect_left(self._keys, (due_at_s, seq))
        self._keys.insert(at, (due_at_s, seq))
        self._due_at_s.insert(at, due_at_s)
        self._cost_s.insert(at, cost_s)
        self._own_s.insert(at, own_s)
        return at

    def discard(self, due_at_s: float, seq: int) -> int:
        """Take an item out; return the position it had."""
        at = bisect_left(self._keys, (due_at_s, seq))
        assert self._keys[at] == (due_at_s, seq), "invariant 1: no such item"
        for column in (self._keys, self._due_at_s, self._cost_s, self._own_s):
            del column[at]
        return at

    def first_after(self, instant_s: float) -> int:
        """Position of the first item due later than an instant."""
        return bisect_right(self._due_at_s, instant_s)

    def before(self, instant_s: float) -> float:
        """Work due no later than an instant."""
        at = self.first_after(instant_s)
        return float(np.frombuffer(self._cost_s, count=at).sum()) if at else 0.0

    def longest_s(self) -> float:
        """The most work of one item; 0 without any."""
        return float(np.frombuffer(self._cost_s).max()) if self._keys else 0.0

    def before_each(self, instants_s: Seconds) -> Seconds:
        """`before` for many instants at once."""
        if not self._keys:
            return np.zeros(len(instants_s))
        work_s = np.concatenate(([0.0], np.cumsum(np.frombuffer(self._cost_s))))
        found: Seconds = work_s[self._first_after_each(instants_s)]
        return found

    def num_before_each(self, instants_s: Seconds) -> Column:
        """Items due no later than each of many instants."""
        if not self._keys:
            return np.zeros(len(instants_s))
        return self._first_after_each(instants_s).astype(np.float64)

    def probe(self, newcomer: Newcomer, pool: PoolWork, now_s: float, *, stretch: float, extra_s: float) -> Probe:
        """What becomes of everybody. Work here stands for `stretch` as much, and `extra_s` of it goes before all.

        An item that is late even if it starts now (it waited for something else than work) is not made late by the
        newcomer: its slack does not count.
        """
        at = self.first_after(newcomer.due_at_s)
        if not pool.speed:
            return Probe(float("inf"), float("-inf"), at, 0.0)
        if not (self._keys or extra_s or pool.aside or pool.decode):
            soonest_s = pool.free_in_s.item(pool.free_in_s.argmin())
            return Probe(soonest_s, float("inf"), 0, 0.0)  # as it mostly is
        costs = np.frombuffer(self._cost_s) if self._keys else np.zeros(0)
        latest = np.empty(1 + len(costs) - at)  # starts: the newcomer's, then of those behind it
        before = np.empty(len(latest))
        latest[0], before[0] = newcomer.latest_start_at_s, extra_s + stretch * float(costs[:at].sum())
        if at < len(costs):
            latest[1:] = np.frombuffer(self._due_at_s)[at:] - np.frombuffer(self._own_s)[at:]
            np.cumsum(costs[at:], out=before[1:])
            before[1:] -= costs[at:]
            before[1:] *= stretch
            before[1:] += before[0] + stretch * newcomer.cost_s
        aside_s = 0.0
        if pool.aside is not None:
            aside = pool.aside.until(latest)
            wait_s = max(0.0, newcomer.latest_start_at_s - now_s)
            aside_s = aside[0] = min(float(aside[0]), pool.aside.share * pool.speed * wait_s)
            before += aside
        starts = pool.starts_in_s(before)
        room_in_s = 0.0
        if pool.decode is not None:
            seqs = _seqs_until(at, latest, pool, now_s, stretch=stretch)
            rooms_in_s = pool.decode.starts_in_s(seqs)
            room_in_s = float(rooms_in_s[0])
            starts = np.maximum(starts, rooms_in_s)
        latest -= now_s
        slack = latest[1:] - starts[1:]
        slack[latest[1:] < 0.0] = np.inf
        return Probe(float(starts[0]), float(slack.min(initial=np.inf)), at, aside_s, room_in_s)

    def _first_after_each(self, instants_s: Seconds) -> npt.NDArray[np.intp]:
        return np.searchsorted(np.frombuffer(self._due_at_s), instants_s, side="right")

    def validate(self, items: list[tuple[float, float, float]]) -> None:
        """Raise AssertionError unless the columns are (due, cost, own) of `items`, in their order."""
        assert self._keys == sorted(self._keys), "invariant 1: order"
        assert [key[0] for key in self._keys] == list(self._due_at_s), "invariant 1: due times"
        assert items == list(zip(self._due_at_s, self._cost_s, self._own_s, strict=True)), "invariant 1: columns"


def _seqs_until(num_ahead: int, latest_s: Seconds, pool: PoolWork, now_s: float, *, stretch: float) -> Column:
    """Sequences that have found room once a newcomer has, and once each of those behind it has."""
    assert pool.decode is not None
    seqs: Column = np.arange(num_ahead, num_ahead + len(latest_s), dtype=np.float64) * stretch + 1.0
    if pool.aside is not None:
        aside = pool.aside.num_until(latest_s)
        wait_s = max(0.0, float(latest_s[0]) - now_s)
        aside[0] = min(float(aside[0]), pool.aside.share * pool.decode.by(wait_s))
        seqs += aside
    return seqs
