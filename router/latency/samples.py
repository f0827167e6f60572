"""Decode steps as the engine's own counters tell them: the difference between two reports of its load. Pure."""

from typing import NamedTuple

from workers.types import WorkerLoad

MIN_GAPS = 8  # between tokens; fewer are as likely an accident as a measurement


class StepSample(NamedTuple):
    """Decode steps of one engine between two reports. All but `steps` are means over them."""

    mean_itl_s: float  # the gap between a sequence's tokens: the length of a step, also where a step yields several
    running_seqs: float
    kv_tokens: float
    prompt_tokens: float  # computed in the same step
    steps: float


def step_sample(previous: WorkerLoad, current: WorkerLoad) -> StepSample | None:
    """The steps between two reports of one engine; None: too few, or the counters fell (the engine was restarted).

    Every running sequence has one gap a step, so gaps / steps is the mean batch, whatever it was at the two moments of
    the reports. Where the engine does not count its steps, it is taken from these.
    """
    gaps = current.itl_count - previous.itl_count
    seconds = current.itl_sum_s - previous.itl_sum_s
    engine_steps = current.engine_steps - previous.engine_steps
    prompt_tokens = current.computed_prompt_tokens - previous.computed_prompt_tokens
    if gaps < MIN_GAPS or seconds <= 0.0 or engine_steps < 0 or prompt_tokens < 0:
        return None
    reported_seqs = (previous.running_seqs + current.running_seqs) / 2
    running_seqs = max(1.0, gaps / engine_steps if engine_steps else reported_seqs)
    steps = gaps / running_seqs
    return StepSample(
        mean_itl_s=seconds / gaps,
        running_seqs=running_seqs,
        kv_tokens=(previous.kv_tokens_used + current.kv_tokens_used) / 2,
        prompt_tokens=prompt_tokens / steps,
        steps=steps,
    )
