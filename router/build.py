"""The core as configured, from plain values. A recording carries them, so `headrace replay` builds the same. Pure."""

from collections.abc import Mapping
from random import Random
from typing import Any

from router.admission.desk import AdmissionDesk
from router.baselines import BASELINES
from router.choice.policy import LeastCost
from router.core import CoreSettings, RouterCore
from router.settings import LEAST_COST, RouterSettings
from router.slo_settings import SloSettings

# Of the `router` section, what decisions depend on.
_DECIDING = {"policy", "hand_off", "dispatch_ahead_s", "max_attempts", "retry_after_s"}


def core_recipe(router: RouterSettings, slo: SloSettings, seed: int) -> dict[str, Any]:
    """Everything `build_core` needs."""
    return {
        "seed": seed,
        "router": router.model_dump(mode="json", include=_DECIDING),
        "slo": slo.model_dump(mode="json", by_alias=True),
    }


def build_core(recipe: Mapping[str, Any], policy: str | None = None) -> RouterCore:
    """The core of a recipe, or with another policy; raises KeyError and ValidationError for what is no recipe."""
    router = RouterSettings.model_validate(recipe["router"])
    slo = SloSettings.model_validate(recipe["slo"])
    rng = Random(recipe["seed"])
    name = policy or router.policy
    return RouterCore(
        LeastCost(rng) if name == LEAST_COST else BASELINES[name](rng),
        CoreSettings(
            max_attempts=router.max_attempts,
            retry_after_s=router.retry_after_s,
            hand_off=router.hand_off,
            dispatch_ahead_s=router.dispatch_ahead_s,
        ),
        AdmissionDesk(slo, pause_s=router.retry_after_s),
    )
