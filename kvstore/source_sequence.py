"""Where one source's deltas stand: what was applied, what waits for a missing one, what only a snapshot can mend. Pure.

Invariants
 1. `seq` rises by one with each delta applied, or jumps ahead to a snapshot. So nothing is applied twice or out of
    order.
 2. What is held is newer than `seq + 1`, and bounded in deltas and in blocks. Without room the oldest goes: the
    snapshot that is needed by then will be younger than it.
 3. SYNCED: nothing newer than `seq` is known of. WAITING: something is, and what is missing may still come. BEHIND:
    too much is missing, or it has been for too long; a snapshot is needed.
"""

from enum import StrEnum

from kvstore.kv_types import KvDelta

MAX_HELD_DELTAS = 512
MAX_HELD_BLOCKS = 16_384
PATIENCE_DELTAS = 8  # that may overtake a missing one before a snapshot is asked for


class SyncState(StrEnum):
    """How much of what a source has said is applied (invariant 3)."""

    SYNCED = "synced"
    WAITING = "waiting"
    BEHIND = "behind"


class Arrival(StrEnum):
    """What a delta of the right epoch is to its source."""

    NEXT = "next"
    OLD = "old"
    EARLY = "early"


class SourceSequence:
    """The deltas of one epoch of one source, after `seq` of them."""

    __slots__ = ("_gave_up", "_held", "_overtaken", "_ticked_at_seq", "epoch", "held_blocks", "newest", "seq")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.seq = 0  # an engine starts with nothing, so nothing is exact here
        self.newest = 0  # the highest seq known of
        self.held_blocks = 0
        self._held: dict[int, KvDelta] = {}
        self._overtaken = 0
        self._gave_up = False
        self._ticked_at_seq: int | None = None

    @property
    def state(self) -> SyncState:
        """How things stand (invariant 3)."""
        if self.seq >= self.newest:
            return SyncState.SYNCED
        return SyncState.BEHIND if self._gave_up else SyncState.WAITING

    @property
    def wanted_seq(self) -> int:
        """A snapshot of this seq or a later one closes every gap known of."""
        seq = self.newest
        while seq > self.seq and seq in self._held:
            seq -= 1
        return seq

    def arrival(self, delta: KvDelta) -> Arrival:
        """Whether to apply it now, to forget it, or to `hold` it."""
        if delta.seq <= self.seq or delta.seq in self._held:
            return Arrival.OLD
        return Arrival.NEXT if delta.seq == self.seq + 1 else Arrival.EARLY

    def hold(self, delta: KvDelta) -> None:
        """Keep an EARLY delta until those before it have come."""
        self.newest = max(self.newest, delta.seq)
        self._overtaken += 1
        if self._overtaken > PATIENCE_DELTAS or delta.seq - self.seq - 1 - len(self._held) > PATIENCE_DELTAS:
            self._gave_up = True
        self._held[delta.seq] = delta
        self.held_blocks += _num_blocks(delta)
        while len(self._held) > MAX_HELD_DELTAS or self.held_blocks > MAX_HELD_BLOCKS:
            self._release(min(self._held))

    def advance(self) -> KvDelta | None:
        """One more delta was applied; the one after it, if it is held."""
        self.seq += 1
        self.newest = max(self.newest, self.seq)
        self._settle()
        return self._release(self.seq + 1)

    def jump(self, seq: int) -> KvDelta | None:
        """A snapshot was applied; the delta after it, if it is held."""
        assert seq >= self.seq, "invariant 1: never back"
        self.seq = seq
        self.newest = max(self.newest, seq)
        for held in [held for held in self._held if held <= seq]:
            self._release(held)
        self._settle()
        return self._release(seq + 1)

    def forget_held(self) -> None:
        """Give back the memory; a snapshot will be needed."""
        self._held.clear()
        self.held_blocks = 0
        self._gave_up = True

    def tick(self) -> None:
        """Time has passed: what was missing at the last tick already is not waited for any longer."""
        if self.state is SyncState.WAITING and self._ticked_at_seq == self.seq:
            self._gave_up = True
        self._ticked_at_seq = self.seq if self.state is SyncState.WAITING else None

    def _settle(self) -> None:
        if self.seq >= self.newest:
            self._overtaken = 0
            self._gave_up = False

    def _release(self, seq: int) -> KvDelta | None:
        delta = self._held.pop(seq, None)
        if delta is not None:
            self.held_blocks -= _num_blocks(delta)
        return delta


def _num_blocks(delta: KvDelta) -> int:
    return sum(len(change.hashes) for change in delta.changes)
