"""Something planned on a time axis cut into slots, each with the same room: seconds of work, or sequences. Pure.

Invariants
 1. What is planned in a slot is the sum of the plans that were made and not freed: never negative.
 2. A plan takes the first room there is from its first slot on, and never more than a slot has.
"""

from dataclasses import dataclass

import numpy as np

from router.fleet.table import Column

_GROW_SLOTS = 256
_LEAST = 1e-9

Slots = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Amounts by slot."""

    slots: Slots
    amounts: Column


class Timeline:
    """Slots are numbered from any origin; memory is that of the span in use."""

    def __init__(self) -> None:
        self._first = 0
        self._planned: Column = np.zeros(0)

    def forget_before(self, slot: int) -> None:
        """Nothing is planned before this slot any more, and nothing will be."""
        passed = slot - self._first
        if passed >= len(self._planned):
            self._first, self._planned = slot, np.zeros(0)
        elif passed > _GROW_SLOTS:
            self._first, self._planned = slot, self._planned[passed:].copy()

    def room(self, firsts: Slots, ends: Slots, slot_room: float) -> Column:
        """Room in each span [first, end) of slots; all at or after the last `forget_before`."""
        self._reach(int(ends.max()))
        room = np.maximum(slot_room - self._planned, 0.0)
        until = np.concatenate(([0.0], np.cumsum(room)))
        found: Column = until[ends - self._first] - until[firsts - self._first]
        return found

    def plan(self, slot: int, amount: float, slot_room: float) -> Plan:
        """Plan an amount from a slot on, as early as there is room."""
        assert slot_room > 0.0 and amount > 0.0
        end = slot + int(amount / slot_room) + 1
        while True:
            self._reach(end)
            at = slot - self._first
            room = np.maximum(slot_room - self._planned[at : end - self._first], 0.0)
            until = np.cumsum(room)
            if until[-1] >= amount - _LEAST:
                break
            end += len(room)
        num = min(int(np.searchsorted(until, amount)) + 1, len(room))
        taken = room[:num].copy()
        taken[-1] -= max(0.0, until[num - 1] - amount)
        self._planned[at : at + num] += taken
        used = np.flatnonzero(taken)
        return Plan(used + slot, taken[used])

    def free(self, plan: Plan) -> None:
        """Take a plan back. What was forgotten of it stays so."""
        at = plan.slots - self._first
        live = at >= 0
        self._planned[at[live]] = np.maximum(self._planned[at[live]] - plan.amounts[live], 0.0)

    def planned(self) -> dict[int, float]:
        """Amounts by slot, where there is any."""
        return {int(at) + self._first: float(self._planned[at]) for at in np.flatnonzero(self._planned > _LEAST)}

    def _reach(self, end: int) -> None:
        missing = end - self._first - len(self._planned)
        if missing > 0:
            self._planned = np.concatenate((self._planned, np.zeros(missing + _GROW_SLOTS)))
