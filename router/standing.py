"""What operators want to know of a router: a record in Redis (`router/standing_reporter.py`). Pure.

Counters rise from 0 while the router lives; a router that starts again has another replica id.
"""

from collections.abc import Mapping

import msgspec

from router.class_counts import ClassCount

STANDING_VERSION = 1


class Standing(msgspec.Struct, frozen=True):
    """One router now."""

    version: int
    in_flight: int  # requests that have not ended
    waiting: int  # of these, in its queues
    classes: dict[str, ClassCount]
    seqs: dict[str, int]  # by engine, requests that it has there
    drained: tuple[str, ...]  # engines to which it gives nothing new
    paused: tuple[str, ...]  # classes that it takes no requests of
    waiting_by_class: dict[str, int] = msgspec.field(default_factory=dict)
    refused_tenants: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # by reason; who asks most


def decode(data: bytes) -> Standing | None:
    """The standing in `data`; None where another version wrote it, or nobody of ours."""
    try:
        standing = msgspec.json.decode(data, type=Standing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return standing if standing.version == STANDING_VERSION else None


def with_refused(counts: dict[str, ClassCount], refused: Mapping[tuple[str, str], int]) -> dict[str, ClassCount]:
    """The core never hears of some requests, by class and reason; they arrived all the same."""
    added = dict(counts)
    for (name, reason), number in refused.items():
        if not number:
            continue
        count = added.get(name, ClassCount())
        rejected = {**count.rejected, reason: number}
        added[name] = msgspec.structs.replace(count, arrived=count.arrived + number, rejected=rejected)
    return added
