"""Which experts each class of traffic asks for, from windows of load that do not say whose tokens they were. Pure.

Engines count tokens by expert, routers count tokens by class. With q_w the shares of a layer's experts in window w,
n_w its tokens (expert choices a layer) and m_wk the part of class k among all tokens that the router saw, q_w is about
sum_k m_wk p_k, and the profiles p solve, each layer for itself,

    min   sum_w d_w n_w |q_w - sum_k m_wk p_k|^2 + rho sum_k |p_k - c|^2      p_k >= 0, sum_e p_ke = 1

d_w = 2^(-age / half-life): weighted least squares, counts having a variance in proportion to n. It can be told which
class asks for what only as far as the mix of classes differs between windows, in time or between engines of one model.
What cannot be told stays with the common profile c, the shares of all windows together: ridge regression towards c,
with rho as many tokens as make sampling noise p (1 - p) / n as large as what profiles differ by. On OLMoE's domains
that is (0.65 p)^2, so 2.4 tokens for each expert, and ten times that because tokens of a prompt go together.

Kept are the normal equations alone: A = sum d n m m', B = sum d n m q', so memory and time do not grow with windows.
Without p >= 0 one linear system gives all profiles, and they sum to 1 by themselves as every q does; layers in which
that leaves none below 0 are done. The others go on by accelerated gradient steps (Nesterov 1983, strongly convex)
projected on the simplex (Held, Wolfe, Crowder 1974).

    confidence_k   how much of the variance that the prior leaves to p_k - c the windows have taken away: with V, l the
                   eigenvectors and -values of A on the mixes that differ from the mean one,
                   sum_i V_ki^2 l_i / (l_i + rho)  /  sum_i V_ki^2.     0: p_k is c; near 1: known as well as c is

Invariants
 1. Profiles are never negative and sum to 1 in each layer.
 2. They are the minimum above over every window added, in whichever order these ended.
 3. No more than `num_classes` are told apart. Tokens of others count for none: they blur what is left.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import PlacementError, Tokens, check_tokens

Floats = NDArray[np.float64]

PRIOR_TOKENS_PER_EXPERT = 25.0
_MOST_STEPS, _STEP = 400, 1e-8
_LEAST_PART = 1e-12  # of a class that differs from the common mix in nothing


@dataclass(frozen=True, slots=True)
class Profiles:
    """What is known of the classes of one model."""

    names: tuple[str, ...]
    shares: Floats  # (classes, layers, experts), a layer of each summing to 1
    confidence: Floats  # (classes,) 0..1
    parts: Floats  # (classes,) of all tokens, decayed; summing to 1
    common: Tokens  # (layers, experts), a layer summing to 1

    def split(self, tokens: Tokens, class_tokens: Mapping[str, float]) -> dict[str, Tokens]:
        """A window's tokens, divided by who is likely to have asked for them; classes not known are left out.

        Token by token of expert e the class is k with probability m_k p_ke / sum_j m_j p_je. So classes sum up to the
        window where all are known, whatever profiles say.
        """
        known = np.array([max(0.0, class_tokens.get(name, 0.0)) for name in self.names])
        total = sum(class_tokens.values())
        if total <= 0.0 or not known.any():
            return {}
        parts = known[:, None, None] * self.shares
        whole = parts.sum(axis=0) + max(0.0, total - float(known.sum())) * self.common
        # An expert that nobody was thought to ask for: by the mix.
        even = np.broadcast_to((known / total)[:, None, None], parts.shape)
        share = np.divide(parts, whole, out=even.copy(), where=whole > 0.0)
        return {name: tokens * share[at] for at, name in enumerate(self.names) if known[at] > 0.0}


class ClassProfiles:
    """Of one model. Memory: `num_classes` + 1 matrices of (layers, experts)."""

    def __init__(
        self,
        half_life_s: float,
        *,
        prior_tokens_per_expert: float = PRIOR_TOKENS_PER_EXPERT,
        num_classes: int = 16,
    ) -> None:
        if not (math.isfinite(half_life_s) and half_life_s > 0.0):
            raise PlacementError(f"half_life_s is {half_life_s}, allowed is above 0")
        if not (math.isfinite(prior_tokens_per_expert) and prior_tokens_per_expert > 0.0) or num_classes < 1:
            raise PlacementError("prior_tokens_per_expert is above 0, num_classes at least 1")
        self._half_life_s, self._num_classes = half_life_s, num_classes
        self._prior_per_expert = prior_tokens_per_expert
        self._names: list[str] = []
        self._mixes: Floats = np.zeros((0, 0))  # A
        self._shares: Floats = np.zeros((0, 0, 0))  # B, (classes, layers, experts)
        self._common: Floats = np.zeros((0, 0))  # sum d n q
        self._tokens = 0.0  # sum d n
        self._class_tokens: Floats = np.zeros(0)  # sum d n m
        self._as_of_s = -math.inf

    def add(self, tokens: Tokens, class_tokens: Mapping[str, float], ended_at_s: float) -> bool:
        """Learn from a window of an engine's load; False where the router saw nothing of it. Raises PlacementError."""
        check_tokens(tokens, "window", shape=_shape(self._common) if self._names else None)
        if not all(math.isfinite(count) and count >= 0.0 for count in class_tokens.values()):
            raise PlacementError(f"tokens of classes are finite, none below 0: {dict(class_tokens)}")
        if not self._names:
            self._common, self._shares = np.zeros_like(tokens), np.zeros((0, *tokens.shape))
        self._let_in(class_tokens)
        known = np.array([class_tokens.get(name, 0.0) for name in self._names])
        if not known.any():
            return False
        mix = known / known.sum()
        weight = self._aged(ended_at_s) * float(tokens.sum(axis=1).mean())
        shares = tokens / tokens.sum(axis=1, keepdims=True)
        self._mixes += weight * np.outer(mix, mix)
        self._shares += weight * mix[:, None, None] * shares
        self._common += weight * shares
        self._class_tokens += weight * mix
        self._tokens += weight
        return True

    def estimate(self) -> Profiles | None:
        """None before the first window."""
        if not self._tokens:
            return None
        common: Floats = self._common / self._common.sum(axis=1, keepdims=True)
        prior = self._prior_per_expert * common.shape[1]
        matrix = self._mixes + prior * np.eye(len(self._names))
        right = self._shares + prior * common
        shares = np.linalg.solve(matrix, right.reshape(len(right), -1)).reshape(right.shape)
        below = np.flatnonzero((shares < 0.0).any(axis=(0, 2)))
        if len(below):
            shares[:, below] = _within_simplex(matrix, right[:, below], shares[:, below])
        shares /= shares.sum(axis=2, keepdims=True)  # rounding
        return Profiles(tuple(self._names), shares, self._confidence(prior), self._class_tokens / self._tokens, common)

    def _confidence(self, prior: float) -> Floats:
        mean = self._class_tokens / self._tokens
        apart = np.eye(len(mean)) - np.outer(mean, mean) / (mean @ mean)
        values, vectors = np.linalg.eigh(apart @ self._mixes @ apart)
        values = np.maximum(values, 0.0)
        known = (vectors**2 * (values / (values + prior))).sum(axis=1)
        # A class that is all there is differs from the common profile in nothing.
        part = np.diagonal(apart)
        found: Floats = np.divide(known, part, out=np.ones_like(known), where=part > _LEAST_PART)
        return np.clip(found, 0.0, 1.0)

    def _aged(self, ended_at_s: float) -> float:
        """The weight of a window now; older ones decay if it is the latest."""
        if not math.isfinite(ended_at_s):
            raise PlacementError(f"a window that ended at {ended_at_s}")
        if ended_at_s <= self._as_of_s:
            return math.exp2((ended_at_s - self._as_of_s) / self._half_life_s)
        left = math.exp2((self._as_of_s - ended_at_s) / self._half_life_s)
        for sums in (self._mixes, self._shares, self._common, self._class_tokens):
            sums *= left
        self._tokens *= left
        self._as_of_s = ended_at_s
        return 1.0

    def _let_in(self, class_tokens: Mapping[str, float]) -> None:
        """Rows for classes that are new, in order of name, while there is room."""
        new = sorted(name for name, count in class_tokens.items() if count > 0.0 and name not in self._names)
        new = new[: self._num_classes - len(self._names)]
        if not new:
            return
        old, size = len(self._names), len(self._names) + len(new)
        mixes, shares = np.zeros((size, size)), np.zeros((size, *self._common.shape))
        mixes[:old, :old], shares[:old] = self._mixes, self._shares
        self._mixes, self._shares = mixes, shares
        self._class_tokens = np.concatenate((self._class_tokens, np.zeros(len(new))))
        self._names += new


def _shape(tokens: Tokens) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1]


def _within_simplex(matrix: Floats, right: Floats, start: Floats) -> Floats:
    """Minimum of tr(P'AP) / 2 - tr(B'P) over (classes, layers, experts) whose layers are on the simplex."""
    values = np.linalg.eigvalsh(matrix)
    steep = float(values[-1])
    root = math.sqrt(steep / float(values[0]))
    momentum = (root - 1.0) / (root + 1.0)
    here = ahead = on_simplex(start)
    for _ in range(_MOST_STEPS):
        slope = np.tensordot(matrix, ahead, 1) - right
        found = on_simplex(ahead - slope / steep)
        moved = found - here
        ahead = found + momentum * moved
        here = found
        if np.abs(moved).max() < _STEP:
            break
    return here


def on_simplex(rows: Floats) -> Floats:
    """The nearest point to each row (last axis) with no entry below 0 and a sum of 1."""
    falling = -np.sort(-rows, axis=-1)
    over = (np.cumsum(falling, axis=-1) - 1.0) / np.arange(1, rows.shape[-1] + 1)
    count = (falling > over).sum(axis=-1, keepdims=True)  # at least 1
    level = np.take_along_axis(over, count - 1, axis=-1)
    found: Floats = np.maximum(rows - level, 0.0)
    return found
