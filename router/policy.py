"""Least predicted work: the pair, or single worker, whose first token is predicted soonest. Pure.

A request that can be handed off is handed off whenever its model has a prefill pool: that is what the pool is for.
Prefill on the decode worker is the fall-back, for requests that cannot be handed off and for the time when no
prefill worker is left. (A cost that weighs both needs a fitted latency model.)
"""

from collections.abc import Callable, Sequence
from random import Random

from router.cost import LatencyPrior, decode_step_s, forecast_hand_off, forecast_local, prefill_queue_s
from router.types import Candidate, Choice, Request
from workers.types import Role


class LeastPredictedWork:
    """Choose by forecast; among equals by the seeded `rng`, so that idle workers share the load."""

    def __init__(self, rng: Random, prior: LatencyPrior | None = None) -> None:
        self._rng = rng
        self._prior = prior or LatencyPrior()

    def choose(self, request: Request, prefill: Sequence[Candidate], decode: Sequence[Candidate]) -> Choice | None:
        """The best choice, or None where nobody can decode. Linear in the number of candidates.

        No term of the cost depends on the pair, so the best pair is the best prefill and the best decode worker.
        """
        handing = [d for d in decode if d.worker.spec.role is Role.DECODE] if prefill else []
        local = [d for d in decode if d.worker.spec.role is Role.MIXED or not prefill]
        choices = []
        if handing:
            p = self._cheapest(prefill, prefill_queue_s)
            d = self._cheapest(handing, decode_step_s)
            choices.append(Choice(d.worker, p.worker, forecast_hand_off(request, p, d, self._prior)))
        if local:
            d = self._cheapest(local, lambda c, prior: forecast_local(request, c, prior).ttft_s)
            choices.append(Choice(d.worker, None, forecast_local(request, d, self._prior)))
        return min(choices, key=lambda choice: choice.forecast.ttft_s, default=None)

    def _cheapest(
        self, candidates: Sequence[Candidate], cost_s: Callable[[Candidate, LatencyPrior], float]
    ) -> Candidate:
        costs_s = [cost_s(candidate, self._prior) for candidate in candidates]
        best_s = min(costs_s)
        return self._rng.choice([c for c, c_s in zip(candidates, costs_s, strict=True) if c_s <= best_s])
