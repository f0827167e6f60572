"""When the decode batches of a pool take one more sequence: as many as fit now, and more as others end. Pure.

    room by t  = sum over workers of max(0, seqs + ends_per_s * t)

`seqs` is how many sequences fit on a worker now, below 0 where as many have to end first because forecasts have
worsened; `ends_per_s` is how many end there in a second when it is full. What they are for a request: `decode_room` in
`router/choice/cost.py`.
"""

from dataclasses import dataclass
from math import inf, log

import numpy as np

from router.fleet.table import Column

_ONE_IN_A_HUNDRED = log(100.0)


@dataclass(frozen=True, slots=True)
class DecodeRoom:
    """By worker, of those that count: something ends on each."""

    seqs: Column
    ends_per_s: Column

    @property
    def speed(self) -> float:
        """Sequences that end in a second, in all."""
        return float(self.ends_per_s.sum())

    @property
    def blocked_s(self) -> float:
        """Within this time a sequence ends, 99 times in 100, if ends are random; 0 where there is room now."""
        if np.any(self.seqs >= 1.0):
            return 0.0
        return _ONE_IN_A_HUNDRED / self.speed if len(self.seqs) else inf

    def by(self, in_s: float) -> float:
        """Sequences that will have found room by then, if somebody always waits."""
        return float(np.maximum(self.seqs + self.ends_per_s * in_s, 0.0).sum())

    def starts_in_s(self, nums: Column) -> Column:
        """Seconds until so many sequences have found room; inf: not foreseen."""
        if not len(self.seqs):
            return np.full(len(nums), inf)
        first_in_s = -self.seqs / self.ends_per_s
        order = np.argsort(first_in_s, kind="stable")
        ends_per_s, seqs = np.cumsum(self.ends_per_s[order]), np.cumsum(self.seqs[order])
        room_then = first_in_s[order] * ends_per_s + seqs
        at = np.maximum(np.searchsorted(room_then, nums, side="right") - 1, 0)  # of the workers that have room by then
        starts: Column = np.maximum((nums - seqs[at]) / ends_per_s[at], 0.0)
        return starts
