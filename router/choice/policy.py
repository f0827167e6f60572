"""Least cost in seconds: P and D chosen jointly, local prefill being one of the ways. Pure.

Near-equals. Several routers decide at once, each without having seen the others' last decisions, and all would pick the
one worker that has just become idle. So the draw is made among all ways whose cost is within what is uncertain: a
tolerance of the forecast, and with several replicas one prompt like this one, which another may have sent to a worker
since the last exchange. Of two random ones among these the cheaper is taken (power of two choices, Mitzenmacher 2001).
"""

from math import inf
from random import Random

from router.choice.cost import Costs, least, near
from router.choice.interfaces import Pick
from router.choice.view import Amounts, View

_TOLERANCE = 0.03  # of the best cost; forecasts are not better than that
_TOLERANCE_S = 0.001


class LeastCost:
    """The shipped policy. Ties and near-ties are broken by the seeded `rng`."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """The cheapest way, or one of the near-equals; None: nobody can decode. Linear in the candidates."""
        if not len(view.decode_rows):
            return None
        local_s = least(costs.local_s) if view.may_prefill_locally else inf
        ready_s, rest_s = inf, inf
        if len(view.prefill_rows):
            ready_s, rest_s = least(costs.prefill.ready_s), least(costs.handed_s)
        band_s = self._band_s(view, costs, min(local_s, ready_s + rest_s))
        if local_s <= ready_s + rest_s:
            decode, near = self._draw(costs.local_s, local_s + band_s)
            return Pick(None, decode, near)
        prefill, near_prefill = self._draw(costs.prefill.ready_s, ready_s + band_s)
        decode, near_decode = self._draw(costs.handed_s, rest_s + band_s)
        return Pick(prefill, decode, near_prefill * near_decode)

    def _band_s(self, view: View, costs: Costs, best_s: float) -> float:
        band_s = _TOLERANCE_S + _TOLERANCE * best_s
        others = view.table.num_replicas - 1
        if others:
            side = costs.prefill if len(view.prefill_rows) else costs.local_prefill
            band_s += least(side.prefill_s)
        return band_s

    def _draw(self, costs_s: Amounts, limit_s: float) -> tuple[int, int]:
        """A position of a cost up to the limit, and how many there are."""
        found = near(costs_s, limit_s)
        if len(found) == 1:
            return int(found[0]), 1
        first, second = (int(found[int(self._rng.random() * len(found))]) for _ in range(2))
        return (first if costs_s[first] <= costs_s[second] else second), len(found)
