"""What a worker says about the KV blocks it holds. Hashes are canonical (`kvstore/blocks.py`), not an engine's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from kvstore.types import WorkerId


class Tier(IntEnum):
    """Where a block lies, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class Op(IntEnum):
    """What happened to blocks."""

    STORE = 0
    REMOVE = 1
    CLEAR = 2


@dataclass(frozen=True, slots=True, order=True)
class SourceId:
    """One KV cache: an engine's data-parallel rank."""

    worker_id: WorkerId
    dp_rank: int = 0


@dataclass(frozen=True, slots=True)
class KvChange:
    """Blocks that became reachable, or stopped being so, within tiers up to `tier`.

    A block is reachable at a tier when it and all its ancestors are held in that tier or a faster one. STORE lists
    parents before children, REMOVE children before parents; CLEAR empties all tiers and lists nothing.
    """

    op: Op
    tier: Tier
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KvDelta:
    """Changes number `seq` (from 1, contiguous) of one epoch of a source."""

    source: SourceId
    epoch: int
    seq: int
    changes: tuple[KvChange, ...]


@dataclass(frozen=True, slots=True)
class KvSnapshot:
    """Everything reachable at each tier after delta `seq` of an epoch, parents before children."""

    source: SourceId
    epoch: int
    seq: int
    held: Mapping[Tier, Sequence[int]]
