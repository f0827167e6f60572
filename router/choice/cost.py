"""The terms of one decision, for each worker that may serve a request or for one; `terms.py` has the formulas. Pure."""

import math
from collections.abc import Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from router.choice.decode_room import DecodeRoom
from router.choice.lazy import lazy
from router.choice.terms import (
    DecodeTerms,
    Given,
    PrefillTerms,
    decode_terms,
    fits,
    keeps_tpots,
    prefill_terms,
    transfer_s,
)
from router.choice.view import Amounts, Side, View
from router.fleet.table import D0, TOKENS_PER_STEP, Column
from router.types import Forecast, Slo

# Without any weight on harm, requests pile up on a few workers.
_RATE, _LEAST_RATE = 0.1, 0.03
_MOST_SEQS = 1024.0  # that an engine is taken to run at a time
_LEAST_ADDED_S = 1e-7
# Up to so many rows of a side are weighed one by one: numpy takes half a microsecond for a term, however few they are.
FEW = 6


def exchange_rate(slo: Slo, output_tokens: float) -> float:
    """Seconds of TTFT that a second of somebody's whole answer is worth.

    A target of TTFT is missed by its seconds; a target of TPOT only by as many seconds as the answer has tokens times
    it. So a second that an answer takes longer uses up ttft / (tpot * tokens) of what a second of TTFT does. Where
    nothing was asked for, a tenth: ten seconds for an answer are as good as one for its beginning.
    """
    if not math.isfinite(slo.ttft_s) or not math.isfinite(slo.tpot_s):
        return _RATE
    return min(1.0, max(_LEAST_RATE, slo.ttft_s / (slo.tpot_s * max(1.0, output_tokens))))


def least(costs_s: Amounts) -> float:
    """The lowest of at least one."""
    # Of an array `min()` takes four times as long where it is as short as these.
    lowest: float = costs_s.item(costs_s.argmin()) if isinstance(costs_s, np.ndarray) else min(costs_s)
    return lowest


class Costs:
    """All terms of one decision, computed when asked for: of all rows for a policy that compares, else of one row.

    Columns are arrays, or tuples where there are few rows; `column` makes an array of either.
    """

    def __init__(self, view: View, shared_steps: float, harm_rate: float = 1.0) -> None:
        self.view = view
        self.given = Given(
            view.request.num_prompt_tokens, view.now_s, view.table.num_replicas - 1, shared_steps, harm_rate
        )

    @property
    def are_compared(self) -> bool:
        """Somebody has asked what the ways cost."""
        return "local_s" in self.__dict__ or "handed_s" in self.__dict__

    @lazy
    def prefill(self) -> PrefillTerms:
        """Of each prefill row."""
        return _prefill_of(self.view.prefill, self.given)

    @lazy
    def local_prefill(self) -> PrefillTerms:
        """Of each decode row that computes the prompt itself."""
        return _prefill_of(self.view.decode, self.given)

    @lazy
    def decode(self) -> DecodeTerms:
        """Of each decode row."""
        side, new_tokens = self.view.decode, self.local_prefill.new_tokens
        if len(side) > FEW:
            return decode_terms(side.seen, new_tokens, self.given)
        rows = zip(side.by_row, new_tokens, strict=True)
        return DecodeTerms(*zip(*[decode_terms(c, new, self.given) for (c, _), new in rows], strict=True))

    @lazy
    def idle_tpot_s(self) -> Amounts:
        """The gap between two tokens of a sequence alone on each row: no promise below it can be kept there."""
        added_s = self.decode.added_s
        if isinstance(added_s, np.ndarray):
            seen = self.view.decode.seen
            return (seen[D0] + added_s) / seen[TOKENS_PER_STEP]
        rows = zip(self.view.decode.by_row, added_s, strict=True)
        return [(c[D0] + added) / c[TOKENS_PER_STEP] for (c, _), added in rows]

    @lazy
    def transfer_s(self) -> Amounts:
        """Of the blocks that each decode row has not."""
        side = self.view.decode
        if self._in_columns:
            return transfer_s(side.seen, side.held, self.given)
        return [transfer_s(c, held, self.given) for c, held in side.by_row]

    @lazy
    def local_s(self) -> Amounts:
        """Cost of each decode row doing its own prefill: TTFT and harm."""
        ready_s, (_, step_s, _, slow_down_s, stall_s) = self.local_prefill.ready_s, self.decode
        if self._in_columns:
            return ready_s + step_s + stall_s + slow_down_s
        return [a + b + c + d for a, b, c, d in zip(ready_s, step_s, stall_s, slow_down_s, strict=True)]

    @lazy
    def handed_s(self) -> Amounts:
        """The decode rows' share of the cost of a hand-off; the prefill rows' share is `prefill.ready_s`."""
        moved_s, (_, step_s, _, slow_down_s, _) = self.transfer_s, self.decode
        if self._in_columns:
            return moved_s + step_s + slow_down_s
        return [a + b + c for a, b, c in zip(moved_s, step_s, slow_down_s, strict=True)]

    def keeps_promises(self, tpot_s: float, *, with_margin: bool = True) -> Amounts:
        """Decode rows where one more sequence breaks nobody's TPOT: neither those promised there, nor `tpot_s`, its.

        Stock engines step every running sequence in every iteration, so without speculation the rule is step(B + 1) <=
        the tightest target: SCORPIO's virtual batch (arXiv 2505.23022) with all weights 1. With it, a step yields E
        tokens of a sequence and the rule is E >= step / target: AdaServe's budget test (arXiv 2501.12162, Algorithm 1)
        where, as in stock engines, every sequence gets the same draft.
        """
        side, tpots_s = self.view.decode, self.decode.tpot_s
        if self._in_columns:
            return keeps_tpots(side.seen, tpots_s, tpot_s, with_margin=with_margin)
        rows = zip(side.by_row, tpots_s, strict=True)
        return [keeps_tpots(c, gap_s, tpot_s, with_margin=with_margin) for (c, _), gap_s in rows]

    def has_room(self, kv_tokens: int) -> Amounts:
        """Decode rows whose KV cache takes `kv_tokens` more; an idle one always does: the engine has the last word.

        Blocks that a row holds already are shared and not needed again.
        """
        side = self.view.decode
        if self._in_columns:
            return fits(side.seen, side.held, kv_tokens)
        return [fits(c, held, kv_tokens) for c, held in side.by_row]

    def within(self, possible: Sequence[bool]) -> "Costs":
        """The same of some of the decode rows. What is known already is not computed again."""
        chosen = np.asarray(possible, dtype=np.bool_)
        view = self.view.with_decode_rows(self.view.decode_rows[chosen])
        costs, side = Costs(view, self.given.shared_steps, self.given.harm_rate), self.view.decode
        view.decode.seen = side.seen[:, chosen]
        if self._in_columns:
            view.decode.held = tuple(_among(amount, chosen) for amount in side.held)
        else:
            view.decode.by_row = list(compress(side.by_row, possible))
        costs.local_prefill = PrefillTerms(*(_among(term, chosen) for term in self.local_prefill))
        costs.decode = DecodeTerms(*(_among(term, chosen) for term in self.decode))
        return costs

    def forecast(self, prefill: int | None, decode: int) -> Forecast:
        """The terms of one way, by positions in the view's sides (not rows)."""
        if "decode" in self.__dict__:
            return self._forecast_of_columns(prefill, decode)
        side, given = self.view.decode, self.given
        c, held = side.seen_at(decode), side.held_at(decode)
        of_prompt = prefill_terms(c, held, given, max)
        terms = decode_terms(c, of_prompt.new_tokens, given)
        harm_s, moved_s, overlap_tokens = terms.slow_down_s, 0.0, held[2]
        if prefill is None:
            harm_s += terms.stall_s
        else:
            moved_s = transfer_s(c, held, given)
            c, held = self.view.prefill.seen_at(prefill), self.view.prefill.held_at(prefill)
            of_prompt, overlap_tokens = prefill_terms(c, held, given, max), held[2]
        backlog_s, fetch_s, prefill_s, _, _ = of_prompt
        return Forecast(backlog_s, fetch_s, prefill_s, moved_s, terms.step_s, harm_s, terms.tpot_s, overlap_tokens)

    def shared_tokens(self, decode: int) -> float:
        """Of the prompt, that a decode row has on its device."""
        side = self.view.decode
        shared: float = _item(side.held[0], decode) if "held" in side.__dict__ else side.held_at(decode)[0]
        return shared

    @property
    def _in_columns(self) -> bool:
        return isinstance(self.decode.step_s, np.ndarray)

    def _forecast_of_columns(self, prefill: int | None, decode: int) -> Forecast:
        terms = self.decode
        harm_s = _item(terms.slow_down_s, decode)
        if prefill is None:
            at, of_prompt, moved_s = decode, self.local_prefill, 0.0
            harm_s += _item(terms.stall_s, decode)
        else:
            at, of_prompt, moved_s = prefill, self.prefill, _item(self.transfer_s, decode)
        return Forecast(
            _item(of_prompt.backlog_s, at),
            _item(of_prompt.fetch_s, at),
            _item(of_prompt.prefill_s, at),
            moved_s,
            _item(terms.step_s, decode),
            harm_s,
            _item(terms.tpot_s, decode),
            float(self.given.prompt_tokens - _item(of_prompt.new_tokens, at)),
        )


def count_of(flags: Amounts) -> int:
    """How many of them are true."""
    if isinstance(flags, np.ndarray):
        return int(np.count_nonzero(flags))
    number: int = flags.count(True)
    return number


def both(flags: Amounts, others: Amounts) -> Sequence[bool]:
    """Where both are true."""
    return flags & others if isinstance(flags, np.ndarray) else [a and b for a, b in zip(flags, others, strict=True)]


def near(costs_s: Amounts, limit_s: float) -> Sequence[int]:
    """Positions of costs up to a limit."""
    if isinstance(costs_s, np.ndarray):
        positions: list[int] = (costs_s <= limit_s).nonzero()[0].tolist()
        return positions
    return [at for at, cost_s in enumerate(costs_s) if cost_s <= limit_s]


def column(amounts: Amounts) -> Column:
    """An array of the terms of each row."""
    return np.asarray(amounts, dtype=np.float64)


def _prefill_of(side: Side, given: Given) -> PrefillTerms:
    if len(side) > FEW:
        return prefill_terms(side.seen, side.held, given, np.maximum)
    return PrefillTerms(*zip(*[prefill_terms(c, held, given, max) for c, held in side.by_row], strict=True))


def _item(amounts: Amounts, at: int) -> float:
    if isinstance(amounts, float):
        return amounts
    item: float = amounts.item(at) if isinstance(amounts, np.ndarray) else amounts[at]
    return item


def _among(amounts: Amounts, chosen: NDArray[np.bool_]) -> Amounts:
    if isinstance(amounts, np.ndarray):
        return amounts[chosen]
    return amounts if isinstance(amounts, float) else tuple(compress(amounts, chosen))


def decode_room(
    costs: Costs,
    *,
    tpot_s: float,
    kv_tokens: int,
    output_tokens: int,
    with_margin: bool = True,
    num_replicas: int = 1,
) -> DecodeRoom:
    """How many such requests the decode rows take, and at what rate more; each replica counts on its part of both.

        by_tpot = 1 + (target / margin - tpot) / added     target: the tightest there and `tpot_s`; tpot: with one more
        by_kv   = free KV tokens / those that it needs
        room    = the lesser, rounded down
        ends    = (seqs + room) * part / (tokens of an answer * tpot with so many)
                                                           part: what one that ends leaves of what one of these needs

    A row that is too slow now and whose own promises are looser counts for nothing: others may keep it so.
    """
    side, tpots_s = costs.view.decode, column(costs.decode.tpot_s)
    target_s = np.minimum(side.min_tpot_s, tpot_s)
    if with_margin:
        target_s = target_s / side.step_margin
    added_s = np.maximum(column(costs.decode.added_s) / side.tokens_per_step, _LEAST_ADDED_S)
    by_tpot = 1.0 + (target_s - tpots_s) / added_s
    needed = np.maximum(kv_tokens - side.device_tokens, 1.0)
    by_kv = (side.kv_total_tokens - side.kv_tokens) / needed
    by_kv = np.where(side.seqs == 0.0, np.maximum(by_kv, 1.0), by_kv)  # as in `has_room`
    room = np.floor(np.minimum(np.minimum(by_tpot, by_kv), _MOST_SEQS - side.seqs))
    running, more = np.maximum(side.seqs, 1.0), np.maximum(room, 0.0)
    part = np.where(side.kv_tokens > 0.0, np.minimum(1.0, side.kv_tokens / (running * needed)), 1.0)
    full_tpots_s = tpots_s + np.maximum(more - 1.0, 0.0) * added_s
    ends_per_s = (running + more) * part / (output_tokens * full_tpots_s)
    counts = (by_tpot >= 1.0) | (side.min_tpot_s <= tpot_s)
    return DecodeRoom(room[counts] / num_replicas, ends_per_s[counts] / num_replicas)
