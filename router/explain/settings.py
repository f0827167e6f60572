"""The `router.explain` section of the configuration."""

from pydantic import BaseModel, ConfigDict, Field


class ExplainSettings(BaseModel):
    """What is remembered of decisions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_requests: int = Field(10_000, ge=0, le=10_000_000, description="ended requests that a router can explain")
    keep_bytes: int = Field(32 << 20, ge=0, description="memory for them, in each router")
    headers: bool = Field(True, description="x-headrace-* response headers for requests with `x-headrace-explain: 1`")
    public: bool = Field(
        False,
        description="GET /headrace/decisions/ID on the clients' port for everybody; false: for tokens of "
        "admin.tokens_file only",
    )
    record_dir: str | None = Field(
        None, min_length=1, description="each router records events and decisions here, for `headrace replay`; none: no"
    )
    record_max_bytes: int = Field(1 << 30, ge=1 << 16, description="a recording ends at this size")
