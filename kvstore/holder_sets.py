"""The distinct sets of slots that hold some block, each kept once and known by a small number.

Neighbouring blocks nearly always have the same holders, and so have a worker's device and host copies or the two
workers of a hand-off. So a block keeps a small number instead of a bitset, which is 160 bytes in a fleet of a thousand.

Invariants
 1. Set 0 is the empty set. No two numbers stand for equal sets: two blocks have the same holders exactly if they have
    the same number.
 2. A set is in use while blocks have its number; then it is forgotten, and its number used again.
 3. `bytes_used` is no less than what the process spends on every number ever used (tables do not shrink) but that of
    the empty set, and on every bitset in use.
"""

# A number ever used: two list places, its own int and its count's, a place among the free ones, and a dict entry, which
# is 30 to 120 bytes as CPython resizes.
_NUMBER_BYTES = 216


def bitset_bytes(bits: int) -> int:
    """Memory of a bitset: an int of 30-bit digits, rounded up as the allocator does."""
    return (24 + 4 * (bits.bit_length() // 30 + 1) + 15) & ~15


class HolderSets:
    """Interned bitsets over slots."""

    def __init__(self) -> None:
        self.bits = [0]  # by number; read by the index's inner loops, written only here
        self._num_blocks = [0]  # by number; that of the empty set means nothing
        self._number_of = {0: 0}
        self._free: list[int] = []
        self.bytes_used = 0

    def __len__(self) -> int:
        """How many sets are in use, the empty one not counted."""
        return len(self._number_of) - 1

    def find(self, bits: int) -> int | None:
        """The number of this set, if it is in use."""
        return self._number_of.get(bits)

    def cost_bytes(self, bits: int) -> int:
        """What adding this set would add to `bytes_used`; 0 if it is in use."""
        if bits in self._number_of:
            return 0
        return bitset_bytes(bits) + (0 if self._free else _NUMBER_BYTES)

    def add(self, bits: int) -> int:
        """The number of this set. If it is new, `move` blocks to it next, or none, and it is forgotten."""
        number = self._number_of.get(bits)
        if number is not None:
            return number
        self.bytes_used += self.cost_bytes(bits)
        if self._free:
            number = self._free.pop()
            self.bits[number] = bits
        else:
            number = len(self.bits)
            self.bits.append(bits)
            self._num_blocks.append(0)
        self._number_of[bits] = number
        return number

    def move(self, source: int, target: int, num_blocks: int) -> None:
        """So many blocks changed from one set to another; either may be the empty one, for blocks that come or go."""
        self._num_blocks[source] -= num_blocks
        self._num_blocks[target] += num_blocks
        for number in (source, target):
            if number and not self._num_blocks[number]:
                self._forget(number)

    def rename(self, number: int, bits: int) -> None:
        """All blocks of this set have other holders now: `bits`, a part of those before, not in use and not empty."""
        old = self.bits[number]
        assert bits and bits & old == bits and bits not in self._number_of, "invariant 1: a set is kept once"
        del self._number_of[old]
        self._number_of[bits] = number
        self.bits[number] = bits
        self.bytes_used += bitset_bytes(bits) - bitset_bytes(old)

    def counts(self) -> dict[int, int]:
        """Number of blocks by set in use."""
        return {number: self._num_blocks[number] for number in self._number_of.values() if number}

    def _forget(self, number: int) -> None:
        bits = self.bits[number]
        if self._number_of.get(bits) == number:  # else it was forgotten before
            del self._number_of[bits]
            self.bits[number] = 0
            self._free.append(number)
            self.bytes_used -= bitset_bytes(bits)
