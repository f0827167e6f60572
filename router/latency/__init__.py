"""The latency model of one worker, fitted while it serves.

    prefill   c0 * prompts + c1 * new tokens / 1000 + c2 * (new * context tokens) / 10^6     dispatch to end of prefill
    step      d0 + d1 * sequences + d2 * KV tokens / 1000                                    one decode step
    transfer  t0 + t1 * tokens / 1000                                                        hand-off of KV blocks

All are linear in their coefficients, so a prompt that stood behind others is a sample too: what was left of their work
when it came is added. The shapes are DistServe's (arXiv 2401.09670). Coefficients start from a prior and are fitted by
recursive least squares.
"""

from router.latency.prior import LatencyParams, LatencyPrior
from router.latency.samples import StepSample, step_sample
from router.latency.worker_latency import WorkerLatency

__all__ = ["LatencyParams", "LatencyPrior", "StepSample", "WorkerLatency", "step_sample"]
