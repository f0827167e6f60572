"""A map from block hash to a small integer, flat in memory and without long pauses.

A Python dict of two million blocks costs 80 to 130 bytes a block (a boxed key, and a table that churn leaves a third
full), four cache misses a look-up, and stops the process for a tenth of a second and more when it grows. This is
extendible hashing instead: a hash chooses a bucket through a directory, a bucket is a row of (hash, value) pairs probed
linearly, and a full bucket is split into two. A pair takes 16 bytes, a look-up misses the cache once or twice, and the
longest pause is one split. All pairs lie in one array, which the C library (glibc) grows by moving its pages, not by
copying them.

Hashes must be uniform over 64 bits, as `kvstore/blocks.py` makes them. Buckets then fill evenly and split at about the
same time: between such times there are `first_buckets` times a power of two of them. Hashes that are not uniform are
kept correctly but slowly, and many that share their upper bits are refused (`can_split`).

Invariants
 1. A hash lies in the bucket that the directory names for it, at or after its home (cyclically), with no empty pair in
    between: so a look-up may stop at the first empty pair. Deletion moves pairs back instead of leaving tombstones.
 2. A pair is empty exactly if its value is 0. A third of every bucket is empty, or less, but something, if it is
    stretched.
 3. The directory has `first_buckets` times a power of two of entries. A bucket's entries are neighbours, as many as a
    power of two, beginning at a multiple of that.
 4. Memory depends on the number of buckets and on nothing else. Buckets are never given back: their room is reused.
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOTS_PER_BUCKET = 1024
# Only a hash's upper 30 bits choose a place, one digit of a CPython int. Of these the upper choose the entry of the
# directory (the whole as a fraction of 2**30, times its length), and the lower 11 the home in the bucket, as an even
# index because there are two words to a pair.
_TOP_BITS = 30
_TOP_SHIFT = 64 - _TOP_BITS
_MAX_ENTRIES = 1 << 20
_ENTRY_BYTES = 4
_BUCKET_EXTRA_BYTES = 8
# A directory that outgrows its buckets by this much holds hashes that are not uniform.
_MAX_ENTRIES_PER_BUCKET = 16


def bucket_bytes(slots_per_bucket: int) -> int:
    """Memory of one bucket."""
    return 16 * slots_per_bucket + _BUCKET_EXTRA_BYTES


def first_buckets_for(limit_bytes: int, slots_per_bucket: int) -> int:
    """How many to begin with, at most 31, so that a power of two times that fits in the limit and nearly fills it."""
    num_buckets = limit_bytes // (bucket_bytes(slots_per_bucket) + _ENTRY_BYTES)
    return num_buckets >> max(0, num_buckets.bit_length() - 5)


class BlockTable:
    """Block hash -> integer in 1..2**64-1."""

    def __init__(self, slots_per_bucket: int = SLOTS_PER_BUCKET, first_buckets: int = 1) -> None:
        """`slots_per_bucket`: a power of two in 4..1024; a bucket is full when two thirds of it are used."""
        assert slots_per_bucket in (4, 8, 16, 32, 64, 128, 256, 512, 1024)
        self._width = 2 * slots_per_bucket  # words of a bucket
        self._wrap = self._width - 2  # as a mask: any number -> the place of a pair in its bucket
        self.first_buckets = first_buckets
        self.bucket_bytes = bucket_bytes(slots_per_bucket)
        self.bucket_blocks = slots_per_bucket * 2 // 3  # until it is stretched
        self._stretched_blocks = slots_per_bucket * 13 // 16
        self._blank = array("Q", bytes(8 * self._width))
        self._words = self._blank * first_buckets
        # Where in `_words` a bucket begins, by entry.
        self._directory = array("I", range(0, first_buckets * self._width, self._width))
        self._size = first_buckets  # of the directory
        self._entries = array("I", [1] * first_buckets)  # by bucket: how many entries are its
        self._used = array("H", [0] * first_buckets)  # by bucket: how many pairs
        self._limits = array("H", [self.bucket_blocks] * first_buckets)  # by bucket: how many at most
        self.num_blocks = 0

    @property
    def num_buckets(self) -> int:
        """How many buckets there are. They are numbered from 0; a split adds one at the end."""
        return len(self._used)

    @property
    def bytes_used(self) -> int:
        """Memory of all buckets and the directory."""
        return len(self._used) * self.bucket_bytes + self._size * _ENTRY_BYTES

    def get(self, block: int) -> int:
        """Its value, 0 if absent."""
        words, wrap, top = self._words, self._wrap, block >> _TOP_SHIFT
        at = self._directory[top * self._size >> _TOP_BITS] + (top & wrap)
        while words[at] != block:
            if not words[at + 1]:
                return 0
            at = at + 2 if at + 2 & wrap else at - wrap
        return words[at + 1]

    def put(self, block: int, value: int) -> bool:
        """Set its value. False, and nothing done: it is new and its bucket is full, so split first."""
        return bool(self.put_many((block,), (value,)))

    def put_many(self, blocks: Iterable[int], values: Iterable[int]) -> int:
        """Set their values; how many, up to the first that is new and whose bucket is full."""
        words, wrap, directory, size = self._words, self._wrap, self._directory, self._size
        used, limits, width = self._used, self._limits, self._width
        done = before = 0
        for block, value in zip(blocks, values, strict=True):
            top = block >> _TOP_SHIFT
            at = directory[top * size >> _TOP_BITS] + (top & wrap)
            while words[at] != block and words[at + 1]:
                at = at + 2 if at + 2 & wrap else at - wrap
            if words[at + 1]:
                before += 1
            else:
                bucket = at // width
                if used[bucket] >= limits[bucket]:
                    break
                used[bucket] += 1
                words[at] = block
            words[at + 1] = value
            done += 1
        self.num_blocks += done - before
        return done

    def put_new(self, blocks: Sequence[int], start: int, stop: int, value: int) -> int:
        """Add `blocks[start:stop]` with values that fall by one from `value`.

        Returns how many, up to the first that is there already or whose bucket is full.
        """
        words, wrap, directory, size = self._words, self._wrap, self._directory, self._size
        used, limits, width = self._used, self._limits, self._width
        at_block = start
        while at_block < stop:
            block = blocks[at_block]
            top = block >> _TOP_SHIFT
            at = directory[top * size >> _TOP_BITS] + (top & wrap)
            while words[at] != block and words[at + 1]:
                at = at + 2 if at + 2 & wrap else at - wrap
            bucket = at // width
            if words[at + 1] or used[bucket] >= limits[bucket]:
                break
            used[bucket] += 1
            words[at] = block
            words[at + 1] = value
            value -= 1
            at_block += 1
        self.num_blocks += at_block - start
        return at_block - start

    def delete(self, block: int) -> None:
        """Forget it, if it is there."""
        words, wrap = self._words, self._wrap
        hole = at = self._find(block)
        if not words[at + 1]:
            return
        self._used[at // self._width] -= 1
        self.num_blocks -= 1
        while words[(at := at + 2 if at + 2 & wrap else at - wrap) + 1]:
            home = words[at] >> _TOP_SHIFT & wrap
            if (at - home) & wrap >= (at - hole) & wrap:  # its home is not after the hole: it may move there
                words[hole], words[hole + 1] = words[at], words[at + 1]
                hole = at
        words[hole] = words[hole + 1] = 0

    def can_split(self, block: int) -> bool:
        """Whether to split its bucket: not if so many hashes share their upper bits that it would hardly help."""
        if self._entries[self._bucket(block)] > 1:
            return True
        return 2 * self._size <= min(_MAX_ENTRIES_PER_BUCKET * max(16, self.num_buckets), _MAX_ENTRIES)

    def split_bytes(self, block: int) -> int:
        """Memory that splitting its bucket takes."""
        doubles = self._entries[self._bucket(block)] == 1
        return self.bucket_bytes + (self._size * _ENTRY_BYTES if doubles else 0)

    def stretch(self, block: int) -> bool:
        """Let its bucket fill further, where it may not be split: look-ups in it get slower. False: it has been."""
        bucket = self._bucket(block)
        if self._limits[bucket] == self._stretched_blocks:
            return False
        self._limits[bucket] = self._stretched_blocks
        return True

    def split(self, block: int) -> None:
        """Make its bucket two, each taking the hashes of half its entries."""
        bucket = self._bucket(block)
        begin, sibling = bucket * self._width, len(self._words)
        pairs = np.frombuffer(self._words[begin : begin + self._width], np.uint64).reshape(-1, 2)
        pairs = pairs[pairs[:, 1] != 0]
        if self._entries[bucket] == 1:
            self._double()
        half = self._entries[bucket] // 2
        entry = (block >> _TOP_SHIFT) * self._size >> _TOP_BITS
        middle = entry - entry % (2 * half) + half
        for index in range(middle, middle + half):
            self._directory[index] = sibling
        self._words[begin : begin + self._width] = self._blank
        self._words.extend(self._blank)
        self._entries[bucket] = half
        self._entries.append(half)
        self._used[bucket] = 0
        self._used.append(0)
        self._limits[bucket] = self._stretched_blocks  # one of the two may have to take all
        self._limits.append(self._stretched_blocks)
        self.num_blocks -= len(pairs)
        goes = (pairs[:, 0] >> _TOP_SHIFT) * self._size >> _TOP_BITS >= middle
        self._fill(bucket, pairs[~goes])
        self._fill(self.num_buckets - 1, pairs[goes])
        self._limits[bucket] = self._limits[-1] = self.bucket_blocks

    def entries(self, bucket: int) -> list[tuple[int, int]]:
        """A copy of one bucket's (hash, value) pairs."""
        begin, end = bucket * self._width, (bucket + 1) * self._width
        hashes, values = self._words[begin:end:2], self._words[begin + 1 : end : 2]
        return [pair for pair in zip(hashes, values, strict=True) if pair[1]]

    def _double(self) -> None:
        """Two entries of the directory for each."""
        self._directory = array("I", np.repeat(np.frombuffer(self._directory, np.uint32), 2).tobytes())
        self._entries = array("I", (np.frombuffer(self._entries, np.uint32) * 2).tobytes())
        self._size *= 2

    def _fill(self, bucket: int, pairs: "NDArray[np.uint64]") -> None:
        """Put pairs into an empty bucket with room for them: probing for all at once, in the order of their homes."""
        homes = (pairs[:, 0] >> _TOP_SHIFT & self._wrap).astype(np.int64) // 2
        pairs = pairs[np.argsort(homes)]
        homes.sort()
        order = np.arange(len(pairs))
        places = np.maximum.accumulate(homes - order) + order
        fits = places < self._width // 2
        begin = bucket * self._width
        # A view of the words: it must be gone before they grow again.
        np.frombuffer(self._words, np.uint64)[begin : begin + self._width].reshape(-1, 2)[places[fits]] = pairs[fits]
        num_placed = int(fits.sum())
        self._used[bucket] += num_placed
        self.num_blocks += num_placed
        around = pairs[~fits].tolist()  # what goes past the end goes on at the beginning
        self.put_many([block for block, _ in around], [value for _, value in around])

    def _bucket(self, block: int) -> int:
        return self._directory[(block >> _TOP_SHIFT) * self._size >> _TOP_BITS] // self._width

    def _find(self, block: int) -> int:
        """Where it lies, or the empty pair where it would."""
        words, wrap, top = self._words, self._wrap, block >> _TOP_SHIFT
        at = self._directory[top * self._size >> _TOP_BITS] + (top & wrap)
        while words[at] != block and words[at + 1]:
            at = at + 2 if at + 2 & wrap else at - wrap
        return at
