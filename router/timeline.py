"""Work planned on a time axis cut into slots, each with the same room. Pure.

Invariants
 1. What is planned in a slot is the sum of the plans that were made and not freed: never negative.
 2. A plan takes the first room there is from its first slot on, and never more than a slot has.
"""

from dataclasses import dataclass

import numpy as np

from router.demand import Seconds

_GROW_SLOTS = 256
_LEAST_S = 1e-9

Slots = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Work by slot."""

    slots: Slots
    work_s: Seconds


class Timeline:
    """Slots are numbered from any origin; memory is that of the span in use."""

    def __init__(self) -> None:
        self._first = 0
        self._work_s: Seconds = np.zeros(0)

    def forget_before(self, slot: int) -> None:
        """Nothing is planned before this slot any more, and nothing will be."""
        passed = slot - self._first
        if passed >= len(self._work_s):
            self._first, self._work_s = slot, np.zeros(0)
        elif passed > _GROW_SLOTS:
            self._first, self._work_s = slot, self._work_s[passed:].copy()

    def room_s(self, firsts: Slots, ends: Slots, slot_room_s: float) -> Seconds:
        """Room in each span [first, end) of slots; all at or after the last `forget_before`."""
        self._reach(int(ends.max()))
        room = np.maximum(slot_room_s - self._work_s, 0.0)
        until = np.concatenate(([0.0], np.cumsum(room)))
        found: Seconds = until[ends - self._first] - until[firsts - self._first]
        return found

    def plan(self, slot: int, work_s: float, slot_room_s: float) -> Plan:
        """Plan work from a slot on, as early as there is room."""
        assert slot_room_s > 0.0 and work_s > 0.0
        end = slot + int(work_s / slot_room_s) + 1
        while True:
            self._reach(end)
            at = slot - self._first
            room = np.maximum(slot_room_s - self._work_s[at : end - self._first], 0.0)
            until = np.cumsum(room)
            if until[-1] >= work_s - _LEAST_S:
                break
            end += len(room)
        num = min(int(np.searchsorted(until, work_s)) + 1, len(room))
        taken = room[:num].copy()
        taken[-1] -= max(0.0, until[num - 1] - work_s)
        self._work_s[at : at + num] += taken
        used = np.flatnonzero(taken)
        return Plan(used + slot, taken[used])

    def free(self, plan: Plan) -> None:
        """Take a plan back. What was forgotten of it stays so."""
        at = plan.slots - self._first
        live = at >= 0
        self._work_s[at[live]] = np.maximum(self._work_s[at[live]] - plan.work_s[live], 0.0)

    def planned_s(self) -> dict[int, float]:
        """Work by slot, where there is any."""
        return {int(at) + self._first: float(self._work_s[at]) for at in np.flatnonzero(self._work_s > _LEAST_S)}

    def _reach(self, end: int) -> None:
        missing = end - self._first - len(self._work_s)
        if missing > 0:
            self._work_s = np.concatenate((self._work_s, np.zeros(missing + _GROW_SLOTS)))
