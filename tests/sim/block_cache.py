"""The KV blocks of a simulated engine: prefix caching with LRU eviction, as vLLM's block pool.

Invariants
 1. Blocks in use, idle and private never exceed the capacity.
 2. A block that is held has its parent held: idle blocks are evicted children first.
"""

from collections import OrderedDict
from collections.abc import Sequence


class BlockCache:
    """Counts blocks and says which hashes appeared and went; stores no tokens."""

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity_blocks = capacity_blocks
        self._users: dict[int, int] = {}  # hash -> sequences that use it; 0: idle, may be evicted
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private_blocks = 0  # in use, without a hash yet
        self.stored: list[int] = []  # since the last `changes`
        self.removed: list[int] = []

    @property
    def used_blocks(self) -> int:
        """What vLLM reports: idle cached blocks count as free."""
        return len(self._users) - len(self._idle) + self._private_blocks

    def match(self, chain: Sequence[int]) -> int:
        """Leading blocks held."""
        for depth, block in enumerate(chain):
            if block not in self._users:
                return depth
        return len(chain)

    def take(self, held: Sequence[int], fresh_blocks: int) -> bool:
        """Use the blocks `held` (all are) and room for `fresh_blocks` more; False, and nothing done, without room."""
        idle = sum(self._users[block] == 0 for block in held)
        if len(self._users) + self._private_blocks + fresh_blocks - (len(self._idle) - idle) > self.capacity_blocks:
            return False
        for block in held:
            self._use(block)
        self._private_blocks += fresh_blocks
        while len(self._users) + self._private_blocks > self.capacity_blocks:
            evicted, _ = self._idle.popitem(last=False)
            del self._users[evicted]
            self.removed.append(evicted)
        return True

    def commit(self, blocks: Sequence[int]) -> None:
        """Private blocks have been computed: from now on others find them by hash. Parents first."""
        for block in blocks:
            if block not in self._users:
                self._users[block] = 1
                self.stored.append(block)
            else:
                self._use(block)
        self._private_blocks -= len(blocks)

    def release(self, blocks: Sequence[int], private_blocks: int) -> None:
        """A sequence is over: its blocks become idle, the last one being the first to go."""
        self._private_blocks -= private_blocks
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._idle[block] = None

    def changes(self) -> tuple[list[int], list[int]]:
        """(removed, stored) since the last call; a block that went and came back is in both."""
        removed, stored = self.removed, self.stored
        self.removed, self.stored = [], []
        return removed, stored

    def _use(self, block: int) -> None:
        if self._users[block] == 0:
            del self._idle[block]
        self._users[block] += 1
