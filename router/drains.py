"""Which workers operators have told to drain, laid over what their leases say. Pure.

A drained worker finishes what it has and is given nothing new; that its engine restarts changes nothing.

Invariants
 1. What is passed on is what the lease says, but that a READY engine that is to drain is DRAINING.
 2. A change of what is to drain passes on exactly the engines of the fleet whose phase it changes.
"""

from collections.abc import Collection
from dataclasses import replace

from kvstore.types import WorkerId
from workers.membership import Joined, Left
from workers.types import Phase, WorkerState


def laid_over(state: WorkerState, *, is_drained: bool) -> WorkerState:
    """The engine as routers take it."""
    return replace(state, phase=Phase.DRAINING) if is_drained and state.phase is Phase.READY else state


class Drains:
    """Between those who follow leases and intents, and the router's service."""

    def __init__(self) -> None:
        self._engines: dict[WorkerId, WorkerState] = {}  # as their leases say
        self._drained: frozenset[WorkerId] = frozenset()

    @property
    def drained(self) -> frozenset[WorkerId]:
        """Engines that are to drain, in the fleet or not."""
        return self._drained

    def on_membership(self, change: Joined | Left) -> Joined | Left:
        """What to pass on of a change in the fleet."""
        if isinstance(change, Left):
            self._engines.pop(change.worker_id, None)
            return change
        worker_id = change.state.spec.id
        self._engines[worker_id] = change.state
        return Joined(laid_over(change.state, is_drained=worker_id in self._drained))

    def on_drained(self, drained: Collection[str]) -> list[Joined]:
        """From now on these engines are to drain, and no others: whose phase changes by it."""
        before, self._drained = self._drained, frozenset(WorkerId(name) for name in drained)
        changed = sorted(before ^ self._drained)
        known = [self._engines[worker_id] for worker_id in changed if worker_id in self._engines]
        return [
            Joined(laid_over(state, is_drained=state.spec.id in self._drained))
            for state in known
            if state.phase is Phase.READY
        ]
