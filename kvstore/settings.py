"""The `redis` section of the configuration."""

from pydantic import BaseModel, ConfigDict, Field


class RedisSettings(BaseModel):
    """How to reach Redis, and how long a worker's lease lives in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(
        None,
        pattern=r"^(redis|rediss|unix)://.+",
        description="redis://, rediss:// or unix:// URL; none: `headrace up` starts an embedded server",
    )
    namespace: str = Field(
        "headrace", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="prefix of every key; one per cluster"
    )
    lease_s: float = Field(15.0, ge=1.0, le=300.0, description="a worker not heard of for this long is gone")
    heartbeat_s: float = Field(1.0, ge=0.1, le=60.0, description="how often workers renew and routers look")
