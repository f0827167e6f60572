"""Plans for loads that have not been seen, and such loads made up from those that have. Pure and deterministic.

A model is trained with a loss that gives every expert the same tokens over all of its data. So an expert that gets
little in every domain seen gets the more in one that is not: OLMoE's busiest expert of a domain is, of 64, mostly among
the ten that are idlest in the other three. With r_ke = tokens of expert e in load k over the even load,

    score_e = sum_k (1 - r_ke) + z_e               z standard normal, since this tells little of which domain comes next

and a made-up load gives the tokens of one of the loads seen, sorted, to the experts in order of their score. Over the
made-up loads each expert has the quantiles of z once, in an order of its own (Latin hypercube: McKay, Beckman, Conover
1979).

That is a belief. Where the n loads seen say otherwise, their correlation rho over experts being above zero by two
standard errors of independent ones, the next is taken to be to them as they are to each other. With s_ke the r_ke of
mean 0 and deviation 1, the best linear forecast is

    score_e = a sum_k s_ke + sqrt(1 - n rho a) z_e                            a = rho / (1 + (n - 1) rho)

`plan_unseen` places for both with `risk` 0, since the worst of many made-up loads says nothing. A search over them fits
the draws: on other draws of the same belief it is worse than where it began. So made-up loads only choose among plans
that were made without them (controlplane.placement.rings) and EPLB's. Ranks of unequal speed have no rings; then it is
a search.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.cost import Aim
from controlplane.placement.objective import Prices
from controlplane.placement.planner import DEFAULT_AIM, Plan, plan
from controlplane.placement.rings import rings
from controlplane.placement.types import Placement, Scenario, Tokens, Topology, scenario_tokens

_NUM_LOADS, _FEWEST_LOADS = 60, 6
_WORK = 150_000  # slots of all made-up loads that a plan is judged by: some 0.1 s each
_DEVIATIONS = 2.0
_SEEN_WEIGHT = 0.3  # of the loads seen, all together


def plan_unseen(
    scenarios: Sequence[Scenario],
    topology: Topology,
    prices: Prices,
    *,
    previous: Placement | None = None,
    max_moves: int | None = None,
    aim: Aim = DEFAULT_AIM,
) -> Plan:
    """A plan for loads that these are not like, and worth less for these. Tokens are divided as is best for each load:
    of `aim` neither that nor the risk counts."""
    seen = scenario_tokens(scenarios)
    ring = rings(seen, _forecast(seen)[0], topology)
    # Fewer loads for a large model: its layers are many. No clock: the same input has the same plan.
    num_loads = int(np.clip(_WORK // (seen.shape[1] * topology.num_slots), _FEWEST_LOADS, _NUM_LOADS))
    return plan(
        with_unseen(scenarios, num_loads=num_loads),
        topology,
        prices,
        previous=previous,
        max_moves=max_moves,
        aim=replace(aim, risk=0.0, splits_best=True),
        candidates=() if ring is None else (ring,),
    )


def with_unseen(
    scenarios: Sequence[Scenario], *, num_loads: int = _NUM_LOADS, seen_weight: float = _SEEN_WEIGHT
) -> list[Scenario]:
    """The loads seen, and made-up ones."""
    seen = scenario_tokens(scenarios)
    _, num_layers, num_experts = seen.shape
    expected, deviation = _forecast(seen)
    quantiles = np.array([NormalDist().inv_cdf((number + 0.5) / num_loads) for number in range(num_loads)])
    generator = np.random.default_rng(0)
    each = np.broadcast_to(quantiles[:, None, None], (num_loads, num_layers, num_experts))
    noise = deviation * generator.permuted(each, axis=0)
    sorted_seen = -np.sort(-seen, axis=2)
    total = sum(scenario.weight for scenario in scenarios)
    found = [replace(item, weight=seen_weight * item.weight / total) for item in scenarios]
    for number in range(num_loads):
        order = np.argsort(-(expected + noise[number]), axis=1, kind="stable")
        tokens = np.empty((num_layers, num_experts))
        np.put_along_axis(tokens, order, sorted_seen[number % len(seen)], axis=1)
        found.append(Scenario(f"unseen {number}", tokens, (1.0 - seen_weight) / num_loads))
    return found


def _forecast(seen: NDArray[np.float64]) -> tuple[Tokens, float]:
    """(layers, experts) score without z, and the deviation of z, from (loads, layers, experts)."""
    num_loads = len(seen)
    surplus = seen / seen.mean(axis=2, keepdims=True) - 1.0
    if not _are_alike(surplus):
        return -surplus.sum(axis=0), 1.0
    deviation = surplus.std(axis=2, keepdims=True)
    scaled = surplus / np.where(deviation > 0.0, deviation, 1.0)
    both = scaled.sum(axis=0)
    pairs = (both * both - (scaled * scaled).sum(axis=0)).mean()
    rho = float(np.clip(pairs / (num_loads * (num_loads - 1)), 0.0, 1.0))
    slope = rho / (1.0 + (num_loads - 1) * rho)
    return slope * both, float(np.sqrt(max(0.0, 1.0 - num_loads * rho * slope)))


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
