"""The `router.engine_http` section of the configuration."""

from pydantic import BaseModel, ConfigDict, Field


class EngineHttpSettings(BaseModel):
    """Connections from a router to engines."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect_timeout_s: float = Field(
        5.0, gt=0.0, description="an engine that is not connected to by then is unreachable"
    )
    first_byte_timeout_s: float = Field(
        600.0, gt=0.0, description="an engine that takes longer to begin its answer has failed the request"
    )
    silence_timeout_s: float = Field(
        600.0, gt=0.0, description="an engine silent for this long within an answer has failed the request"
    )
    idle_s: float = Field(4.0, gt=0.0, description="idle connections are kept so long; vLLM itself keeps them for 5 s")
    max_idle: int = Field(256, ge=0, description="idle connections kept to one engine")
    max_head_bytes: int = Field(64 << 10, ge=1024, description="headers of one answer")
    max_reply_bytes: int = Field(64 << 20, ge=1024, description="answer of a prefill worker")
