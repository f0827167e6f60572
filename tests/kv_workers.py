"""Workers as the KV index sees them: what each held after every one of its deltas, and all it has said."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from kvstore.fleet_index import NO_SLOTS, FleetIndex, Slots
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier

WIDTH, DEPTH = 2, 4  # a tree of blocks: each has so many children, down to this depth

Held = dict[Tier, frozenset[int]]  # by tier, as hashes
NOTHING: Held = {tier: frozenset() for tier in Tier}


def build_chains() -> tuple[list[list[int]], dict[int, int]]:
    """Every path from the root to a leaf, and every block's parent (0 at the top)."""
    random, parents = Random(7), dict[int, int]()
    paths: list[list[int]] = [[]]
    for _ in range(DEPTH):
        longer = []
        for path in paths:
            for _ in range(WIDTH):
                block = random.getrandbits(64)
                parents[block] = path[-1] if path else 0
                longer.append([*path, block])
        paths = longer
    return paths, parents


CHAINS, PARENTS = build_chains()


@dataclass
class Worker:
    """One engine rank, and everything it has ever been."""

    source: SourceId
    random: Random
    epoch: int = 1
    seq: int = 0
    held: dict[Tier, set[int]] = field(default_factory=lambda: {tier: set() for tier in Tier})
    history: dict[tuple[int, int], Held] = field(default_factory=lambda: {(1, 0): NOTHING})
    ever: set[tuple[int, Tier, int]] = field(default_factory=set)  # (epoch, tier, block) stored at any moment
    log: list[KvDelta] = field(default_factory=list)

    def restart(self) -> None:
        """A new epoch, with nothing held."""
        self.epoch += 1
        self.seq = 0
        self.held = {tier: set() for tier in Tier}
        self.history[(self.epoch, 0)] = NOTHING

    @property
    def now(self) -> Held:
        """What is held now."""
        return self.history[(self.epoch, self.seq)]

    def step(self) -> KvDelta:
        """One delta of a few changes, as a worker's mirror would send it."""
        changes = tuple(self._change() for _ in range(self.random.randint(0, 3)))
        self.seq += 1
        self.history[(self.epoch, self.seq)] = {tier: frozenset(held) for tier, held in self.held.items()}
        delta = KvDelta(self.source, self.epoch, self.seq, changes)
        self.log.append(delta)
        return delta

    def snapshot(self) -> KvSnapshot:
        """All that is held now."""
        held = {tier: sorted(self.held[tier], key=depth) for tier in Tier if self.held[tier]}
        return KvSnapshot(self.source, self.epoch, self.seq, held)

    def _change(self) -> KvChange:
        tier = self.random.choice([Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DISK])
        held, what = self.held[tier], self.random.random()
        if what < 0.05:
            self.held = {tier: set() for tier in Tier}
            return KvChange(Op.CLEAR, tier, ())
        if what < 0.35 and held:
            gone = []
            for _ in range(self.random.randint(1, 4)):
                leaves = sorted(block for block in held if not any(PARENTS[child] == block for child in held))
                if leaves:
                    gone.append(self.random.choice(leaves))
                    held.discard(gone[-1])
            return KvChange(Op.REMOVE, tier, tuple(gone))
        path = self.random.choice(CHAINS)[: self.random.randint(1, DEPTH)]
        held.update(path)
        self.ever.update((self.epoch, tier, block) for block in path)
        return KvChange(Op.STORE, tier, tuple(path))  # some of them again: an engine that has evicted and computed


def depth(block: int) -> int:
    """How many blocks come before it."""
    return 0 if not PARENTS[block] else 1 + depth(PARENTS[block])


def shown_by(index: FleetIndex, slots: Mapping[SourceId, Slots], source: SourceId) -> Held:
    """What a router that maps sources to these slots concludes from matches alone."""
    ours = slots.get(source, NO_SLOTS)
    held: dict[Tier, set[int]] = {tier: set() for tier in Tier}
    for chain in CHAINS:
        for num_blocks, bits in index.match(chain):
            for tier in Tier:
                slot = ours[tier]
                if slot is not None and bits >> slot & 1:
                    held[tier].update(chain[:num_blocks])
    return {tier: frozenset(blocks) for tier, blocks in held.items()}
