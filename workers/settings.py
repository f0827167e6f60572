"""The `engine` and `kv_events` sections of the configuration."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from workers.engine_args import check_env, check_expert_args, check_extra_args
from workers.engine_tls import EngineTlsSettings

# vLLM's CPU backend starts with other KV dtypes and then corrupts its output, so nothing else is let through.
# The CUDA backend supports more; each is added here once it has been seen to work.
KvCacheDtype = Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]


NODE_HOST = "node"  # of engine.host


class ExpertParallelSettings(BaseModel):
    """The experts of a mixture-of-experts model are divided over the ranks (processes) of one engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor_parallel: int = Field(1, ge=1, le=1024, description="ranks that compute each token together")
    data_parallel: int = Field(1, ge=1, le=1024, description="ranks, or groups of them, with sequences of their own")
    redundant_experts: int = Field(
        0, ge=0, le=1023, description="expert slots beyond one for each expert; in all they divide over the ranks"
    )

    @property
    def ranks(self) -> int:
        """Processes that hold experts."""
        return self.tensor_parallel * self.data_parallel

    @model_validator(mode="after")
    def _has_ranks(self) -> Self:
        if self.ranks < 2:
            raise ValueError(
                "tensor_parallel x data_parallel is 1: one of them has to be at least 2, or there is nothing to place"
            )
        return self


class EngineSettings(BaseModel):
    """One vLLM engine; every worker of the cluster runs the same one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "cuda"] = Field("cpu", description="which vLLM build runs here")
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address engines bind to, and at which routers and other engines reach them; "
        "node: that of the Ray node they run on",
    )
    http_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="the engine's HTTP port, where each has an address of its own; none: a free one",
    )
    dtype: Dtype = Field("auto", description="weights and activations")
    kv_cache_dtype: KvCacheDtype = Field("auto", description="only what the backend really supports")
    kv_cache_bytes: int = Field(
        1 << 30,
        ge=1 << 30,
        multiple_of=1 << 30,  # VLLM_CPU_KVCACHE_SPACE is a whole number of GiB
        description="KV memory of one engine, or of each of its ranks (device: cpu), in whole GiB",
    )
    block_size_tokens: int = Field(32, description="tokens in a KV block", ge=8, le=256, multiple_of=8)
    max_model_len_tokens: int | None = Field(None, ge=16, description="longest context; none: the model's own")
    threads: int = Field(1, ge=1, le=512, description="OpenMP threads of one engine (device: cpu)")
    kv_lease_s: int = Field(30, ge=6, le=3600, description="how long a prefill worker keeps blocks nobody pulls")
    start_timeout_s: float = Field(600.0, ge=1.0, description="an engine not ready by then is restarted")
    probe_interval_s: float = Field(10.0, ge=0.5, description="how often an idle engine must answer one token")
    probe_timeout_s: float = Field(60.0, ge=0.5, description="an engine that takes longer is wedged: restarted")
    shutdown_timeout_s: float = Field(10.0, ge=0.0, description="in-flight requests may finish for this long")
    max_backoff_s: float = Field(60.0, ge=0.1, description="longest pause between two starts of a failing engine")
    experts: ExpertParallelSettings | None = Field(
        None, description="divide the experts of a mixture-of-experts model over ranks, to be placed at run time"
    )
    tls: EngineTlsSettings | None = Field(
        None, description="certificates between routers and engines; none: plain HTTP"
    )
    extra_args: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="further vLLM arguments, passed on as they are; some are reserved"
    )
    env: dict[str, str] = Field(default_factory=dict, description="further environment of the engine process")
    num_cpus: float = Field(0.0, ge=0.0, description="CPUs Ray reserves for one worker")
    num_gpus: float | None = Field(
        None, ge=0.0, description="GPUs Ray reserves for one worker, on one machine; none: one for each rank of experts"
    )

    @property
    def reserved_gpus(self) -> float:
        """What Ray is asked for: all ranks of an engine are on one machine, where their links are fastest."""
        if self.num_gpus is not None:
            return self.num_gpus
        return float(self.experts.ranks) if self.experts is not None and self.device == "cuda" else 0.0

    @field_validator("host")
    @classmethod
    def _host_can_be_reached(cls, value: str) -> str:
        if value in ("0.0.0.0", "::", "*"):
            raise ValueError(
                "it is also where routers and other engines reach an engine: name one address of the machine"
            )
        return value

    @field_validator("extra_args")
    @classmethod
    def _no_reserved_argument(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_extra_args(value)
        return value

    @field_validator("env")
    @classmethod
    def _no_reserved_variable(cls, value: dict[str, str]) -> dict[str, str]:
        check_env(value)
        return value

    @model_validator(mode="after")
    def _experts_can_run(self) -> Self:
        if self.experts is None:
            return self
        check_expert_args(self.extra_args)
        # On CPU the two together have never been seen to work: vLLM then divides each sequence among the ranks.
        if self.device == "cpu" and self.experts.tensor_parallel > 1 and self.experts.data_parallel > 1:
            raise ValueError(
                f"experts.tensor_parallel is {self.experts.tensor_parallel} and experts.data_parallel is "
                f"{self.experts.data_parallel}: with device cpu one of them has to be 1"
            )
        return self


class KvEventSettings(BaseModel):
    """How a worker learns what its engine has cached, and tells routers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(True, description="false: nothing is published, workers are chosen by load only")
    silence_s: float = Field(
        5.0, ge=0.1, le=60.0, description="an engine that sends nothing for so long is asked whether events were lost"
    )
    replay_timeout_s: float = Field(5.0, ge=0.1, le=60.0, description="how long its answer to that may take")
    publish_interval_s: float = Field(0.05, ge=0.001, le=10.0, description="changes wait so long for others to join")
    max_blocks: int | None = Field(
        None, ge=1024, description="engine blocks kept track of for one engine; none: 16 times the engine's own"
    )
    max_unsent_blocks: int = Field(
        1_000_000, ge=1024, description="changed blocks kept for Redis while it is away; beyond it a snapshot follows"
    )
