"""Slot numbers and the lives they lead: free, open (perhaps truncated or lost), retired, swept, free again.

Invariants
 1. `hidden` has every slot that is retired or lost and whose bit may still be in some set.
 2. A number is free only after a whole pass over the sets that began after it was retired.
"""

from heapq import heappop, heappush

SLOT_BYTES = 80  # of a number ever used: its state, its place among the free, and what the index keeps by slot

# Plain integers, because members of an enum cost as much to compare as the rest of storing a block.
FREE, OPEN, TRUNCATED, LOST, RETIRED = range(5)


class SlotLives:
    """Every number ever used and its state. Bitsets over slots are ints."""

    def __init__(self) -> None:
        self.states: list[int] = []
        self.num_live = 0
        self.hidden = 0
        self.sweeping = 0  # what the current pass removes
        self._waiting = 0  # hidden since the pass began: for the next one
        self._free: list[int] = []  # a heap: low numbers keep bitsets narrow

    @property
    def bytes_used(self) -> int:
        """Memory of all numbers."""
        return len(self.states) * SLOT_BYTES

    def open(self) -> int:
        """The lowest number whose bit is nowhere."""
        if not self._free:
            self._free.append(len(self.states))
            self.states.append(FREE)
        slot = heappop(self._free)
        self.states[slot] = OPEN
        self.num_live += 1
        return slot

    def state(self, slot: int) -> int:
        """OPEN, TRUNCATED or LOST; AssertionError if nobody has opened it."""
        state = self.states[slot]
        assert OPEN <= state <= LOST, f"invariant 2: slot {slot} is not open"
        return state

    def truncate(self, slot: int) -> None:
        """It lacks blocks from now on."""
        self.states[slot] = TRUNCATED

    def lose(self, slot: int) -> None:
        """It is still its owner's, but nobody sees it."""
        self._hide(slot, LOST)

    def retire(self, slot: int) -> None:
        """Its owner is done with it."""
        self._hide(slot, RETIRED)
        self.num_live -= 1

    def begin_pass(self) -> None:
        """The sets will now be gone through, and every bit in `sweeping` removed."""
        self.sweeping, self._waiting = self._waiting, 0

    def end_pass(self) -> None:
        """They were."""
        swept = self.sweeping & ~self._waiting  # lost before the pass and retired since: needs another
        self.hidden, self.sweeping = self._waiting, 0
        while swept:
            slot = (swept & -swept).bit_length() - 1
            swept &= swept - 1
            if self.states[slot] == RETIRED:
                self.states[slot] = FREE
                heappush(self._free, slot)

    def _hide(self, slot: int, state: int) -> None:
        self.state(slot)
        self.states[slot] = state
        self._waiting |= 1 << slot
        self.hidden |= 1 << slot
