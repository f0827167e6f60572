"""One JSON line for every change and every attempt that was refused, through the logger `headrace.audit`.

A line has no token, no cookie and no body in it: who, what, when, from where it was refused and why.
"""

import logging
import time

import msgspec

AUDIT = logging.getLogger("headrace.audit")


def audit(who: str | None, method: str, path: str, status: int, code: str = "") -> None:
    """`code`: of the error, or empty. `path`: without the query, which may be anything."""
    outcome = "done" if status < 400 else "refused" if status in (401, 403) else "failed"
    line = {
        "at_s": round(time.time(), 3),  # Unix time
        "who": who,
        "action": f"{method} {path[:256]}",
        "outcome": outcome,
        "status": status,
        **({"code": code} if code else {}),
    }
    AUDIT.info(msgspec.json.encode(line).decode(), extra={"fields": {"message": "audit", **line}})
