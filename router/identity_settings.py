"""The `identity` section of the configuration: API keys, tokens of an identity provider, tenants and their limits."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from router.slo_settings import TENANT_PATTERN, ClassName

_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
DEFAULT_TENANT = "default"

KeyDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
TenantName = Annotated[str, StringConstraints(pattern=TENANT_PATTERN)]
BudgetPeriod = Literal["day", "month"]


class KeySettings(BaseModel):
    """Whom an API key belongs to."""

    model_config = _MODEL_CONFIG

    tenant: TenantName = Field(description="who is charged for what the key's requests use")
    service_class: ClassName | None = Field(None, alias="class", description="its requests' class; none: the tenant's")
    expires_at: datetime | None = Field(None, description="refused from then on; with a time zone; none: never")

    @field_validator("expires_at")
    @classmethod
    def _has_zone(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("it has no time zone; allowed: such as 2027-01-31T00:00:00Z")
        return value


class TenantSettings(BaseModel):
    """What a tenant may have. Limits hold for all routers together; none: no limit."""

    model_config = _MODEL_CONFIG

    weight: float = Field(1.0, gt=0, le=1000, description="its share under contention, against the others")
    value: float = Field(1.0, gt=0, le=1000, description="worth of its promises: times the value of the class")
    service_class: ClassName | None = Field(
        None, alias="class", description="class of its requests that name none; none: slo.default_class"
    )
    classes: tuple[ClassName, ...] | None = Field(None, min_length=1, description="classes it may name; none: all")
    models: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        None, min_length=1, description="models and adapters it may ask for; none: all"
    )
    requests_per_min: int | None = Field(None, ge=1, description="requests in any minute")
    tokens_per_min: int | None = Field(None, ge=1, description="prompt and output tokens in any minute")
    budget_tokens: int | None = Field(None, ge=1, description="prompt and output tokens in a budget_period")
    budget_period: BudgetPeriod = Field("month", description="UTC; a budget begins anew with it")
    priority: int | None = Field(
        None,
        ge=-1_000_000,
        le=1_000_000,
        description="vLLM's priority of its requests, lower goes first, in place of a client's own; only for engines "
        "with --scheduling-policy priority: others refuse it",
    )

    @model_validator(mode="after")
    def _may_use_its_class(self) -> Self:
        if self.service_class is not None and self.classes is not None and self.service_class not in self.classes:
            raise ValueError(f"class: {self.service_class!r} is not among its classes, {', '.join(self.classes)}")
        return self


class JwtSettings(BaseModel):
    """Tokens (RFC 7519) of an OpenID Connect provider. Signed with RS256, ES256 or EdDSA; nothing else is taken."""

    model_config = _MODEL_CONFIG

    issuer: str = Field(min_length=1, description="`iss` of its tokens, to the letter")
    audience: str = Field(min_length=1, description="`aud` that tokens for Headrace have")
    jwks_file: str | None = Field(None, min_length=1, description="its public keys (RFC 7517); read when it changes")
    jwks_url: str | None = Field(None, min_length=1, description="https:// address of its public keys")
    refresh_s: float = Field(300.0, ge=1, le=86_400, description="how often keys are fetched; also for an unknown key")
    tenant_claim: str = Field("sub", min_length=1, description="claim that names the tenant")
    class_claim: str | None = Field(None, min_length=1, description="claim that names the class; none: the tenant's")
    leeway_s: float = Field(30.0, ge=0, le=300, description="how much clocks may differ")

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("jwks_file or jwks_url: one of them is needed, and not both")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
                raise ValueError(
                    f"jwks_url: {self.jwks_url!r} is not allowed: who changes it on its way makes tokens; allowed: "
                    "https://, or http:// on loopback"
                )
        return self


class IdentitySettings(BaseModel):
    """Who may ask, and for how much."""

    model_config = _MODEL_CONFIG

    required: bool = Field(False, description="true: 401 without a valid key or token; false: tenant `default` then")
    keys: dict[KeyDigest, KeySettings] = Field(
        default_factory=dict, description="API keys by the SHA-256 of the key in lower-case hex"
    )
    keys_file: str | None = Field(
        None, min_length=1, description="YAML file with more of them in the same form, such as a mounted secret; read "
        "again when it changes"
    )  # fmt: skip
    keys_in_redis: bool = Field(True, description="keys and tenants made by `headrace keys` and `tenants` count too")
    jwt: JwtSettings | None = Field(None, description="tokens of an OpenID Connect provider; none: API keys only")
    tenants: dict[TenantName, TenantSettings] = Field(
        default_factory=dict, description="by name; `default`: those without a credential or an entry of their own"
    )
    isolate_caches: Literal["auto", "on", "off"] = Field(
        "auto", description="tenants share no cached prefixes; auto: where more than one tenant can ask"
    )
    salt_secret_file: str | None = Field(
        None, min_length=1, description="secret behind the cache salts; none: a random one, kept in Redis"
    )
    poll_s: float = Field(5.0, ge=0.05, le=300, description="how often files and Redis are looked at for changes")

    @field_validator("isolate_caches", mode="before", json_schema_input_type=Literal["auto", "on", "off", True, False])
    @classmethod
    def _yaml_has_other_words(cls, value: Any) -> Any:
        """An `on` without quotes is true in YAML 1.1."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    def settings_of(self, tenant: str, made: Mapping[str, TenantSettings]) -> TenantSettings:
        """What a tenant may have: its own settings, else those of `default`; `made` at run time before written ones."""
        for name in (tenant, DEFAULT_TENANT):
            found = made.get(name) or self.tenants.get(name)
            if found is not None:
                return found
        return TenantSettings()

    def class_problem(self, classes: Any) -> str | None:
        """The first class named here that is none of `classes` (slo.classes), in words; or None."""
        named = [(f"keys.{digest}.class", key.service_class) for digest, key in self.keys.items()]
        for name, tenant in self.tenants.items():
            named.append((f"tenants.{name}.class", tenant.service_class))
            named += [(f"tenants.{name}.classes", allowed) for allowed in tenant.classes or ()]
        for where, service_class in named:
            if service_class is not None and service_class not in classes:
                allowed = ", ".join(classes)
                return f"{where}: {service_class!r} is not allowed: no such class; allowed: {allowed} (slo.classes)"
        return None
