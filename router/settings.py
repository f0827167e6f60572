"""The `router` section of the configuration."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from router.baselines import BASELINES
from router.explain.settings import ExplainSettings
from router.http.settings import HttpSettings
from router.tls_settings import TlsSettings
from router.tokens.settings import TokenSettings
from workers.engine_http.settings import EngineHttpSettings

LEAST_COST = "least_cost"


class ListenSettings(BaseModel):
    """One listening socket."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(ge=0, le=65535, description="TCP port; 0: any free one")


class GrpcSettings(ListenSettings):
    """One gRPC port."""

    tls: TlsSettings | None = Field(None, description="certificates; none: plain text (h2c)")


class EndpointPickerSettings(GrpcSettings):
    """Envoy's external processing protocol: deciding for a gateway that carries the bytes itself."""

    port: int = Field(9002, ge=0, le=65535, description="TCP port; 0: any free one")
    enabled: bool = Field(False, description="listen for gateways")
    fallbacks: int = Field(
        0,
        ge=0,
        le=2,
        description="endpoints named behind the first, for gateways that try one after another",
    )


class RouterSettings(BaseModel):
    """The front door."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, le=256, description="router processes; those of a node share its ports")
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings(port=8001)
    endpoint_picker: EndpointPickerSettings = EndpointPickerSettings()
    max_body_bytes: int = Field(32 << 20, ge=1024, description="larger request bodies get 413")
    unknown_fields: Literal["reject", "pass"] = Field(
        "reject", description="fields that neither OpenAI nor the engine knows: a 400 that names them, or passed on"
    )
    tokens: TokenSettings = TokenSettings()
    explain: ExplainSettings = ExplainSettings()
    public_metrics: bool = Field(
        True, description="/metrics is for all who reach the port; false: for tokens of admin.tokens_file"
    )
    policy: str = Field("least_cost", description="least_cost, or one of its peers' policies, for comparison")
    hand_off: Literal["cost", "always", "never"] = Field(
        "cost", description="prefill on another worker: where it costs least, wherever it can be, or nowhere"
    )
    dispatch_ahead_s: float = Field(
        0.1, ge=0.0, le=10.0, description="prompts sent to a worker ahead of need; the rest waits here, in order"
    )
    max_attempts: int = Field(3, ge=1, le=10, description="workers tried before a request fails")
    retry_after_s: float = Field(2.0, ge=0.1, description="Retry-After when no worker can serve")
    engine_http: EngineHttpSettings = EngineHttpSettings()
    drain_s: float = Field(10.0, ge=0.0, description="in-flight requests may finish for this long on shutdown")

    @field_validator("policy")
    @classmethod
    def _policy_exists(cls, value: str) -> str:
        allowed = (LEAST_COST, *sorted(BASELINES))
        if value not in allowed:
            raise ValueError(f"no such policy; allowed: {', '.join(allowed)}")
        return value
