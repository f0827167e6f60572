"""Least predicted work: the pair, or single worker, whose first token is predicted soonest. Pure.

A request that can be handed off is handed off whenever its model has a prefill pool: that is what the pool is for.
Prefill on the decode worker is the fall-back, for requests that cannot be handed off and for the time when no
prefill worker is left. (A cost that weighs both needs a fitted latency model.)
"""

from collections.abc import Sequence
from random import Random

from router.cost import LatencyPrior, forecast_hand_off, forecast_local
from router.types import Candidate, Choice, Request
from workers.types import Role


class LeastPredictedWork:
    """Choose by forecast; among equals by the seeded `rng`, so that idle workers share the load."""

    def __init__(self, rng: Random, prior: LatencyPrior | None = None) -> None:
        self._rng = rng
        self._prior = prior or LatencyPrior()

    def choose(self, request: Request, prefill: Sequence[Candidate], decode: Sequence[Candidate]) -> Choice | None:
        """The best choice, or None where nobody can decode."""
        choices = [
            Choice(d.worker, p.worker, forecast_hand_off(request, p, d, self._prior))
            for d in decode
            if d.worker.spec.role is Role.DECODE
            for p in prefill
        ]
        if not choices:
            choices = [Choice(d.worker, None, forecast_local(request, d, self._prior)) for d in decode]
        else:
            choices += [
                Choice(d.worker, None, forecast_local(request, d, self._prior))
                for d in decode
                if d.worker.spec.role is Role.MIXED
            ]
        if not choices:
            return None
        best_s = min(choice.forecast.ttft_s for choice in choices)
        return self._rng.choice([choice for choice in choices if choice.forecast.ttft_s <= best_s])
