"""Changes of one source on their way out, reduced to their net effect. Pure.

Invariants
 1. Applying what `take` returns has the effect of applying everything added since the last `take`.
 2. In it a block is named once in a tier: what came and went again is not named at all. So a batch that nobody takes
    grows to no more than what was held before it and what is held now.
 3. Parts keep the order of KvChange: removals children first, then stores parents first.
"""

from collections.abc import Iterable, Iterator

from kvstore.kv_types import KvChange, Op, Tier
from workers.kv_reach import CLEAR


class ChangeBatch:
    """Net changes since the last `take`."""

    def __init__(self) -> None:
        self._cleared = False
        self._removed: list[dict[int, None]] = [{} for _ in Tier]  # by tier, in the order of the last removal
        self._stored: list[dict[int, None]] = [{} for _ in Tier]

    @property
    def num_blocks(self) -> int:
        """Blocks named, in all tiers."""
        return sum(map(len, self._removed)) + sum(map(len, self._stored))

    def __bool__(self) -> bool:
        return self._cleared or self.num_blocks > 0

    def add(self, changes: Iterable[KvChange]) -> None:
        """What happened next."""
        for change in changes:
            if change.op is Op.CLEAR:
                self.clear()
                self._cleared = True
            elif change.op is Op.STORE:
                _cancel(change.hashes, self._removed[change.tier], self._stored[change.tier])
            else:
                _cancel(change.hashes, self._stored[change.tier], self._removed[change.tier])

    def take(self, max_blocks: int) -> list[tuple[KvChange, ...]]:
        """Everything, in parts of at most `max_blocks` named blocks; the batch is empty afterwards."""
        parts: list[list[KvChange]] = [[CLEAR]] if self._cleared else []
        room = max_blocks if parts else 0
        for change in self._changes():
            left = change.hashes
            while left:
                if not room:
                    parts.append([])
                    room = max_blocks
                now, left = left[:room], left[room:]
                parts[-1].append(KvChange(change.op, change.tier, now))
                room -= len(now)
        self.clear()
        return [tuple(part) for part in parts]

    def clear(self) -> None:
        """Forget what was added."""
        self._cleared = False
        for blocks in (*self._removed, *self._stored):
            blocks.clear()

    def _changes(self) -> Iterator[KvChange]:
        for op, by_tier in ((Op.REMOVE, self._removed), (Op.STORE, self._stored)):
            for tier in Tier:
                if by_tier[tier]:
                    yield KvChange(op, tier, tuple(by_tier[tier]))


def _cancel(hashes: Iterable[int], opposite: dict[int, None], same: dict[int, None]) -> None:
    for block_hash in hashes:
        if block_hash in opposite:
            del opposite[block_hash]
        else:
            same[block_hash] = None
