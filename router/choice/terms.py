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

from collections.abc import Callable
from typing import NamedTuple

from router.choice.view import Amount, Amounts, Held
from router.fleet.table import (
    BUSY,
    C0,
    C1,
    C2,
    D0,
    D1,
    D2,
    KV,
    KV_TOTAL,
    MIN_TPOT,
    PROMPT_PER_STEP,
    REMOTE_BUSY,
    SEQS,
    STALL,
    STEP_MARGIN,
    T0,
    T1,
    TOKENS_PER_STEP,
    UNSHARED,
)

# Device <- host and device <- disk, seconds a token: a 70B model's 320 KiB a token over 20 and 3 GB/s. Priors.
HOST_FETCH_S_PER_TOKEN = 1.6e-5
DISK_FETCH_S_PER_TOKEN = 1.1e-4


class Given(NamedTuple):
    """What a decision's terms have in common."""

    prompt_tokens: int
    now_s: float
    num_others: int  # router replicas beside this one
    shared_steps: float  # that the request will run beside the others
    harm_rate: float  # TTFT seconds for a second of harm


class PrefillTerms(NamedTuple):
    """Of computing the prompt, in seconds."""

    backlog_s: Amount  # prompts before it
    fetch_s: Amount  # bringing blocks of lower tiers to the device
    prefill_s: Amount  # computing what no cache holds
    ready_s: Amount  # until the prompt is computed: all of these
    new_tokens: Amount  # that no cache holds


class DecodeTerms(NamedTuple):
    """Of decoding, and of what a prompt that is computed there does to the others."""

    added_s: Amount  # what the request makes a decode step longer
    step_s: Amount  # one decode step with the request in the batch
    tpot_s: Amount  # the gap between two tokens: a step with the prompts in it, divided by what it yields
    slow_down_s: Amount  # what the others wait, in sum, because the batch is larger and its steps are longer
    stall_s: Amount  # what they wait, in sum, while it computes the prompt itself


def prefill_terms(c: Amounts, held: Held, given: Given, maximum: Callable[[Amount, float], Amount]) -> PrefillTerms:
    """`c`: one row of `FleetTable.seen`, or columns of several. `maximum`: of such an amount and a number."""
    device, host, disk = held
    backlog_s = maximum(c[BUSY] - given.now_s, 0.0)
    if given.num_others:
        others_s = maximum(c[REMOTE_BUSY] - given.now_s, 0.0)
        backlog_s = backlog_s + others_s + c[UNSHARED] * given.num_others
    new_tokens = given.prompt_tokens - disk
    prefill_s = c[C0] + new_tokens * (c[C1] / 1e3 + c[C2] * (given.prompt_tokens / 1e6))
    if disk is device:
        return PrefillTerms(backlog_s, 0.0, prefill_s, backlog_s + prefill_s, new_tokens)
    fetch_s = (host - device) * HOST_FETCH_S_PER_TOKEN + (disk - host) * DISK_FETCH_S_PER_TOKEN
    return PrefillTerms(backlog_s, fetch_s, prefill_s, backlog_s + fetch_s + prefill_s, new_tokens)


def decode_terms(c: Amounts, new_tokens: Amount, given: Given) -> DecodeTerms:
    """`new_tokens`: of the prompt, that would have to be computed there."""
    seqs, stall_s_per_1k = c[SEQS], c[STALL]
    added_s = c[D1] + c[D2] * (given.prompt_tokens / 1e3)
    step_s = c[D0] + c[D1] * seqs + c[D2] * (c[KV] / 1e3) + added_s
    return DecodeTerms(
        added_s,
        step_s,
        (step_s + stall_s_per_1k * (c[PROMPT_PER_STEP] / 1e3)) / c[TOKENS_PER_STEP],
        added_s * seqs * (given.shared_steps * given.harm_rate),
        seqs * stall_s_per_1k * (new_tokens * (given.harm_rate / 1e3)),
    )


def keeps_tpots(c: Amounts, tpots_s: Amount, tpot_s: float, *, with_margin: bool) -> Amount:
    """See `Costs.keeps_promises`."""
    if with_margin:
        tpots_s = tpots_s * c[STEP_MARGIN]
    return (tpots_s <= c[MIN_TPOT]) & (tpots_s <= tpot_s)


def fits(c: Amounts, held: Held, kv_tokens: int) -> Amount:
    """See `Costs.has_room`."""
    return (c[KV] + kv_tokens - held[0] <= c[KV_TOTAL]) | (c[SEQS] == 0.0)


def transfer_s(c: Amounts, held: Held, given: Given) -> Amount:
    """Blocks that come from a prefill worker; the ones at hand stay."""
    return c[T0] + c[T1] * ((given.prompt_tokens - held[0]) / 1e3)
