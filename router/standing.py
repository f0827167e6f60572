"""What operators want to know of a router: a record in Redis (`router/standing_reporter.py`). Pure.

Counters rise from 0 while the router lives; a router that starts again has another replica id.
"""

import msgspec

from router import class_gate
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


def decode(data: bytes) -> Standing | None:
    """The standing in `data`; None where another version wrote it, or nobody of ours."""
    try:
        standing = msgspec.json.decode(data, type=Standing)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return standing if standing.version == STANDING_VERSION else None


def with_turned_away(counts: dict[str, ClassCount], turned_away: dict[str, int]) -> dict[str, ClassCount]:
    """The core never hears of requests of paused classes; they arrived all the same."""
    added = dict(counts)
    for name, number in turned_away.items():
        count = counts.get(name, ClassCount())
        rejected = {**count.rejected, class_gate.CODE: number}
        added[name] = msgspec.structs.replace(count, arrived=count.arrived + number, rejected=rejected)
    return added
