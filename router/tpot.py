"""Does one more sequence break anybody's TPOT? Pure.

A decode step of `t` seconds gives a sequence that was promised `tpot` seconds a token its due if the step yields
t / tpot tokens on average. Without speculation a step yields one, and the rule is SCORPIO's (arXiv 2505.23022). With
speculation it is the feasibility test of AdaServe's Algorithm 1 (arXiv 2501.12162), asked of the active sequences and
the new one: AdaServe has no admission of its own, its INVALID is our refusal.
"""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

_UNITS = 1 << 40  # of the fixed-point sum in one token a second
_SHORTEST_S = 1e-9  # a promise shorter than that is counted as that


class TpotLoad:
    """The TPOTs promised on one worker, in seconds a token; inf for a sequence without a promise.

    Invariants
     1. Everything it says depends on what it holds, not on how it came to hold it: no rounding is left behind.
     2. Only what was added can be removed.

    `add` and `remove` cost a binary search among the distinct promises and moving those behind; the rest is O(1).
    """

    __slots__ = ("_count_of", "_distinct", "_inverse_units", "count")

    def __init__(self) -> None:
        self.count = 0  # sequences, with and without promises
        self._distinct: list[float] = []  # promises held, ascending
        self._count_of: dict[float, int] = {}
        self._inverse_units = 0

    def add(self, tpot_s: float) -> None:
        """One more sequence. `tpot_s` is positive."""
        assert tpot_s > 0.0, tpot_s
        known = self._count_of.get(tpot_s, 0)
        if known == 0:
            insort(self._distinct, tpot_s)
        self._count_of[tpot_s] = known + 1
        self._inverse_units += _inverse_units(tpot_s)
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
        self._inverse_units -= _inverse_units(tpot_s)
        self.count -= 1

    @property
    def min_s(self) -> float:
        """The tightest promise; inf without one."""
        return self._distinct[0] if self._distinct else math.inf

    @property
    def sum_inverse(self) -> float:
        """Tokens a second promised to all."""
        return self._inverse_units / _UNITS

    def virtual_seqs(self, new_tpot_s: float = math.inf) -> float:
        """SCORPIO's virtual batch size with a new sequence: the sum of tightest / tpot over all.

        It is the mean batch of an engine that lets a sequence skip the steps that it does not need. Sequences without
        a promise count nothing, unless nobody has one.
        """
        tightest_s = min(self.min_s, new_tpot_s)
        if math.isinf(tightest_s):
            return self.count + 1.0
        return tightest_s * (self._inverse_units + _inverse_units(new_tpot_s)) / _UNITS


def _inverse_units(tpot_s: float) -> int:
    return round(_UNITS / max(tpot_s, _SHORTEST_S))


def admits_tpot(
    running: TpotLoad,
    new_tpot_s: float,
    step_s: Callable[[float], float],
    *,
    is_paced: bool = False,
    margin: float = 1.0,
) -> bool:
    """Whether all promises, the new one's too, are kept with one more sequence. Without speculation.

    `step_s` gives the predicted seconds of a step with so many sequences and must not fall; `margin` stretches it.
    Stock engines step every running sequence every time, so each weighs 1. Where the engine paces (`is_paced`), the
    batch is SCORPIO's virtual one, and its rule is this with its own margin, 1 / 0.99.
    """
    tightest_s = min(running.min_s, new_tpot_s)
    seqs = running.virtual_seqs(new_tpot_s) if is_paced else running.count + 1.0
    return step_s(seqs) * margin <= tightest_s


@dataclass(frozen=True, slots=True)
class AcceptanceCurve:
    """What speculation yields on one worker: `path_probabilities[k]`, not rising, is the chance that the k-th best
    node of a draft is accepted together with all before it on its path (f(v) in AdaServe, Theorem 3.1).

    The root of a draft, the token that the target model itself makes, is always accepted and not listed.
    """

    path_probabilities: tuple[float, ...] = ()
    _yields: tuple[float, ...] = field(init=False, repr=False, compare=False)  # of 1, 2, ... nodes, root included

    def __post_init__(self) -> None:
        if not all(0.0 <= f <= 1.0 for f in self.path_probabilities):
            raise ValueError("a probability is from 0 to 1")
        if any(later > earlier for earlier, later in pairwise(self.path_probabilities)):
            raise ValueError("the k-th best node is not likelier than the one before it")
        object.__setattr__(self, "_yields", tuple(accumulate(self.path_probabilities, initial=1.0)))

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step yields with the whole draft."""
        return self._yields[-1]

    def nodes_needed(self, tokens: float) -> float:
        """The least number of nodes, root included, that yields `tokens` on average; inf where no draft does."""
        nodes = bisect_left(self._yields, tokens) + 1
        return math.inf if nodes > len(self._yields) else float(nodes)


NO_SPECULATION = AcceptanceCurve()


def chain_curve(drafts: int, draft_tokens: int, accepted_tokens: int) -> AcceptanceCurve:
    """The curve of drafts that are chains, from an engine's counters: f_k = alpha^k.

    alpha is the chance that a token is accepted if the one before it was; a chain of K then has alpha + ... + alpha^K
    tokens accepted on average, which is what the counters tell. (Their quotient, accepted / drafted, is less.)
    """
    if drafts <= 0 or draft_tokens <= 0:
        return NO_SPECULATION
    length = max(1, round(draft_tokens / drafts))
    accepted = min(float(length), max(0, accepted_tokens) / drafts)
    low, high = 0.0, 1.0
    for _ in range(50):  # halvings: more than a float of that size can tell apart
        alpha = (low + high) / 2
        if sum(alpha**k for k in range(1, length + 1)) < accepted:
            low = alpha
        else:
            high = alpha
    return AcceptanceCurve(tuple(high**k for k in range(1, length + 1)))


def least_budget(
    tpots_s: Iterable[float], step_s: Callable[[int], float], curve: AcceptanceCurve, max_nodes: int
) -> int | None:
    """The least number B of nodes a step for which every sequence gets what it was promised; None where there is none.

    `step_s` is the profiled t(B), seconds to verify B nodes, and must not fall. A sequence needs n(t(B) / tpot) of
    them, so B works if these add up to B at most. What is needed rises with B, so that going from "one node each" to
    what that B needs, and so on, passes no B that works.
    """
    counts = Counter(tpots_s)
    budget = counts.total()
    while budget <= max_nodes:
        duration_s = step_s(budget)
        needed = sum(count * curve.nodes_needed(duration_s / tpot_s) for tpot_s, count in counts.items())
        if needed <= budget:
            return budget
        if needed > max_nodes:
            return None
        budget = int(needed)
    return None


def budget_feasible(
    tpots_s: Iterable[float], step_s: Callable[[int], float], curve: AcceptanceCurve, max_nodes: int
) -> bool:
    """Whether all promised TPOTs can be kept at once: Algorithm 1 of AdaServe does not return INVALID."""
    return least_budget(tpots_s, step_s, curve, max_nodes) is not None
