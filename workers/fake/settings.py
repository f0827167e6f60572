"""What a fake engine is told at its start; the counterpart of vLLM's command line."""

from dataclasses import dataclass, field

from workers.fake.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSettings:
    """One fake engine. The defaults are those of the demo model's engine on a laptop."""

    model: str = "fake"
    adapters: tuple[str, ...] = ()  # LoRA adapters of the model, by name
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    block_size_tokens: int = 32
    kv_blocks: int = 728
    max_model_len_tokens: int = 2048
    bytes_per_block: int = 32 * 23_040  # SmolLM2-135M in bfloat16 keeps 23,040 bytes a token
    engine_id: str | None = None  # None: a random one, as vLLM does
    kv_events_endpoint: str | None = None  # like vLLM: bound with a `*` host, else connected to
    kv_replay_endpoint: str | None = None  # bound
    kv_lease_s: float = 30.0  # how long a prefill's blocks wait for their decode
    pull_timeout_s: float = 5.0  # a hand-off that takes longer has failed
    shutdown_timeout_s: float = 0.0  # in-flight requests may finish for this long
    remembered_requests: int = 1000
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        if self.block_size_tokens < 1 or self.kv_blocks < 1 or self.max_model_len_tokens < 1:
            raise ValueError("block size, KV blocks and context length must be positive")
        if self.max_model_len_tokens > self.kv_blocks * self.block_size_tokens:
            raise ValueError(
                f"a context of {self.max_model_len_tokens} tokens does not fit into {self.kv_blocks} blocks "
                f"of {self.block_size_tokens} tokens"
            )
        if self.kv_replay_endpoint is not None and self.kv_events_endpoint is None:
            raise ValueError("a replay endpoint needs an events endpoint")
