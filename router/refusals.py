"""Requests that are refused before the core hears of them: what is told of each, once, by whoever refuses it. Pure.

The front desk (`router/intake.py`) tells of what it refuses, the service of a tenant that is over a limit when its
request begins. HTTP, gRPC and gateways come by both, so nothing counts twice. Refused credentials are counted by the
doorkeeper, who is asked on routes that no engine answers, too.
"""

from collections.abc import Callable
from typing import NamedTuple

UNAUTHORISED = "invalid_api_key"
NO_CLASS = "none"  # as of requests that are promised nothing (`router/types.py`)
# Codes that are told by class and tenant; others are mistakes in a request, told by status alone.
REASONS = frozenset(
    (
        "model_not_allowed",
        "class_not_allowed",
        "rate_limit_exceeded",
        "insufficient_quota",
        "class_paused",
        "cache_not_isolated",
    )
)


class Refused(NamedTuple):
    """One request."""

    route: str
    status: int
    code: str
    class_name: str
    tenant: str | None  # None: nobody is known to have asked


Tell = Callable[[Refused], None]


def nobody_listens(_: Refused) -> None:
    """Of a desk by itself."""
