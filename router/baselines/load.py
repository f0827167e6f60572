"""Policies that know no caches. Pure.

Round robin: the default of production-stack (`routers/routing_logic.py`) and of plain Kubernetes services.
Least loaded: fewest requests in flight, as HAProxy's leastconn and Dynamo's `least-loaded`.
Power of two choices: the less loaded of two random workers (Mitzenmacher 2001), the default of Ray Serve
(`request_router/pow_2_router.py`) and a policy of vllm-router (`policies/power_of_two.rs`).
What differs: in-flight counts are those of all router replicas; the peers count their own, or probe.
"""

from random import Random

from router.baselines.pools import PerPool, in_flight, least
from router.choice.view import Side, View


class RoundRobin:
    """Each worker of a pool in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def __call__(self, view: View, side: Side) -> int:
        """The next position."""
        self._turn += 1
        return self._turn % len(side)


class LeastLoaded:
    """The worker with the fewest requests in flight."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def __call__(self, view: View, side: Side) -> int:
        """Its position."""
        return least(in_flight(view, side), self._rng)


class PowerOfTwo:
    """The less loaded of two workers drawn at random."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def __call__(self, view: View, side: Side) -> int:
        """Its position."""
        if len(side) == 1:
            return 0
        first, second = self._rng.sample(range(len(side)), 2)
        load = in_flight(view, side)
        return first if load[first] <= load[second] else second


def round_robin(rng: Random) -> PerPool:
    """In turn, in each pool."""
    return PerPool(mixed=RoundRobin(), prefill=RoundRobin(), decode=RoundRobin())


def least_loaded(rng: Random) -> PerPool:
    """Fewest requests in flight, in each pool."""
    rule = LeastLoaded(rng)
    return PerPool(mixed=rule, prefill=rule, decode=rule)


def power_of_two(rng: Random) -> PerPool:
    """The better of two, in each pool."""
    rule = PowerOfTwo(rng)
    return PerPool(mixed=rule, prefill=rule, decode=rule)
