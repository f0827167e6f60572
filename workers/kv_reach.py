"""Which canonical blocks are reachable in each tier, and how that changes. Pure.

Invariants
 1. A canonical block is in a tier's set while at least one engine block that completes it is reachable there: two
    engine blocks may complete the same one (a fork inside a larger engine block), so they are counted.
 2. A tier's set is cumulative (a faster tier's set is part of it) and closed under "parent of".
 3. A tier below DEVICE is silent until `open`: while nothing has been held there its set would repeat the one above.
    So what is reachable within tier t is the union of the published sets of tiers up to t.
 4. Replaying what `take` has returned, in order, onto empty sets gives exactly `snapshot`.
"""

from collections.abc import Iterable, Mapping

from kvstore.kv_types import KvChange, Op, Tier

NOWHERE = len(Tier)  # a reach: not reachable in any tier; otherwise a reach is the fastest tier that suffices
CLEAR = KvChange(Op.CLEAR, Tier.DEVICE, ())


class ReachLog:
    """Counts engine blocks for each canonical one, and keeps the changes until they are taken."""

    def __init__(self) -> None:
        self._held: list[dict[int, int] | None] = []
        self._runs: list[list[tuple[Op, list[int]]]] = []
        self._cleared = False
        self._empty()

    def is_open(self, tier: Tier) -> bool:
        """Whether the tier's set is published."""
        return self._held[tier] is not None

    def open(self, tier: Tier, reachable: Iterable[tuple[int, ...]]) -> None:
        """Publish a tier from now on; `reachable`: hashes of what is reachable within it, parents before children."""
        self._held[tier] = {}
        for hashes in reachable:
            self._add(tier, hashes)

    def rise(self, hashes: tuple[int, ...], new: int, old: int) -> None:
        """An engine block that completes `hashes` (parents first) is reachable from tier `new` on, not only `old`."""
        for tier in range(new, old):
            if self._held[tier] is not None:
                self._add(tier, hashes)

    def sink(self, hashes: tuple[int, ...], new: int, old: int) -> None:
        """The opposite: it was reachable from tier `old` on, and now only from `new` on."""
        for tier in range(old, new):
            held = self._held[tier]
            if held is None:
                continue
            for block_hash in reversed(hashes):
                count = held[block_hash] - 1
                if count:
                    held[block_hash] = count
                else:
                    del held[block_hash]
                    self._run(tier, Op.REMOVE).append(block_hash)

    def clear(self) -> None:
        """Nothing is reachable any more; tiers below DEVICE are silent again."""
        self._empty()
        self._cleared = True

    def take(self) -> list[KvChange]:
        """The changes since the last call, in order."""
        changes = [CLEAR] if self._cleared else []
        for tier in Tier:
            changes += (KvChange(op, tier, tuple(hashes)) for op, hashes in self._runs[tier])
            self._runs[tier] = []
        self._cleared = False
        return changes

    def snapshot(self) -> Mapping[Tier, list[int]]:
        """Everything reachable in each tier that is not silent, parents before children."""
        # Insertion order: a block enters after its parent, and its parent cannot leave before it.
        return {tier: list(held) for tier in Tier if (held := self._held[tier]) is not None}

    def _add(self, tier: int, hashes: tuple[int, ...]) -> None:
        held = self._held[tier]
        assert held is not None
        for block_hash in hashes:
            count = held.get(block_hash, 0)
            held[block_hash] = count + 1
            if not count:
                self._run(tier, Op.STORE).append(block_hash)

    def _run(self, tier: int, op: Op) -> list[int]:
        runs = self._runs[tier]
        if not runs or runs[-1][0] is not op:
            runs.append((op, []))
        return runs[-1][1]

    def _empty(self) -> None:
        self._held = [{}, *(None for _ in range(NOWHERE - 1))]
        self._runs = [[] for _ in Tier]
