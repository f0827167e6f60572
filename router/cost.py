"""Predicted seconds. Every term is a time, so terms add without weights (architecture law 7). Pure.

The rates are a fixed prior, good enough to tell a busy worker from an idle one. They are replaced by a model
fitted per worker from observations; the functions keep their meaning.
"""

from dataclasses import dataclass

from router.types import Candidate, Forecast, Request


@dataclass(frozen=True, slots=True)
class LatencyPrior:
    """Rates of an unknown worker."""

    prefill_tokens_per_s: float = 5_000.0
    decode_step_s: float = 0.025  # one step of one sequence
    decode_step_per_seq_s: float = 0.001  # what each further sequence adds to a step
    transfer_s: float = 0.010  # hand-off of one prompt's blocks


def prefill_queue_s(candidate: Candidate, prior: LatencyPrior) -> float:
    """Time until the worker has computed the prompts that are before this one."""
    waiting_seqs = candidate.worker.load.waiting_seqs
    return candidate.reserved_prefill_tokens / prior.prefill_tokens_per_s + waiting_seqs * prior.decode_step_s


def decode_step_s(candidate: Candidate, prior: LatencyPrior) -> float:
    """One step on this worker with the new sequence in the batch."""
    seqs = max(candidate.reserved_seqs, candidate.worker.load.running_seqs)
    return prior.decode_step_s + seqs * prior.decode_step_per_seq_s


def forecast_local(request: Request, decode: Candidate, prior: LatencyPrior) -> Forecast:
    """Prefill where the answer is decoded: the prompt waits for the prompts before it."""
    return Forecast(
        queue_s=prefill_queue_s(decode, prior) + decode_step_s(decode, prior),
        prefill_s=request.num_prompt_tokens / prior.prefill_tokens_per_s,
        transfer_s=0.0,
    )


def forecast_hand_off(request: Request, prefill: Candidate, decode: Candidate, prior: LatencyPrior) -> Forecast:
    """Prefill on one worker, decode on another."""
    return Forecast(
        queue_s=prefill_queue_s(prefill, prior) + decode_step_s(decode, prior),
        prefill_s=request.num_prompt_tokens / prior.prefill_tokens_per_s,
        transfer_s=prior.transfer_s,
    )
