"""Who asks, and on which terms: from a request's headers and the operator's classes. Pure.

A class is named by `x-headrace-class`, else by the key or the tenant, else it is the default one. `x-headrace-ttft-s`,
`x-headrace-tpot-s` and `x-headrace-deadline-s` replace the class's numbers for one request.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from router.errors import ApiError, bad_request
from router.identity.caller import ANYBODY, Caller
from router.slo_settings import MAX_DEADLINE_S, MAX_TPOT_S, MAX_TTFT_S, SloSettings
from router.types import Slo, Terms

CLASS_HEADER = "x-headrace-class"
TTFT_HEADER = "x-headrace-ttft-s"
TPOT_HEADER = "x-headrace-tpot-s"
DEADLINE_HEADER = "x-headrace-deadline-s"

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Resolved(Struct, frozen=True, gc=False):
    """A request's terms. `is_implicit`: the client chose neither a class nor a number, and no key did for it."""

    terms: Terms
    is_implicit: bool


def resolve(headers: Mapping[str, str], settings: SloSettings, caller: Caller = ANYBODY) -> Resolved:
    """The terms of one request; raises ApiError 400, and 403 for a class that is not the caller's to name.

    `headers` with lower-case names or case-insensitive.
    """
    name = headers.get(CLASS_HEADER)
    if name is not None and name not in settings.classes:
        allowed = ", ".join(settings.classes)
        raise bad_request(
            f"{CLASS_HEADER}: {name!r} is not a class here; allowed: {allowed}",
            code="unknown_class",
            param=CLASS_HEADER,
        )
    chosen = _class_of(name, settings, caller)
    template = settings.classes[chosen]
    ttft_s = _seconds(headers, TTFT_HEADER, MAX_TTFT_S)
    tpot_s = _seconds(headers, TPOT_HEADER, MAX_TPOT_S)
    deadline_s = _seconds(headers, DEADLINE_HEADER, MAX_DEADLINE_S)
    terms = Terms(
        tenant=caller.tenant,
        class_name=chosen,
        slo=Slo(ttft_s=ttft_s or template.ttft_s, tpot_s=tpot_s or template.tpot_s),
        value=template.value * caller.allowance.value,
        weight=caller.allowance.weight,
        deadline_s=deadline_s or template.deadline_s,
        best_effort_ok=template.on_overload == "best_effort",
    )
    if terms.deadline_s < terms.slo.ttft_s:
        raise _too_late(terms, TTFT_HEADER if ttft_s else DEADLINE_HEADER)
    asked = (name, caller.service_class, ttft_s, tpot_s, deadline_s)
    return Resolved(terms, is_implicit=all(item is None for item in asked))


def class_name_of(headers: Mapping[str, str], settings: SloSettings, caller: Caller) -> str:
    """The class that a refused request would have had, as far as it can be said. Raises nothing."""
    name = headers.get(CLASS_HEADER)
    return name if name in settings.classes and name is not None else _class_of(None, settings, caller)


def _class_of(name: str | None, settings: SloSettings, caller: Caller) -> str:
    """`name` is a class that was asked for. One that key or tenant name and nobody configured is passed over."""
    if name is not None:
        caller.check_class(name, CLASS_HEADER)
        return name
    allowed = caller.allowance.classes
    implied = caller.service_class if caller.service_class in settings.classes else None
    chosen = implied or settings.default_class
    if allowed is None or chosen in allowed:
        return chosen
    return next((other for other in allowed if other in settings.classes), settings.default_class)


class Judged(NamedTuple):
    """A streamed answer against its targets."""

    ttft_s: float
    tpot_s: float  # mean gap after the first token
    is_met: bool  # both


def judge(slo: Slo, *, arrived_at_s: float, first_token_at_s: float, ended_at_s: float, output_tokens: int) -> Judged:
    """Whether a client got what it was to get. All instants of one clock."""
    ttft_s = first_token_at_s - arrived_at_s
    tpot_s = (ended_at_s - first_token_at_s) / max(1, output_tokens - 1)
    return Judged(ttft_s, tpot_s, ttft_s <= slo.ttft_s and tpot_s <= slo.tpot_s)


def _seconds(headers: Mapping[str, str], name: str, most_s: float) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    value = float(text) if _NUMBER.fullmatch(text.strip()) else 0.0
    if not 0.0 < value <= most_s:
        raise bad_request(
            f"{name}: {text!r} is not allowed; allowed: seconds above 0 and up to {most_s:g}, such as 0.5",
            code="bad_slo",
            param=name,
        )
    return value


def _too_late(terms: Terms, param: str) -> ApiError:
    return bad_request(
        f"{param}: the first token is asked for within {terms.slo.ttft_s:g} s ({TTFT_HEADER}), which is after the "
        f"request is given up, {terms.deadline_s:g} s ({DEADLINE_HEADER}; class {terms.class_name!r})",
        code="bad_slo",
        param=param,
    )
