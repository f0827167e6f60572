"""Predicted seconds of every way to serve a request. Every term is a time: they add without weights (law 7). Pure.

For a prompt of n tokens of which a worker reaches o in its caches (o_dev of them on the device):

    prefill_s(w)  = c0 + c1 (n - o)/1000 + c2 (n - o) n / 10^6     coefficients fitted per worker (router/latency.py)
    fetch_s(w)    = (o - o_dev) * lower-tier seconds a token
    queue_s(w)    = predicted seconds of the prompts promised to w and not yet over, by all router replicas
    added_s(d)    = d1 + d2 n/1000
    step_s(d)     = d0 + d1 seqs + d2 kv_tokens/1000 + added(d)
    transfer_s(d) = t0 + t1 (n - o_dev(d))/1000                    what d holds already does not travel

    local:     ttft = queue(d) + fetch(d) + prefill(d) + step(d)
               harm = stall(d) + slow_down(d)
    hand-off:  ttft = queue(p) + fetch(p) + prefill(p) + transfer(d) + step(d)
               harm = slow_down(d)
    stall(d)     = seqs(d) * stall coefficient * (n - o)/1000      a prompt stalls the sequences that run beside it
    slow_down(d) = added(d) * seqs(d) * steps that they share

Harm is in seconds of TTFT (`exchange_rate`). Whether to hand off at all falls out of the comparison. No term depends on
both p and d, so the cheapest pair is the cheapest p with the cheapest d, and all pairs need not be formed.
"""

import math

import numpy as np

from router.decode_room import DecodeRoom
from router.fleet_table import Column
from router.lazy import lazy
from router.types import Forecast, Slo
from router.view import Side, View

# Device <- host and device <- disk, seconds a token: a 70B model's 320 KiB a token over 20 and 3 GB/s. Priors.
HOST_FETCH_S_PER_TOKEN = 1.6e-5
DISK_FETCH_S_PER_TOKEN = 1.1e-4
# Without any weight on harm, requests pile up on a few workers.
_RATE, _LEAST_RATE = 0.1, 0.03
_MOST_SEQS = 1024.0  # that an engine is taken to run at a time
_LEAST_ADDED_S = 1e-7


class PrefillCosts:
    """Seconds of computing the prompt on each row of a side."""

    def __init__(self, side: Side, num_prompt_tokens: int) -> None:
        self.side = side
        self.num_prompt_tokens = num_prompt_tokens

    @property
    def overlap_tokens(self) -> Column:
        """Tokens that need not be computed."""
        return self.side.reachable_tokens[1]

    @lazy
    def fetch_s(self) -> Column:
        """Bringing blocks of lower tiers to the device."""
        device, (host, disk) = self.side.device_tokens, self.side.reachable_tokens
        if disk is device:
            return np.zeros(len(device))
        fetched: Column = (host - device) * HOST_FETCH_S_PER_TOKEN + (disk - host) * DISK_FETCH_S_PER_TOKEN
        return fetched

    @lazy
    def prefill_s(self) -> Column:
        """Computing what no cache holds."""
        new = self.num_prompt_tokens - self.overlap_tokens
        params = self.side.params
        return params[:, 0] + new * (params[:, 1] / 1e3 + params[:, 2] * (self.num_prompt_tokens / 1e6))

    @lazy
    def ready_s(self) -> Column:
        """Until the prompt is computed: queue, fetch, prefill."""
        return self.side.backlog_s + self.fetch_s + self.prefill_s


class DecodeCosts:
    """Seconds of decoding on each row of a side."""

    def __init__(self, side: Side, num_prompt_tokens: int) -> None:
        self.side = side
        self.num_prompt_tokens = num_prompt_tokens

    @lazy
    def added_s(self) -> Column:
        """What the request makes a decode step longer."""
        params = self.side.params
        return params[:, 4] + params[:, 5] * (self.num_prompt_tokens / 1e3)

    @lazy
    def step_s(self) -> Column:
        """One decode step with the request in the batch."""
        side, params = self.side, self.side.params
        return params[:, 3] + params[:, 4] * side.seqs + params[:, 5] * (side.kv_tokens / 1e3) + self.added_s

    @lazy
    def idle_tpot_s(self) -> Column:
        """The gap between two tokens of a sequence alone on each row: no promise below it can be kept there."""
        return (self.side.params[:, 3] + self.added_s) / self.side.tokens_per_step

    @lazy
    def tpot_s(self) -> Column:
        """The gap between two tokens of a sequence: a step with the prompts in it, divided by what it yields."""
        return (self.step_s + self.side.stall_s_per_step) / self.side.tokens_per_step

    @lazy
    def transfer_s(self) -> Column:
        """Blocks that come from a prefill worker; the ones at hand stay."""
        missing = self.num_prompt_tokens - self.side.device_tokens
        return self.side.params[:, 6] + self.side.params[:, 7] * (missing / 1e3)


def exchange_rate(slo: Slo, output_tokens: float) -> float:
    """Seconds of TTFT that a second of somebody's whole answer is worth.

    A target of TTFT is missed by its seconds; a target of TPOT only by as many seconds as the answer has tokens times
    it. So a second that an answer takes longer uses up ttft / (tpot * tokens) of what a second of TTFT does. Where
    nothing was asked for, a tenth: ten seconds for an answer are as good as one for its beginning.
    """
    if not math.isfinite(slo.ttft_s) or not math.isfinite(slo.tpot_s):
        return _RATE
    return min(1.0, max(_LEAST_RATE, slo.ttft_s / (slo.tpot_s * max(1.0, output_tokens))))


def least(costs_s: Column) -> float:
    """The lowest of at least one. A quarter of `min()`'s time on columns as short as these."""
    return costs_s.item(costs_s.argmin())


class Costs:
    """All terms of one decision, computed when asked for.

    The request will run beside the others for `shared_steps`. `harm_rate`: TTFT seconds for a second of harm.
    """

    def __init__(self, view: View, shared_steps: float, harm_rate: float = 1.0) -> None:
        n = view.request.num_prompt_tokens
        self.view = view
        self.shared_steps = shared_steps
        self.harm_rate = harm_rate
        self.prefill = PrefillCosts(view.prefill, n)
        self.local_prefill = PrefillCosts(view.decode, n)
        self.decode = DecodeCosts(view.decode, n)

    @lazy
    def stall_s(self) -> Column:
        """What the sequences on each decode row wait, in sum, while it computes the prompt itself."""
        side = self.view.decode
        new_tokens = self.local_prefill.num_prompt_tokens - self.local_prefill.overlap_tokens
        return side.seqs * side.stall_s_per_1k_tokens * (new_tokens * (self.harm_rate / 1e3))

    @lazy
    def slow_down_s(self) -> Column:
        """What the sequences on each decode row wait, in sum, because the batch is larger and its steps are longer."""
        return self.decode.added_s * self.view.decode.seqs * (self.shared_steps * self.harm_rate)

    @lazy
    def local_s(self) -> Column:
        """Cost of each decode row doing its own prefill: TTFT and harm."""
        return self.local_prefill.ready_s + self.decode.step_s + self.stall_s + self.slow_down_s

    @lazy
    def handed_s(self) -> Column:
        """The decode rows' share of the cost of a hand-off; the prefill rows' share is `prefill.ready_s`."""
        return self.decode.transfer_s + self.decode.step_s + self.slow_down_s

    def forecast(self, prefill: int | None, decode: int) -> Forecast:
        """The terms of one way, by positions in the view's sides (not rows)."""
        costs, at = (self.local_prefill, decode) if prefill is None else (self.prefill, prefill)
        step_s, harm_s = self.decode.step_s.item(decode), self.slow_down_s.item(decode)
        if prefill is None:
            harm_s += self.stall_s.item(decode)
        return Forecast(
            costs.side.backlog_s.item(at),
            costs.fetch_s.item(at),
            costs.prefill_s.item(at),
            0.0 if prefill is None else self.decode.transfer_s.item(decode),
            step_s,
            harm_s,
            self.decode.tpot_s.item(decode),
            costs.overlap_tokens.item(at),
        )


def keeps_promises(
    costs: Costs, tpot_s: float, *, with_margin: bool = True
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Decode rows where one more sequence breaks nobody's TPOT: neither those promised there, nor `tpot_s`, its own.

    Stock engines step every running sequence in every iteration, so without speculation the rule is step(B + 1) <= the
    tightest target: SCORPIO's virtual batch (arXiv 2505.23022) with all weights 1. With it, a step yields E tokens of a
    sequence and the rule is E >= step / target: AdaServe's budget test (arXiv 2501.12162, Algorithm 1) where, as in
    stock engines, every sequence gets the same draft.
    """
    side, tpots_s = costs.view.decode, costs.decode.tpot_s
    if with_margin:
        tpots_s = tpots_s * side.step_margin
    kept: np.ndarray[tuple[int], np.dtype[np.bool_]] = tpots_s <= np.minimum(side.min_tpot_s, tpot_s)
    return kept


def has_room(costs: Costs, kv_tokens: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Decode rows whose KV cache takes `kv_tokens` more; an idle one always does: the engine has the last word.

    Blocks that a row holds already are shared and not needed again.
    """
    side = costs.view.decode
    needed = side.kv_tokens + kv_tokens - side.device_tokens
    fits: np.ndarray[tuple[int], np.dtype[np.bool_]] = (needed <= side.kv_total_tokens) | (side.seqs == 0)
    return fits


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
    side, tpots_s = costs.view.decode, costs.decode.tpot_s
    target_s = np.minimum(side.min_tpot_s, tpot_s)
    if with_margin:
        target_s = target_s / side.step_margin
    added_s = np.maximum(costs.decode.added_s / side.tokens_per_step, _LEAST_ADDED_S)
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
