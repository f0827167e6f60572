"""The three times of one worker. Pure and deterministic."""

from router.latency.fitted_time import FittedTime
from router.latency.prior import LatencyParams, LatencyPrior

# Samples remembered. Prompts differ from one to the next and come once a request; the batch changes slowly and is
# reported every second, so it takes longer to have seen small and large ones.
PREFILL_MEMORY = 64.0
STEP_MEMORY = 256.0
TRANSFER_MEMORY = 64.0
_HALF_WEIGHT_STEPS = 16.0  # a sample of so many steps counts half of one of very many


class WorkerLatency:
    """Predicts, and learns from what was observed.

    Durations that cannot be (NaN, negative, longer than a day) are ignored, as are those of a cold engine; amounts of
    work that cannot be are the caller's mistake and raise AssertionError.
    """

    def __init__(self, prior: LatencyPrior) -> None:
        c0, c1, c2, d0, d1, d2, t0, t1 = prior.params()
        self._prefill = FittedTime((c0, c1, c2), PREFILL_MEMORY)
        # What a step takes longer for the prompt tokens that are computed in it. It is not part of a decode step, but
        # without it the steps of a worker that does both would be learned too long.
        self._step = FittedTime((d0, d1, d2, c1), STEP_MEMORY)
        self._transfer = FittedTime((t0, t1), TRANSFER_MEMORY)

    def new_epoch(self, now_s: float) -> None:
        """The engine was started: what was learned is now only a guess, and its first samples are not typical."""
        for time in (self._prefill, self._step, self._transfer):
            time.new_epoch(now_s)

    def predict_prefill_s(self, new_tokens: float, context_tokens: float) -> float:
        """Seconds to compute `new_tokens` of a prompt of `context_tokens`; nothing before it."""
        return self._prefill.predict_s((1.0, new_tokens / 1e3, new_tokens * context_tokens / 1e6))

    def observe_prefill(
        self,
        duration_s: float,
        prompts: float,
        new_tokens_sum: float,
        quad_sum: float,
        now_s: float,
        *,
        unsure_s: float = 0.0,
    ) -> bool:
        """A prompt was computed `duration_s` after its dispatch, give or take `unsure_s`.

        The sums go over it and the `prompts` - 1 before it; `quad_sum` is that of new * context tokens / 10^6. Of the
        times that it may have taken, the one nearest to the prediction is learned. True if it was learned from.
        """
        features = prompts, new_tokens_sum / 1e3, quad_sum
        return self._prefill.observe(features, duration_s, now_s, unsure_s=unsure_s)

    def predict_step_s(self, running_seqs: float, kv_tokens: float) -> float:
        """Seconds of a decode step without prompts in it."""
        return self._step.predict_s((1.0, running_seqs, kv_tokens / 1e3, 0.0))

    def observe_step(
        self,
        mean_itl_s: float,
        running_seqs: float,
        kv_tokens: float,
        steps: float,
        now_s: float,
        prompt_tokens: float = 0.0,
    ) -> bool:
        """`steps` decode steps took `mean_itl_s` each; the other numbers are means over them (see StepSample)."""
        features = (1.0, running_seqs, kv_tokens / 1e3, prompt_tokens / 1e3)
        return self._step.observe(features, mean_itl_s, now_s, weight=steps / (steps + _HALF_WEIGHT_STEPS))

    def predict_transfer_s(self, tokens: float) -> float:
        """Seconds to bring the KV blocks of `tokens` from the worker that computed them."""
        return self._transfer.predict_s((1.0, tokens / 1e3))

    def observe_transfer(self, duration_s: float, tokens: float, now_s: float) -> bool:
        """`duration_s`: from the decode call to its first byte, less a predicted step."""
        return self._transfer.observe((1.0, tokens / 1e3), duration_s, now_s)

    def params(self) -> LatencyParams:
        """All coefficients."""
        c0, c1, c2 = self._prefill.coefficients
        d0, d1, d2, _ = self._step.coefficients
        t0, t1 = self._transfer.coefficients
        return LatencyParams(c0, c1, c2, d0, d1, d2, t0, t1)

    def stall_s_per_1k_tokens(self) -> float:
        """What 1000 prompt tokens cost each sequence that is decoded beside them."""
        return self._step.coefficients[3]

    def prefill_margin(self) -> float:
        """Factor from 1 to 2 that makes nine of ten predicted prefills long enough."""
        return self._prefill.margin

    def step_margin(self) -> float:
        """The same for decode steps."""
        return self._step.margin

    def mean_abs_errors(self) -> tuple[float, float, float]:
        """Running mean of |predicted - observed| / observed: prefill, step, transfer. For operators."""
        return self._prefill.mean_abs_error, self._step.mean_abs_error, self._transfer.mean_abs_error
