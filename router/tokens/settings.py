"""The `router.tokens` section of the configuration."""

from pydantic import BaseModel, ConfigDict, Field


class TokenSettings(BaseModel):
    """Tokenising prompts in the router, for prefix-aware routing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, str] = Field(
        default_factory=dict, description="served name -> tokenizer folder; none: the cluster's own model"
    )
    cache_bytes: int = Field(256 << 20, ge=1 << 20, description="tokens of earlier prompts kept, for each model")
    send_ids: bool = Field(
        True, description="completions go as token ids to engines that were seen to read texts as the router does"
    )
    threads: int = Field(2, ge=1, le=64, description="threads that encode new text")
    max_prompt_chars: int = Field(
        2 << 20, ge=1024, description="longer prompts are routed by load; 2 Mi characters hold the router for 40 ms"
    )
