"""From a request to a choice: who may serve it, whose promises that would break, which way is cheapest. Pure."""

from collections.abc import Callable, Collection
from functools import partial
from math import inf
from typing import Literal

import numpy as np
from msgspec import Struct

from kvstore.types import WorkerId
from router.choice.cost import FEW, Costs, both, count_of, exchange_rate
from router.choice.interfaces import Pick, RoutingPolicy
from router.choice.view import Amounts, View
from router.fleet.table import NO_ROWS, FleetTable, Rows
from router.types import Choice, Considered, Forecast, Overlap, Request
from workers.ranks import engine_of

HandOff = Literal["cost", "always", "never"]


class Chosen(Struct, frozen=True):
    """The best way now, or what stands against every way."""

    choice: Choice | None
    prefill_row: int  # where the prompt would be computed; -1 without a choice
    eligible: Costs  # of all workers that serve the model and route, whatever is promised
    num_tpot_blocked: int  # of these, where the promise of TPOT of somebody would break
    num_kv_blocked: int  # of these, without room for the request's KV
    rivals: Callable[[], tuple[Considered, ...]]  # the choice and the cheapest others; ask before anything is promised

    @property
    def num_eligible(self) -> int:
        """Decode workers that serve the model and route."""
        return len(self.eligible.view.decode_rows)


class Chooser:
    """Applies one policy to views of one table."""

    def __init__(self, table: FleetTable, policy: RoutingPolicy, hand_off: HandOff) -> None:
        self._table = table
        self._policy = policy
        self._hand_off = hand_off

    def choose(
        self,
        request: Request,
        overlap: Overlap,
        excluded: Collection[WorkerId],
        *,
        now_s: float,
        expected_output_tokens: int,
        keep_promises: bool = True,
        with_margin: bool = True,
    ) -> Chosen:
        """The policy's pick among eligible workers. `keep_promises`: only where no promised TPOT breaks."""
        view = self._view(request, overlap, excluded, now_s)
        rate = exchange_rate(request.terms.slo, expected_output_tokens)
        eligible = costs = Costs(view, expected_output_tokens / 2, rate)
        num_eligible = len(view.decode_rows)
        num_tpot, num_kv = 0, 0
        if keep_promises and num_eligible:
            kept = costs.keeps_promises(request.terms.slo.tpot_s, with_margin=with_margin)
            room = costs.has_room(request.num_prompt_tokens + expected_output_tokens)
            num_tpot, num_kv = num_eligible - count_of(kept), num_eligible - count_of(room)
            if num_tpot or num_kv:
                costs = costs.within(both(kept, room))
                view = costs.view
        pick = self._policy.pick(view, costs)
        if pick is None:
            return Chosen(None, -1, eligible, num_tpot, num_kv, tuple)
        prefill_row = view.decode_rows[pick.decode] if pick.prefill is None else view.prefill_rows[pick.prefill]
        choice = self._choice(view, costs, pick)
        rivals = partial(_considered, view, costs, pick, choice.forecast)
        return Chosen(choice, int(prefill_row), eligible, num_tpot, num_kv, rivals)

    def _view(self, request: Request, overlap: Overlap, excluded: Collection[WorkerId], now_s: float) -> View:
        prefill, decode = self._table.eligible(request.model, request.route, request.adapter)
        if not request.can_hand_off or self._hand_off == "never":
            prefill = NO_ROWS
        if request.only is not None:
            prefill, decode = self._within(prefill, request.only), self._within(decode, request.only)
        if excluded:
            prefill, decode = self._without(prefill, excluded), self._without(decode, excluded)
        may_prefill_locally = self._hand_off != "always" or not len(prefill)
        return View(request, overlap, now_s, self._table, prefill, decode, may_prefill_locally)

    def _without(self, rows: Rows, excluded: Collection[WorkerId]) -> Rows:
        engines = {engine_of(worker_id) for worker_id in excluded}
        kept = [row for row in rows if engine_of(self._table.id_at(row)) not in engines]
        return np.array(kept, dtype=np.intp)

    def _within(self, rows: Rows, only: Collection[WorkerId]) -> Rows:
        return np.array([row for row in rows if self._table.id_at(row) in only], dtype=np.intp)

    def _choice(self, view: View, costs: Costs, pick: Pick) -> Choice:
        decode = self._table.state_at(view.decode_rows[pick.decode])
        prefill = None if pick.prefill is None else self._table.state_at(view.prefill_rows[pick.prefill])
        return Choice(
            decode=decode,
            prefill=prefill,
            forecast=costs.forecast(pick.prefill, pick.decode),
            shared_tokens=costs.shared_tokens(pick.decode),
            num_candidates=len(view.decode_rows) + len(view.prefill_rows),
            num_near_equal=pick.num_near_equal,
        )


def _considered(view: View, costs: Costs, pick: Pick, chosen: Forecast) -> tuple[Considered, ...]:
    """The picked way first, then the cheapest others: local ways, and either half of a hand-off exchanged.

    A policy that does not go by cost has no cheapest others.
    """
    ways: dict[tuple[int | None, int], None] = {}
    if costs.are_compared:
        if view.may_prefill_locally:
            ways |= dict.fromkeys((None, d) for d in _cheapest(costs.local_s))
        if len(view.prefill_rows):
            prefill, decode = _cheapest(costs.prefill.ready_s), _cheapest(costs.handed_s)
            ways |= dict.fromkeys((p, decode[0]) for p in prefill)
            ways |= dict.fromkeys((prefill[0], d) for d in decode)
        ways.pop((pick.prefill, pick.decode), None)
    id_at, prefill_row, decode_row = view.table.id_at, view.prefill_rows.item, view.decode_rows.item
    forecasts = [(pick.prefill, pick.decode, chosen), *[(p, d, costs.forecast(p, d)) for p, d in ways]]
    return tuple(
        [
            Considered(None if p is None else id_at(prefill_row(p)), id_at(decode_row(d)), forecast)
            for p, d, forecast in forecasts
        ]
    )


def _cheapest(costs_s: Amounts) -> list[int]:
    """Positions of the two lowest, the lowest first."""
    if len(costs_s) <= FEW:
        return sorted(range(len(costs_s)), key=costs_s.__getitem__)[:2]
    first, others_s = int(costs_s.argmin()), costs_s.copy()
    others_s[first] = inf
    return [first, int(others_s.argmin())]
