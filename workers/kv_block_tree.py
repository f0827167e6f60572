"""The blocks of one engine rank as a tree: which tiers hold them, and what is reachable because of that. Pure.

Invariants
 1. A block is reachable within a tier when it and all its ancestors are held in that tier or a faster one. Every
    change of that is in the log (workers/kv_reach.py), children below their parents.
 2. A ghost is a block held in no tier. What a block stands for never changes, so ghosts stay known while they have
    descendants, and otherwise, oldest forgotten first, while ghosts are no more than a sixteenth of `max_blocks`.
 3. A known block's parent is known. No more than `max_blocks` are known; held ones are never forgotten for room.
"""

from collections import OrderedDict

from kvstore.kv_types import Tier
from workers.kv_event_codec import EngineHash
from workers.kv_identity import ChainEnd, Identity
from workers.kv_reach import NOWHERE, ReachLog

ALL_TIERS = (1 << NOWHERE) - 1
# Fastest tier of a bit mask of tiers.
_FASTEST = tuple(next((tier for tier in Tier if mask >> tier & 1), NOWHERE) for mask in range(1 << NOWHERE))
_GHOST_SHARE = 16


class Block:
    """One engine block. Only the tree changes it."""

    __slots__ = ("children", "end", "hashes", "key", "parent", "reach", "tiers")

    def __init__(self, key: EngineHash, parent: "Block | None", identity: Identity) -> None:
        self.key = key
        self.parent = parent  # None: it begins a prompt
        self.hashes: tuple[int, ...] = identity[0]  # canonical blocks completed in it
        self.end: ChainEnd = identity[1]
        self.tiers = 0  # bit mask
        self.reach: int = NOWHERE
        self.children: dict[EngineHash, Block] | None = None


class BlockTree:
    """The blocks known of one engine rank."""

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self.log = ReachLog()
        self._blocks: dict[EngineHash, Block] = {}
        self._ghosts: OrderedDict[EngineHash, Block] = OrderedDict()  # those without children, oldest first
        self._num_ghosts = 0  # all of them

    @property
    def num_held(self) -> int:
        """Blocks held in some tier."""
        return len(self._blocks) - self._num_ghosts

    @property
    def num_known(self) -> int:
        """Blocks held, and ghosts."""
        return len(self._blocks)

    def get(self, key: EngineHash) -> Block | None:
        """The block, if it is known."""
        return self._blocks.get(key)

    def add(self, key: EngineHash, parent: Block | None, identity: Identity) -> Block | None:
        """Know a new block, for the caller to `hold`; None where there is no room."""
        is_leaf = parent is not None and self._ghosts.pop(parent.key, None) is not None
        if len(self._blocks) >= self.max_blocks and not self._forget_a_ghost():
            if is_leaf and parent is not None:
                self._ghosts[parent.key] = parent
            return None
        block = self._blocks[key] = Block(key, parent, identity)
        self._num_ghosts += 1
        if parent is not None:
            self._ghosts.pop(parent.key, None)  # the ghost just forgotten may have been its only other child
            if parent.children is None:
                parent.children = {}
            parent.children[key] = block
        return block

    def hold(self, block: Block, tier: Tier) -> None:
        """The tier holds the block."""
        if block.tiers >> tier & 1:
            return
        if not self.log.is_open(tier):
            self.log.open(tier, (known.hashes for known in self._blocks.values() if known.reach <= tier))
        if not block.tiers:
            self._num_ghosts -= 1
            self._ghosts.pop(block.key, None)
        block.tiers |= 1 << tier
        self._update_reach(block)

    def hold_path(self, block: Block) -> None:
        """DEVICE holds the block and all its ancestors."""
        path = []
        step: Block | None = block
        while step is not None and step.reach != Tier.DEVICE:
            path.append(step)
            step = step.parent
        for step in reversed(path):
            self.hold(step, Tier.DEVICE)

    def release(self, block: Block, tiers: int) -> None:
        """The tiers of this bit mask hold the block no longer."""
        if not block.tiers & tiers:
            return
        block.tiers &= ~tiers
        self._update_reach(block)
        if not block.tiers:
            self._num_ghosts += 1
            if not block.children:
                self._ghosts[block.key] = block

    def release_all(self) -> None:
        """No tier holds anything, but all blocks stay known as far as ghosts may."""
        for block in self._blocks.values():
            block.tiers, block.reach = 0, NOWHERE
        self._ghosts = OrderedDict((key, block) for key, block in self._blocks.items() if not block.children)
        self._num_ghosts = len(self._blocks)
        self.log.clear()
        self.trim()

    def forget_all(self) -> None:
        """Nothing is known any more."""
        self._blocks.clear()
        self._ghosts.clear()
        self._num_ghosts = 0
        self.log.clear()

    def trim(self) -> None:
        """Forget surplus ghosts (invariant 2). `release` does not: its caller may go on with blocks that it got."""
        while self._num_ghosts > self.max_blocks // _GHOST_SHARE and self._forget_a_ghost():
            pass

    def _update_reach(self, block: Block) -> None:
        """Let a change of `tiers` take effect on the block and everything below it (invariant 1)."""
        reach = _reach(block)
        if reach == block.reach:
            return
        old, block.reach = block.reach, reach
        if not block.children:  # the usual case: blocks come and go at the ends of chains
            (self.log.rise if reach < old else self.log.sink)(block.hashes, reach, old)
        else:
            self._spread(block, old)

    def _spread(self, block: Block, old: int) -> None:
        rises = block.reach < old
        affected = [(block, old)]
        for changed, _ in affected:  # grows while it is walked: parents come before children
            for child in changed.children.values() if changed.children else ():
                reach = _reach(child)
                if reach != child.reach:
                    affected.append((child, child.reach))
                    child.reach = reach
        if rises:
            for changed, old in affected:
                self.log.rise(changed.hashes, changed.reach, old)
        else:
            for changed, old in reversed(affected):
                self.log.sink(changed.hashes, changed.reach, old)

    def _forget_a_ghost(self) -> bool:
        if not self._ghosts:
            return False
        key, block = self._ghosts.popitem(last=False)
        del self._blocks[key]
        self._num_ghosts -= 1
        parent = block.parent
        if parent is not None and parent.children is not None:
            del parent.children[key]
            if not parent.children and not parent.tiers:
                self._ghosts[parent.key] = parent
        return True


def _reach(block: Block) -> int:
    """The fastest tier within which a block and all its ancestors are held."""
    own = _FASTEST[block.tiers]
    return own if block.parent is None else max(own, block.parent.reach)
