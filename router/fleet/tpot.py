"""The TPOTs that are promised on one worker, and what a decode step there yields. Pure.

Whether one more sequence breaks any of them is `keeps_promises` in `router/choice/cost.py`.
"""

import math
from bisect import bisect_left, insort


class TpotLoad:
    """The TPOTs promised on one worker, in seconds a token; inf for a sequence without a promise.

    Invariants
     1. Everything it says depends on what it holds, not on how it came to hold it.
     2. Only what was added can be removed.

    `add` and `remove` cost a binary search among the distinct promises and moving those behind; the rest is O(1).
    """

    __slots__ = ("_count_of", "_distinct", "count")

    def __init__(self) -> None:
        self.count = 0  # sequences, with and without promises
        self._distinct: list[float] = []  # promises held, ascending
        self._count_of: dict[float, int] = {}

    def add(self, tpot_s: float) -> None:
        """One more sequence. `tpot_s` is positive."""
        assert tpot_s > 0.0, tpot_s
        known = self._count_of.get(tpot_s, 0)
        if known == 0:
            insort(self._distinct, tpot_s)
        self._count_of[tpot_s] = known + 1
        self.count += 1

    def remove(self, tpot_s: float) -> None:
        """One sequence less, with a promise that was added."""
        known = self._count_of.get(tpot_s, 0)
        assert known > 0, f"invariant 2: {tpot_s} s was not promised"
        if known == 1:
            del self._count_of[tpot_s]
            del self._distinct[bisect_left(self._distinct, tpot_s)]
        else:
            self._count_of[tpot_s] = known - 1
        self.count -= 1

    @property
    def min_s(self) -> float:
        """The tightest promise; inf without one."""
        return self._distinct[0] if self._distinct else math.inf


def tokens_per_step(drafts: int, draft_tokens: int, accepted_tokens: int) -> float:
    """What a step of a sequence yields on average, from an engine's counters of speculation; 1 without it.

    The token that the target model itself makes, and what it accepts of a draft.
    """
    if drafts <= 0 or draft_tokens <= 0:
        return 1.0
    return 1.0 + min(draft_tokens, max(0, accepted_tokens)) / drafts
