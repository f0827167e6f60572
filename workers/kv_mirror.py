"""A copy of one engine rank's block table, from its events: what the engine could serve from its cache now. Pure.

Invariants
 1. Never more than the engine: a block counts as held in a tier only if the events so far, taken in order and without
    a gap, prove that the engine holds it there. Less is allowed: it costs latency, and later events make it good.
    (Canonical blocks may be smaller than the engine's. A prompt that leaves the known ones inside an engine block
    cannot reuse that one: whoever predicts a hit rounds it down to the engine's block size.)
 2. What `apply`, `clear` and `distrust` return is every change of what is reachable (workers/kv_block_tree.py);
    replayed onto empty sets it gives `snapshot`.
 3. A stored run proves the path to it: the engine computes blocks on DEVICE only over ancestors held on DEVICE. So a
    store under a known block marks its ancestors as held. That is what heals the mirror after `distrust`, and after a
    removal that was one of several copies (vLLM does not deduplicate blocks, and tells of each copy's end).
 4. A block under an unknown parent cannot be named: it is left out, with all after it, and counted in `orphans`.
 5. No more than `max_blocks` blocks are known. One more is left out and sets `overflowed`.
 6. Only a single KV cache group of full attention is understood. With several, a prefix is reusable where *all* groups
    can serve it, and some forget early (sliding window, Mamba): then the mirror is `dark` and reports nothing.
 7. A reset of the engine's cache clears every tier: the event does not say which ones survive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvstore.kv_types import KvChange, Tier
from workers.kv_block_tree import ALL_TIERS, Block, BlockTree
from workers.kv_event_codec import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from workers.kv_identity import Identity, UndescribedBlocksError, identify
from workers.kv_reach import CLEAR

_TIER_OF_MEDIUM = {"gpu": Tier.DEVICE, "cpu": Tier.HOST, "storage": Tier.DISK, "disk": Tier.DISK}
_FULL_ATTENTION = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})


@dataclass(slots=True)
class MirrorCounters:
    """Blocks that were left out since the start, by reason."""

    orphans: int = 0  # the block before is not known (invariant 4)
    undescribed: int = 0  # the event lacks tokens or extra keys, as those of some connectors do
    elsewhere: int = 0  # in a medium that is no tier of this worker
    overflowed: int = 0  # there was no room (invariant 5)


class KvMirror:
    """One rank's block table. `block_size_tokens` is the canonical one; the engine's is in its events."""

    def __init__(self, block_size_tokens: int, max_blocks: int) -> None:
        self._block_size_tokens = block_size_tokens
        self._tree = BlockTree(max_blocks)
        self.counters = MirrorCounters()
        self.overflowed = False
        self.dark = False

    def __len__(self) -> int:
        """Engine blocks held in some tier."""
        return self._tree.num_held

    @property
    def num_known(self) -> int:
        """Engine blocks held or remembered."""
        return self._tree.num_known

    def limit(self, max_blocks: int) -> None:
        """Set the bound (invariant 5); what is held stays."""
        self._tree.max_blocks = max_blocks

    def apply(self, events: Sequence[KvEvent]) -> list[KvChange]:
        """Take in events, in the engine's order; return what became reachable and what stopped being so."""
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self._tree.forget_all()
            elif self.dark:
                continue
            elif event.group_idx or (
                isinstance(event, BlockStored) and event.kv_cache_spec_kind not in _FULL_ATTENTION
            ):
                self._tree.forget_all()
                self.dark = True
            elif isinstance(event, BlockStored):
                self._store(event)
            else:
                self._remove(event)
        return self._tree.log.take()

    def clear(self) -> KvChange:
        """The engine has restarted: forget everything."""
        self._tree.forget_all()
        self._tree.log.take()
        self.overflowed = self.dark = False
        return CLEAR

    def distrust(self) -> KvChange:
        """Events were lost: nothing counts as held until it is proved anew (invariant 3)."""
        self._tree.release_all()
        self._tree.log.take()
        self.overflowed = False
        return CLEAR

    def snapshot(self) -> Mapping[Tier, list[int]]:
        """Canonical hashes reachable within each published tier, parents before children."""
        return self._tree.log.snapshot()

    def _store(self, event: BlockStored) -> None:
        tier = _tier(event)
        if tier is None:
            self.counters.elsewhere += len(event.block_hashes)
            return
        before: Block | None = None
        if event.parent_block_hash is not None:
            before = self._tree.get(event.parent_block_hash)
            if before is None:
                self.counters.orphans += len(event.block_hashes)
                return
            if tier is Tier.DEVICE:
                self._tree.hold_path(before)
        identities: list[Identity] = []  # of the blocks from number `base` on
        base = 0
        for index, key in enumerate(event.block_hashes):
            block = self._tree.get(key)
            if block is None:
                if not identities:
                    base, identities = index, self._identify(event, index, before)
                    if not identities:
                        return
                block = self._tree.add(key, before, identities[index - base])
                if block is None:
                    self.overflowed = True
                    self.counters.overflowed += len(event.block_hashes) - index
                    return
            self._tree.hold(block, tier)
            before = block

    def _identify(self, event: BlockStored, first: int, before: Block | None) -> list[Identity]:
        """None of them where the event does not describe its blocks."""
        try:
            return identify(event, first, None if before is None else before.end, self._block_size_tokens)
        except UndescribedBlocksError:
            self.counters.undescribed += len(event.block_hashes) - first
            return []

    def _remove(self, event: BlockRemoved) -> None:
        tier = _tier(event)
        if tier is None and event.medium is not None:
            return
        tiers = ALL_TIERS if tier is None else 1 << tier  # of a medium without a name: to be safe, of all
        for key in event.block_hashes:
            block = self._tree.get(key)
            if block is not None:
                self._tree.release(block, tiers)
        self._tree.trim()


def _tier(event: BlockStored | BlockRemoved) -> Tier | None:
    """The tier of this worker that an event is about; None: of another worker, or of no known medium."""
    if event.medium is None or event.locality == "REMOTE":
        return None
    return _TIER_OF_MEDIUM.get(event.medium.lower())


def _is_full_attention(event: BlockStored | BlockRemoved) -> bool:
    return isinstance(event, BlockRemoved) or event.kv_cache_spec_kind in _FULL_ATTENTION
