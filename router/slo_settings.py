"""The `slo` section of the configuration: service classes, and how promises are given."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_TTFT_S = 3600.0
MAX_TPOT_S = 60.0
MAX_DEADLINE_S = 86_400.0
TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"

_MODEL_CONFIG = ConfigDict(frozen=True, extra="forbid")

ClassName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


class ClassSettings(BaseModel):
    """What a class of requests is promised."""

    model_config = _MODEL_CONFIG

    ttft_s: float = Field(gt=0, le=MAX_TTFT_S, description="target: arrival to first token")
    tpot_s: float = Field(gt=0, le=MAX_TPOT_S, description="target: mean gap between tokens after the first")
    value: float = Field(1.0, gt=0, le=1000, description="worth of a kept promise, against the other classes")
    deadline_s: float = Field(gt=0, le=MAX_DEADLINE_S, description="a request not started this long after arrival ends")
    on_overload: Literal["reject", "best_effort"] = Field(
        "reject", description="where no promise can be given: 429, or wait for what promises leave"
    )

    @model_validator(mode="after")
    def _can_be_kept(self) -> "ClassSettings":
        if self.deadline_s < self.ttft_s:
            raise ValueError(
                f"deadline_s: {self.deadline_s:g} is not allowed: a request would be given up before its target; "
                f"allowed: at least ttft_s, {self.ttft_s:g}"
            )
        return self


# Targets are promises, and the default one has to hold on a laptop's CPU too: operators of GPUs set tighter ones.
_DEFAULT_CLASSES = {
    "interactive": ClassSettings(ttft_s=0.5, tpot_s=0.05, value=4.0, deadline_s=30.0),
    "chat": ClassSettings(ttft_s=10.0, tpot_s=0.5, value=2.0, deadline_s=60.0),
    "batch": ClassSettings(ttft_s=60.0, tpot_s=1.0, value=1.0, deadline_s=600.0, on_overload="best_effort"),
}


class FairnessSettings(BaseModel):
    """Whose turn it is when there is not enough for all."""

    model_config = _MODEL_CONFIG

    half_life_s: float = Field(30.0, ge=1, le=3600, description="after this long, past usage counts half")
    window_s: float = Field(60.0, ge=1, le=3600, description="a tenant that has not asked for this long has no share")
    max_tenants: int = Field(10_000, ge=2, le=1_000_000, description="tenants remembered; the longest silent go first")
    over_share_fill: float = Field(
        0.5,
        gt=0,
        le=1,
        description="part of its target that a tenant may wait which asks for more than its share; squared once it has "
        "had that. The rest is the others'",
    )


class AppointmentSettings(BaseModel):
    """Retry-After that can be relied on."""

    model_config = _MODEL_CONFIG

    share: float = Field(0.5, gt=0, le=0.9, description="part of a pool that may be set aside for those told to return")
    grace_s: float = Field(2.0, ge=1, le=60, description="a place is kept for this long after its time")
    horizon_s: int = Field(120, ge=1, le=3600, description="longest Retry-After; beyond it no place is set aside")
    max_places: int = Field(4096, ge=1, le=100_000, description="places set aside at any time, in one pool")
    tenant_share: float = Field(0.5, gt=0, le=1, description="part of the places that one tenant may hold")


class SloSettings(BaseModel):
    """Service classes and admission."""

    model_config = _MODEL_CONFIG

    enabled: bool = Field(True, description="false: everything is taken in, nothing is promised")
    classes: dict[ClassName, ClassSettings] = Field(
        default_factory=lambda: dict(_DEFAULT_CLASSES), min_length=1, description="by name; replaces the built-in three"
    )
    default_class: ClassName = Field("chat", description="class of requests that name none")
    trust_tenant_header: bool = Field(
        False, description="believe x-headrace-tenant; only behind a gateway that sets it itself"
    )
    safety_margin: float = Field(0.1, ge=0, le=1, description="forecasts are taken to be this much too short")
    lower_value_fill: float = Field(
        0.5, gt=0, le=1, description="part of its target that a class of less than the highest value may wait"
    )
    best_effort_every: int = Field(
        16,
        ge=2,
        le=1000,
        description="one part in this many of a busy pool's work goes to waiting best-effort requests",
    )
    max_queued: int = Field(10_000, ge=1, le=1_000_000, description="requests waiting in one router process")
    fairness: FairnessSettings = FairnessSettings()
    appointments: AppointmentSettings = AppointmentSettings()

    @model_validator(mode="after")
    def _default_exists(self) -> "SloSettings":
        allowed = f"allowed: {', '.join(self.classes)} (slo.classes)"
        if self.default_class not in self.classes:
            raise ValueError(f"default_class: {self.default_class!r} is not allowed: no such class; {allowed}")
        return self

    @property
    def top_value(self) -> float:
        """The highest value of any class."""
        return max(item.value for item in self.classes.values())
