"""What is believed of a worker that has not been observed yet. Pure."""

from dataclasses import dataclass, fields
from typing import NamedTuple


class LatencyParams(NamedTuple):
    """Coefficients of one worker, in seconds; a row of the fleet's table."""

    c0: float  # prefill: a prompt
    c1: float  # 1000 tokens that no cache holds
    c2: float  # 10^6 of (tokens that no cache holds) * (tokens of context)
    d0: float  # decode step: the step itself
    d1: float  # a sequence in the batch
    d2: float  # 1000 tokens of KV
    t0: float  # hand-off: a prompt
    t1: float  # 1000 tokens


@dataclass(frozen=True, slots=True)
class LatencyPrior:
    """Rates of an unknown worker: a model of some ten billion parameters on one current accelerator.

    The fit keeps their proportions until it has seen enough to know better, so each must be positive.
    """

    prefill_tokens_per_s: float = 5_000.0
    decode_step_s: float = 0.025  # a step's fixed part
    decode_step_per_seq_s: float = 0.001  # what each sequence adds to a step
    transfer_s: float = 0.010  # hand-off of one prompt's blocks: the fixed part
    prefill_s: float = 0.010  # a prompt's fixed part
    prefill_attention_s: float = 0.005  # 10^6 pairs of a new token and a token of its context
    decode_step_per_1k_kv_tokens_s: float = 0.0002
    transfer_tokens_per_s: float = 100_000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0.0 < getattr(self, field.name) < float("inf"):
                raise ValueError(f"`{field.name}` must be positive and finite")

    def params(self) -> LatencyParams:
        """The coefficients that these rates mean."""
        return LatencyParams(
            c0=self.prefill_s,
            c1=1_000.0 / self.prefill_tokens_per_s,
            c2=self.prefill_attention_s,
            d0=self.decode_step_s,
            d1=self.decode_step_per_seq_s,
            d2=self.decode_step_per_1k_kv_tokens_s,
            t0=self.transfer_s,
            t1=1_000.0 / self.transfer_tokens_per_s,
        )
