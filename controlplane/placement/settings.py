"""The `experts` section of the configuration."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from controlplane.placement.cost import Aim
from controlplane.placement.objective import Prices

_DEFAULT = Prices()


class ExpertSettings(BaseModel):
    """How the experts of expert-parallel engines (`engine.experts`) are placed while they run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["off", "observe", "apply"] = Field(
        "observe", description="observe: loads are collected and decisions explained; apply: carried out as well"
    )
    interval_s: float = Field(30.0, gt=0.0, description="how often engines are asked for their expert loads")
    min_tokens_per_expert: float = Field(
        50.0, gt=0.0, description="a window of load goes on until a layer has routed so many tokens for each expert"
    )
    horizon_s: float = Field(300.0, gt=0.0, description="how long loads are taken to go on: what moves pay off in")
    class_half_life_s: float = Field(
        3600.0, gt=0.0, description="what is known of the experts that a class of traffic asks for counts half after it"
    )
    risk: float = Field(0.5, ge=0.0, le=1.0, description="0: the expected load counts alone; 1: the worst alone")
    max_moves: int | None = Field(None, ge=1, description="slots changed at a time, of all layers; none: what pays")
    split: Literal["best", "equal"] = Field(
        "best", description="how tokens are divided among an expert's replicas: as is best for the load, or equally"
    )
    pause_s: float = Field(0.1, ge=0.0, description="how long an engine stands still to divide tokens anew")
    ranks_per_node: int | None = Field(None, ge=1, description="of an engine on several machines; none: it is on one")
    expert_bytes: float = Field(_DEFAULT.expert_bytes, gt=0.0, description="weights of one expert of one layer")
    expert_s_per_token: float = Field(
        _DEFAULT.expert_s_per_token, gt=0.0, description="seconds of a rank for one token in one expert"
    )
    token_bytes: float = Field(_DEFAULT.token_bytes, gt=0.0, description="what a token takes to another machine")
    cross_node_bytes_per_s: float = Field(
        _DEFAULT.cross_node_bytes_per_s, gt=0.0, description="tokens between machines, of all links of one"
    )
    link_bytes_per_s: float = Field(
        _DEFAULT.link_bytes_per_s, gt=0.0, description="experts that move between two ranks of a machine"
    )
    cross_link_bytes_per_s: float = Field(
        _DEFAULT.cross_link_bytes_per_s, gt=0.0, description="experts that move between ranks of different machines"
    )

    @field_validator("mode", mode="before", json_schema_input_type=Literal["off", "observe", "apply", False])
    @classmethod
    def _yaml_has_other_words(cls, value: Any) -> Any:
        """An `off` without quotes is false in YAML 1.1."""
        return "off" if value is False else value

    def aim(self) -> Aim:
        """What plans are for."""
        return Aim(horizon_s=self.horizon_s, risk=self.risk, splits_best=self.split == "best")

    def prices(self, tokens_per_s: float) -> Prices:
        """What turns tokens and bytes into seconds, at the rate that was seen."""
        return Prices(
            expert_s_per_token=self.expert_s_per_token,
            expert_bytes=self.expert_bytes,
            token_bytes=self.token_bytes,
            cross_node_bytes_per_s=self.cross_node_bytes_per_s,
            link_bytes_per_s=self.link_bytes_per_s,
            cross_link_bytes_per_s=self.cross_link_bytes_per_s,
            tokens_per_s=tokens_per_s,
        )
