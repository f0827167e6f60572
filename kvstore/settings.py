"""The `redis`, `index` and `board` sections of the configuration."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kvstore.errors import RedisUrlError
from kvstore.redis_url import parse_redis_url

_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid")
_GIB = 1 << 30
_MIB = 1 << 20


class RedisSettings(BaseModel):
    """How to reach Redis, and how long a worker's lease lives in it."""

    model_config = _MODEL_CONFIG

    url: str | None = Field(
        None,
        description="redis://, rediss:// (TLS), unix://, redis[s]+sentinel:// or redis[s]+cluster:// URL; "
        "none: `headrace up` starts an embedded server",
    )
    password_file: str | None = Field(
        None, min_length=1, description="file with the password instead of the URL; read again for every connection"
    )
    sentinels_have_password: bool = Field(
        True, description="Sentinels ask for the same user and password as the servers; false: they ask for none"
    )
    tls_ca_path: str | None = Field(
        None, min_length=1, description="certificates (PEM) that sign the servers'; none: those of the system"
    )
    tls_cert_path: str | None = Field(
        None, min_length=1, description="own certificate (PEM), where servers want to see one"
    )
    tls_key_path: str | None = Field(None, min_length=1, description="key (PEM) of `tls_cert_path`")
    tls_check_hostname: bool = Field(
        True, description="certificates must name the host connected to; Sentinels and Clusters often give addresses"
    )
    namespace: str = Field(
        "headrace", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="prefix of every key; one per cluster"
    )
    lease_s: float = Field(15.0, ge=1.0, le=300.0, description="a worker not heard of for this long is gone")
    heartbeat_s: float = Field(1.0, ge=0.1, le=60.0, description="how often workers renew and routers look")

    @field_validator("url")
    @classmethod
    def _url_can_be_used(cls, url: str | None) -> str | None:
        if url is not None:
            try:
                parse_redis_url(url)
            except RedisUrlError as error:
                raise ValueError(f"{error.problem}; allowed: {error.allowed}") from None
        return url

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if (self.tls_cert_path is None) != (self.tls_key_path is None):
            raise ValueError("tls_cert_path and tls_key_path are given together or not at all")
        if self.url is None:
            return self
        address = parse_redis_url(self.url)
        if self.password_file is not None and address.password is not None:
            raise ValueError("the password is in the url and in password_file; give one of them")
        if self.password_file is None and address.username is not None and address.password is None:
            raise ValueError("url names a user without a password; a password alone is written :password@host")
        if (self.tls_ca_path or self.tls_cert_path) and not address.tls:
            raise ValueError("tls_ca_path and tls_cert_path need a URL with TLS: rediss://, rediss+sentinel://, ...")
        return self


class IndexSettings(BaseModel):
    """The prefix index: what routers keep of it, and what workers publish of it through Redis."""

    model_config = _MODEL_CONFIG

    block_size_tokens: int = Field(
        32, ge=8, le=1024, description="tokens of one block of the index; need not be the engines' block size"
    )
    budget_bytes: int = Field(
        _GIB, ge=_MIB, description="memory a router spends on the index; beyond it new blocks are not taken in"
    )
    snapshot_interval_s: float = Field(
        10.0,
        ge=0.1,
        le=600.0,
        description="how often workers write all they hold, and routers compare what they know",
    )
    log_window_s: float = Field(60.0, ge=1.0, le=3600.0, description="how far back the log of changes in Redis reaches")
    log_max_bytes: int = Field(
        256 * _MIB, ge=_MIB, description="memory of the log in Redis; beyond it the log reaches back less far"
    )


class BoardSettings(BaseModel):
    """What router replicas tell each other."""

    model_config = _MODEL_CONFIG

    report_interval_s: float = Field(
        0.25, ge=0.05, le=10.0, description="how often a router tells the others what it has promised"
    )
    decision_ttl_s: float = Field(
        600.0, ge=1.0, le=86_400.0, description="how long `headrace explain` finds a decision"
    )
