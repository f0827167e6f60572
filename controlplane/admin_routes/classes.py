"""The service classes that are configured, with what they are promised."""

from collections.abc import Sequence

import msgspec

from controlplane.admin_routes.route import Answer, Call, Route, json_answer
from router.slo_settings import SloSettings


class ClassTargets(msgspec.Struct, frozen=True):
    """One class."""

    name: str
    ttft_s: float
    tpot_s: float
    deadline_s: float
    value: float
    is_default: bool  # of requests that name none


def routes(slo: SloSettings) -> Sequence[Route]:
    """GET /classes."""
    classes = [
        ClassTargets(name, one.ttft_s, one.tpot_s, one.deadline_s, one.value, name == slo.default_class)
        for name, one in slo.classes.items()
    ]

    async def listed(_: Call) -> Answer:
        return json_answer(classes if slo.enabled else [])

    words = "Service classes and their targets; none where `slo.enabled` is false."
    return (Route("GET", "/classes", listed, words, gives=list[ClassTargets]),)
