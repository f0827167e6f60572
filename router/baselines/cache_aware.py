"""The cache-aware policy of SGLang's router and of its fork vllm-router. Pure.

    if max - min > abs and max > rel * min in flight: the shortest queue
    elif the best match > cache_threshold of the prompt: the worker with the best match
    else: sglang the smallest tree, vllm-router the shortest queue

Source: sgl-project/sglang `sgl-router/src/policies/cache_aware.rs` with the defaults of its command line (threshold
0.3, abs 64, rel 1.5); vllm-project/router `src/policies/cache_aware.rs` with the defaults of its config (0.5, 32, 1.1).
Their examples for P/D: cache-aware for prefill, power of two (sglang) or shortest queue (vllm-router) for decode.
What differs: matches come from the exact index, in place of a radix tree over the characters that this router sent;
the tree's size is approximated by the KV tokens in use, and of several best matches one is drawn.
"""

from dataclasses import dataclass
from random import Random

from router.baselines.load import LeastLoaded, PowerOfTwo
from router.baselines.pools import PerPool, in_flight, least, least_among, matched
from router.choice.view import Side, View


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When load is unequal, and when a match is worth following."""

    match: float  # share of the prompt
    balance_abs: float  # requests in flight
    balance_rel: float


SGLANG = Thresholds(0.3, 64, 1.5)
VLLM_ROUTER = Thresholds(0.5, 32, 1.1)


class CacheAware:
    """Affinity while load is balanced."""

    def __init__(self, rng: Random, thresholds: Thresholds, *, cold_to_smallest_tree: bool) -> None:
        self._rng = rng
        self._thresholds = thresholds
        self._cold_to_smallest_tree = cold_to_smallest_tree

    def __call__(self, view: View, side: Side) -> int:
        """The worker's position."""
        load, limits = in_flight(view, side), self._thresholds
        highest, lowest = float(load.max()), float(load.min())
        if highest - lowest > limits.balance_abs and highest > limits.balance_rel * lowest:
            return least(load, self._rng)
        match = matched(view, side)
        if match.max() > limits.match:
            return least(-match, self._rng)
        return least(side.kv_tokens if self._cold_to_smallest_tree else load, self._rng)


def sglang(rng: Random) -> PerPool:
    """SGLang's router."""
    rule = CacheAware(rng, SGLANG, cold_to_smallest_tree=True)
    return PerPool(mixed=rule, prefill=rule, decode=PowerOfTwo(rng))


def vllm_router(rng: Random) -> PerPool:
    """vllm-router."""
    rule = CacheAware(rng, VLLM_ROUTER, cold_to_smallest_tree=False)
    return PerPool(mixed=rule, prefill=rule, decode=LeastLoaded(rng))


class RayPrefix:
    """Ray Serve LLM's prefix-aware router.

        if max - min > imbalanced_threshold in flight: power of two choices
        elif the best match >= 10 % of the prompt: the shortest queue among the workers with the best match
        else: the shortest queue among the workers with the smallest tree

    Source: ray-project/ray `python/ray/llm/_internal/serve/routing_policies/prefix_aware/prefix_aware_router.py`, with
    its defaults: the imbalance threshold is infinite, so that load never breaks affinity. P/D: each deployment has its
    own router, and decode keeps Serve's power of two. What differs: as above, and smallest tree means KV in use.
    """

    def __init__(self, rng: Random, imbalanced_threshold: float = float("inf"), match_rate: float = 0.1) -> None:
        self._rng = rng
        self._imbalanced_threshold = imbalanced_threshold
        self._match_rate = match_rate
        self._fallback = PowerOfTwo(rng)

    def __call__(self, view: View, side: Side) -> int:
        """The worker's position."""
        load = in_flight(view, side)
        if load.max() - load.min() > self._imbalanced_threshold:
            return self._fallback(view, side)
        match = matched(view, side)
        if match.max() >= self._match_rate:
            return least_among(load, match == match.max(), self._rng)
        return least_among(load, side.kv_tokens == side.kv_tokens.min(), self._rng)


def ray_prefix(rng: Random) -> PerPool:
    """Ray Serve LLM."""
    rule = RayPrefix(rng)
    return PerPool(mixed=rule, prefill=rule, decode=PowerOfTwo(rng))
