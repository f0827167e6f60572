"""How long a step of a simulated engine takes: a roofline, and on purpose not the router's linear model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hardware:
    """A GPU and the model on it. The default is an 8B model on an H100 (80 GB): half the peak FLOPs, 80 % bandwidth."""

    flops: float = 495e12
    bytes_per_s: float = 2.7e12
    weight_bytes: float = 16e9
    flops_per_token: float = 16e9
    attention_flops: float = 0.52e6  # per pair of a new token and a token of its context
    kv_bytes_per_token: float = 131_072
    kv_tokens: int = 400_000
    block_size_tokens: int = 64
    overhead_s: float = 0.003  # scheduling, launches, sampling
    seq_overhead_s: float = 20e-6  # the same, per sequence of the batch
    max_batched_tokens: int = 8192
    max_seqs: int = 256
    noise: float = 0.05  # standard deviation of a step, relative
    transfer_bytes_per_s: float = 20e9
    transfer_s: float = 0.004  # handshake and notification of one transfer

    def step_s(self, new_tokens: int, pairs: float, seqs: int, kv_tokens: int) -> float:
        """One step: `new_tokens` of prompts, one token for each of `seqs`, whose contexts sum up to `kv_tokens`.

        `pairs`: of new prompt tokens with the tokens of their context.
        """
        attention = (pairs + kv_tokens) * self.attention_flops
        compute_s = ((new_tokens + seqs) * self.flops_per_token + attention) / self.flops
        memory_s = (self.weight_bytes + (kv_tokens + new_tokens) * self.kv_bytes_per_token) / self.bytes_per_s
        return self.overhead_s + self.seq_overhead_s * seqs + max(compute_s, memory_s)
