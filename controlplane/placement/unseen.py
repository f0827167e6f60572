"""Loads that have not been seen, made up from those that have. Pure and deterministic.

A model is trained with a loss that gives every expert the same tokens over all of its data. So an expert that gets
little in every domain seen gets the more in one that is not: OLMoE's busiest expert of a domain is, of 64, mostly among
the ten that are idlest in the other three. With r_ke = tokens of expert e in load k over the even load,

    deficit_e = sum_k (1 - r_ke)

and a made-up load gives the tokens of one of the loads seen, sorted, to the experts in order of deficit_e + z_e, z
standard normal, since the deficit tells little of which domain comes next. Over the made-up loads each expert has the
quantiles of z once, in an order of its own (Latin hypercube: McKay, Beckman, Conover 1979).

That is a belief. Where the loads seen say otherwise, their correlation over experts being above zero by two standard
errors of independent ones, they are themselves the best guess, and none is made up.

Planned for with `risk` 0: the worst of many made-up loads says nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import Scenario, scenario_tokens

_NUM_LOADS = 60
_DEVIATIONS = 2.0
_SEEN_WEIGHT = 0.3  # of the loads seen, all together


def with_unseen(
    scenarios: Sequence[Scenario], *, num_loads: int = _NUM_LOADS, seen_weight: float = _SEEN_WEIGHT
) -> list[Scenario]:
    """The loads seen, and made-up ones unless those contradict, for a placement that shall serve what none has seen."""
    seen = scenario_tokens(scenarios)
    _, num_layers, num_experts = seen.shape
    surplus = seen * num_experts - 1.0
    if _are_alike(surplus):
        return list(scenarios)
    deficit = -surplus.sum(axis=0)
    quantiles = np.array([NormalDist().inv_cdf((number + 0.5) / num_loads) for number in range(num_loads)])
    generator = np.random.default_rng(0)
    each = np.broadcast_to(quantiles[:, None, None], (num_loads, num_layers, num_experts))
    noise = generator.permuted(each, axis=0)
    sorted_seen = -np.sort(-seen, axis=2)
    total = sum(scenario.weight for scenario in scenarios)
    found = [replace(item, weight=seen_weight * item.weight / total) for item in scenarios]
    for number in range(num_loads):
        order = np.argsort(-(deficit + noise[number]), axis=1, kind="stable")
        tokens = np.empty((num_layers, num_experts))
        np.put_along_axis(tokens, order, sorted_seen[number % len(seen)], axis=1)
        found.append(Scenario(f"unseen {number}", tokens, (1.0 - seen_weight) / num_loads))
    return found


def _are_alike(surplus: NDArray[np.float64]) -> bool:
    """Whether experts busy in one load are busy in others, from r - 1 of (loads, layers, experts)."""
    num_loads = len(surplus)
    if num_loads < 2:
        return False
    both = surplus.sum(axis=0)
    num_pairs = num_loads * (num_loads - 1) / 2
    covariance = (both * both - (surplus * surplus).sum(axis=0)).sum() / (2 * num_pairs)
    variance = (surplus * surplus).sum() / num_loads
    return bool(covariance > _DEVIATIONS / np.sqrt(both.size * num_pairs) * variance)
