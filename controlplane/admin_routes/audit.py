"""One JSON line for every change and every attempt that was refused, through the logger `headrace.audit`.

A line has no token, no cookie and no body in it: who, what, when, from where it was refused and why.
"""

import logging
import time
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

AUDIT = logging.getLogger("headrace.audit")
_NOTHING: Mapping[str, str] = MappingProxyType({})


def audit(
    who: str | None, method: str, path: str, status: int, code: str = "", about: Mapping[str, str] = _NOTHING
) -> None:
    """`code`: of the error, or empty. `path`: without the query, which may be anything. `about`: what was made."""
    outcome = "done" if status < 400 else "refused" if status in (401, 403) else "failed"
    line = {
        "at_s": round(time.time(), 3),  # Unix time
        "who": who,
        "action": f"{method} {path[:256]}",
        "outcome": outcome,
        "status": status,
        **({"code": code} if code else {}),
        **about,
    }
    AUDIT.info(msgspec.json.encode(line).decode(), extra={"fields": {"message": "audit", **line}})
