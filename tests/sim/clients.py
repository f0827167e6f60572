"""What clients do, and what becomes of what they ask."""

import math
from dataclasses import dataclass

from router.events import RejectReason
from router.types import RoutingDecision
from tests.sim.workload import Turn


@dataclass(frozen=True, slots=True)
class Clients:
    """How they behave."""

    admission: bool = False  # the routers know their classes, and keep promises
    come_back: int = 0  # times that a client returns when told when


@dataclass(slots=True, eq=False)
class Outcome:
    """What became of one turn, over all times that its client asked."""

    number: int
    turn: Turn
    first_arrived_at_s: float
    arrived_at_s: float = 0.0  # the last time
    tries: int = 0
    has_promise: bool = False  # it was let in with its targets, the last time
    promises_dropped: int = 0  # let in with its targets, then turned away or served without them
    has_place: bool = False  # it was told that a place is kept, the last time
    places: int = 0  # times that it came back to one
    places_kept: int = 0  # and was served with its targets
    reject: RejectReason | None = None
    decision: RoutingDecision | None = None
    cached_tokens: int = 0
    first_token_at_s: float = math.nan
    done_at_s: float = math.nan

    @property
    def ttft_s(self) -> float:
        """From the time that its client asked last."""
        return self.first_token_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> float:
        """Mean gap after the first token; 0 for an answer of one."""
        return (self.done_at_s - self.first_token_at_s) / max(1, self.turn.num_output_tokens - 1)

    @property
    def is_good(self) -> bool:
        """Served within both targets."""
        slo = self.turn.terms.slo
        return self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s
