"""Claim: one core follows hundreds of thousands of block events a second.

    python -m tests.bench.index_apply

A fleet at its memory's limit: every delta stores what one worker computed and removes as much of its oldest, children
first. Deltas are decoded; what is timed is `FleetIndex.apply`, in CPU seconds of the one thread there is.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from xxhash import xxh3_64_intdigest

from kvstore.fleet_index import FleetIndex
from kvstore.kv_types import KvChange, KvDelta, Op, SourceId, Tier
from kvstore.prefix_index import PrefixIndex
from kvstore.types import WorkerId

NUM_SOURCES = 64
BLOCKS_HELD = 8192  # by each source
NUM_EVENTS = 2_000_000
PREFILL_BLOCKS = 32  # a chunk of 512 tokens
DECODE_BLOCKS = 8  # of as many sequences, each one longer by a block


class Source:
    """One worker's cache: it stores, and forgets its oldest when it is full."""

    def __init__(self, number: int, blocks_held: int, new_blocks: Callable[[int], tuple[int, ...]]) -> None:
        self._blocks_held = blocks_held
        self._id = SourceId(WorkerId(f"worker-{number}"))
        self._new_blocks = new_blocks
        self._held: deque[tuple[int, ...]] = deque()
        self._num_held = self._seq = 0

    def delta(self, sizes: tuple[int, ...]) -> KvDelta:
        """The next one: so many new blocks in each change, and removals to make room."""
        changes = [KvChange(Op.STORE, Tier.DEVICE, self._new_blocks(size)) for size in sizes]
        self._held.extend(change.hashes for change in changes)
        self._num_held += sum(sizes)
        while self._num_held > self._blocks_held:
            oldest = self._held.popleft()
            self._num_held -= len(oldest)
            changes.append(KvChange(Op.REMOVE, Tier.DEVICE, oldest[::-1]))
        self._seq += 1
        return KvDelta(self._id, 1, self._seq, tuple(changes))


def new_hashes() -> Callable[[int], tuple[int, ...]]:
    """A source of block hashes that never come twice."""
    numbers = count()
    return lambda size: tuple(xxh3_64_intdigest(next(numbers).to_bytes(8, "little")) for _ in range(size))


def deltas(sizes: tuple[int, ...], blocks_held: int) -> Iterator[KvDelta]:
    """Deltas of all sources in random order, for ever."""
    random, new_blocks = Random(1), new_hashes()
    sources = [Source(number, blocks_held, new_blocks) for number in range(NUM_SOURCES)]
    while True:
        yield random.choice(sources).delta(sizes)


def apply_rate(sizes: tuple[int, ...], num_events: int, blocks_held: int) -> float:
    """Block events a CPU second once every cache is full: stores and removals alike."""
    index, stream = FleetIndex(PrefixIndex(1 << 28)), deltas(sizes, blocks_held)
    for _ in range(NUM_SOURCES * blocks_held * 5 // 4 // sum(sizes)):
        index.apply(next(stream))
    done, spent_s = 0, 0.0
    while done < num_events:
        batch = [next(stream) for _ in range(200)]
        began_s = time.process_time()
        for delta in batch:
            index.apply(delta)
        spent_s += time.process_time() - began_s
        done += sum(len(change.hashes) for delta in batch for change in delta.changes)
    return done / spent_s


def measure_apply(num_events: int = NUM_EVENTS, blocks_held: int = BLOCKS_HELD) -> dict[str, float]:
    """`apply_per_s` for prefill and decode mixed, and the worst case: every block in a change of its own."""
    return {
        "apply_per_s": round(apply_rate((PREFILL_BLOCKS, DECODE_BLOCKS), num_events, blocks_held)),
        "apply_single_per_s": round(apply_rate((1,), num_events // 4, blocks_held)),
    }


def main() -> None:
    """Print the line."""
    print(json.dumps(measure_apply()))


if __name__ == "__main__":
    main()
