"""Who holds which leading blocks of a prompt: for every block, the exact set of slots that hold it.

A slot is one life of one KV cache at one tier; the owner opens and retires them and knows whose they are. The blocks of
a slot are closed under "parent of" (the owner stores parents first and removes children first), so along a prompt's
chain the set of holders only ever shrinks, and where it shrinks is found by bisection instead of by a walk.

Beside its set each block keeps a span: how many of the blocks after it changed together with it, which is where the
holders most likely change next. A span is a guess; two look-ups prove or refute it.

Invariants
 1. A block is in the table exactly if its set is not empty. Sets hold slots that are open, and hidden ones until swept.
 2. `match` is exact for the slots that are open and not lost, and never mentions another.
 3. A number is opened again only after a pass over the whole table that began after it was retired.
 4. A slot's blocks stay closed under parent also when memory runs out: the first refusal truncates the slot, and it
    takes nothing more, though it can still remove. A removal that needs memory (it splits a set that blocks share) and
    finds none even in the reserve loses the slot: hidden as if retired, and swept. What a truncated slot is said to
    hold it holds; its owner retires it and loads another when there is room.
 5. `bytes_used` is never more than `budget_bytes`, but for slots themselves, which are always granted.
 6. Spans decide how long `match` takes, never what it answers.
"""

from collections.abc import Sequence

from kvstore.block_table import SLOTS_PER_BUCKET, BlockTable, first_buckets_for
from kvstore.holder_sets import HolderSets
from kvstore.slot_lives import LOST, OPEN, SLOT_BYTES, TRUNCATED, SlotLives

_SPAN_BITS = 16  # a block's value in the table is the number of its set, then its span
_MAX_SPAN = (1 << _SPAN_BITS) - 1
# Parts of the budget: for the table when all its buckets have split; up to which buckets may split; up to which stores
# may add sets of holders. The last is left to removals.
_TABLE_SHARE = 12 / 16
_SPLIT_SHARE = 14 / 16
_STORE_SHARE = 15 / 16
_MIN_BUCKETS = 4


class PrefixIndex:
    """Exact holders of every block, within a byte budget."""

    def __init__(self, budget_bytes: int, *, slots_per_bucket: int = SLOTS_PER_BUCKET) -> None:
        """`budget_bytes`: hard limit on the memory of all this; ValueError if it cannot hold a few buckets."""
        first_buckets = first_buckets_for(int(budget_bytes * _TABLE_SHARE), slots_per_bucket)
        self._blocks = BlockTable(slots_per_bucket, first_buckets)
        self._sets = HolderSets()
        self._slots = SlotLives()
        self._held: list[int] = []  # by slot: how many blocks
        self._budget_bytes = budget_bytes
        self._split_limit_bytes = int(budget_bytes * _SPLIT_SHARE)
        self._store_limit_bytes = int(budget_bytes * _STORE_SHARE)
        self._next_bucket = 0  # of the pass under way
        self.num_refused_blocks = 0
        if first_buckets < _MIN_BUCKETS or self.bytes_used > self._split_limit_bytes:
            raise ValueError(f"{budget_bytes} bytes are too few for a prefix index")

    @property
    def num_blocks(self) -> int:
        """Distinct blocks, those that only retired slots held included until they are swept."""
        return self._blocks.num_blocks

    @property
    def num_holder_sets(self) -> int:
        """Distinct sets of holders."""
        return len(self._sets)

    @property
    def num_live_slots(self) -> int:
        """Slots opened and not retired."""
        return self._slots.num_live

    @property
    def needs_sweep(self) -> bool:
        """Whether `sweep` has anything to do."""
        return bool(self._slots.hidden)

    @property
    def bytes_used(self) -> int:
        """Memory of it all. Tables do not shrink: room that is free again shows in `room_blocks`."""
        return self._blocks.bytes_used + self._sets.bytes_used + self._slots.bytes_used

    @property
    def room_blocks(self) -> int:
        """About how many new blocks can be stored before one is refused, if their holders are no new sets."""
        blocks, free_bytes = self._blocks, max(0, self._split_limit_bytes - self.bytes_used)
        times = (blocks.num_buckets + free_bytes // blocks.bucket_bytes) // blocks.first_buckets
        num_buckets = blocks.first_buckets << times.bit_length() - 1  # more would be only some of the next doubling
        return max(0, num_buckets * blocks.bucket_blocks - blocks.num_blocks)

    def held_by(self, slot: int) -> int:
        """How many blocks an open slot holds; 0 for a lost one."""
        self._slots.state(slot)
        return self._held[slot]

    def is_truncated(self, slot: int) -> bool:
        """Whether an open slot was refused a block or was lost, and should be loaded anew when there is room."""
        return self._slots.state(slot) != OPEN

    def open_slot(self) -> int:
        """A number whose bit is nowhere, the lowest there is."""
        slot = self._slots.open()
        if slot == len(self._held):
            self._held.append(0)
        return slot

    def retire(self, slot: int) -> None:
        """Its blocks vanish from matches at once; `sweep` removes them and frees the number."""
        self._slots.retire(slot)
        self._held[slot] = 0

    def store(self, slot: int, hashes: Sequence[int]) -> int:
        """The slot holds these too, parents before children. Returns how many were refused: always the last ones.

        Blocks that it holds already change nothing.
        """
        hashes = _distinct(hashes)
        done = 0
        while done < len(hashes) and self._slots.state(slot) == OPEN:
            group, stop = self._run(hashes, done)
            if group:
                stored = self._store_known(slot, group, hashes[done:stop])
            else:
                stored = self._store_new(slot, hashes, done, stop)
            done += stored
            if not stored:
                self._slots.truncate(slot)
        refused = len(hashes) - done
        self.num_refused_blocks += refused
        return refused

    def remove(self, slot: int, hashes: Sequence[int]) -> None:
        """The slot holds these no longer, children before parents. Blocks that it does not hold change nothing."""
        hashes = _distinct(hashes)
        done = 0
        while done < len(hashes) and self._slots.state(slot) != LOST:
            group, stop = self._run(hashes, done)
            if not group:
                stop = done + 1
            elif self._sets.bits[group] >> slot & 1 and not self._remove_run(slot, group, hashes[done:stop]):
                self._slots.lose(slot)
                self._held[slot] = 0
            done = stop

    def match(self, chain: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Who holds how much of a prompt: ((num_blocks, slots), ...), num_blocks rising, slots (a bitset) shrinking.

        The slots of a row hold at least its first `num_blocks` blocks; a slot's overlap is the last row that has it.
        Takes about two look-ups a row where spans are right, else a bisection of the chain, which puts the span right.
        """
        rows: list[tuple[int, int]] = []
        blocks, bits_of, hidden = self._blocks, self._sets.bits, self._slots.hidden
        get = blocks.get
        low, value = 0, get(chain[0]) if chain else 0
        further = [(len(chain), 0)]  # positions after `low` that were looked at and what is there, nearest last
        while value:
            group = value >> _SPAN_BITS
            bits = bits_of[group]
            if hidden:  # rarely: otherwise a set is shared, not copied
                bits &= ~hidden
                if not bits:
                    break
            after = low + 1 + (value & _MAX_SPAN)  # where the set changes, if the span is right
            high, at_high = further[-1]
            found = get(chain[after]) if after < high else at_high
            changed = after <= high and found >> _SPAN_BITS != group
            if changed and (after == low + 1 or get(chain[after - 1]) >> _SPAN_BITS == group):
                low, value = after, found
                if after == high:
                    further.pop()
            else:
                if after < high:
                    further.append((after, found))
                first = low
                low, value = self._next_change(chain, first, group, further)
                blocks.put(chain[first], group << _SPAN_BITS | min(low - first - 1, _MAX_SPAN))
            if rows and rows[-1][1] == bits:  # sets that differ only in slots that are hidden
                rows.pop()
            rows.append((low, bits))
        return tuple(rows)

    def sweep(self, max_entries: int) -> None:
        """Remove what hidden slots left, looking at about so many blocks: whole buckets, at least one.

        Call it until `needs_sweep` is False; stores and removes may come in between.
        """
        while max_entries > 0 and self.needs_sweep:
            if not self._slots.sweeping:
                self._slots.begin_pass()
                self._next_bucket = 0
            entries = self._blocks.entries(self._next_bucket)
            for block, value in entries:
                if self._sets.bits[value >> _SPAN_BITS] & self._slots.sweeping:
                    self._clean(block, value)
            max_entries -= max(1, len(entries))
            self._next_bucket += 1
            if self._next_bucket == self._blocks.num_buckets:  # a split adds its bucket at the end: it is seen too
                self._slots.end_pass()

    def validate(self) -> None:
        """Assert the invariants that one look can check. Reads everything: for tests."""
        counts, held = dict[int, int](), [0] * len(self._held)
        for bucket in range(self._blocks.num_buckets):
            for _, value in self._blocks.entries(bucket):
                counts[value >> _SPAN_BITS] = counts.get(value >> _SPAN_BITS, 0) + 1
        assert counts == self._sets.counts(), "invariant 1"
        for group, num_blocks in counts.items():
            bits = self._sets.bits[group] & ~self._slots.hidden
            assert self._sets.bits[group], "invariant 1"
            for slot, state in enumerate(self._slots.states):
                assert not bits >> slot & 1 or state in (OPEN, TRUNCATED), "invariants 1 and 3"
                held[slot] += num_blocks if bits >> slot & 1 else 0
        assert held == self._held, "held_by"
        assert self.bytes_used <= self._budget_bytes + SLOT_BYTES * len(self._held), "invariant 5"

    def _run(self, hashes: Sequence[int], start: int) -> tuple[int, int]:
        """The set of one block, and where the run of blocks in that set ends: new blocks, where at the latest."""
        get, stop, end = self._blocks.get, start + 1, min(len(hashes), start + _MAX_SPAN)
        group = get(hashes[start]) >> _SPAN_BITS
        if not group:
            return 0, end
        while stop < end and get(hashes[stop]) >> _SPAN_BITS == group:
            stop += 1
        return group, stop

    def _store_new(self, slot: int, hashes: Sequence[int], start: int, stop: int) -> int:
        """Add blocks that nobody holds, up to the first that somebody does; how many there was room for."""
        target = self._set_number(1 << slot, self._store_limit_bytes)
        if target is None:
            return 0
        at = start
        while True:
            at += self._blocks.put_new(hashes, at, stop, (target << _SPAN_BITS) + stop - at - 1)
            if at == stop or self._blocks.get(hashes[at]) or not self._make_room(hashes[at]):
                break
        self._sets.move(0, target, at - start)
        self._held[slot] += at - start
        return at - start

    def _store_known(self, slot: int, group: int, run: Sequence[int]) -> int:
        """Add the slot to the holders of blocks that are all in one set; how many: all or none."""
        bits = self._sets.bits[group]
        if bits >> slot & 1:
            return len(run)
        target = self._set_number(bits | 1 << slot, self._store_limit_bytes)
        if target is None:
            return 0
        span0 = target << _SPAN_BITS
        self._blocks.put_many(run, range(span0 + len(run) - 1, span0 - 1, -1))
        self._sets.move(group, target, len(run))
        self._held[slot] += len(run)
        return len(run)

    def _make_room(self, block: int) -> bool:
        """Split the bucket that this block does not fit into, or stretch it if there is no memory; False: it was."""
        blocks = self._blocks
        if not blocks.can_split(block) or self.bytes_used + blocks.split_bytes(block) > self._split_limit_bytes:
            return blocks.stretch(block)
        blocks.split(block)
        return True

    def _remove_run(self, slot: int, group: int, run: Sequence[int]) -> bool:
        """Take the slot out of the holders of blocks that are all in one set that has it; False: no memory for that."""
        target = self._set_number(self._sets.bits[group] ^ 1 << slot, self._budget_bytes)
        if target is None:
            return False
        if target:
            span0 = target << _SPAN_BITS
            self._blocks.put_many(run, range(span0, span0 + len(run)))
        else:
            for block in run:
                self._blocks.delete(block)
        self._sets.move(group, target, len(run))
        self._held[slot] -= len(run)
        return True

    def _set_number(self, bits: int, limit_bytes: int) -> int | None:
        """The number of a set, which may be new; None if there is no room for it."""
        number = self._sets.find(bits)
        if number is None and self.bytes_used + self._sets.cost_bytes(bits) <= limit_bytes:
            number = self._sets.add(bits)
        return number

    def _next_change(
        self, chain: Sequence[int], low: int, group: int, further: list[tuple[int, int]]
    ) -> tuple[int, int]:
        """By bisection: the first position after `low` whose block is in another set than its, and what is there."""
        while True:
            high, value = further[-1]
            if value >> _SPAN_BITS == group:
                low = high
                further.pop()
            elif high == low + 1:
                return further.pop()
            else:
                middle = (low + high) // 2
                further.append((middle, self._blocks.get(chain[middle])))

    def _clean(self, block: int, value: int) -> None:
        """Take hidden slots out of a block's set: delete the block, move it to the set that is left, or rename its set.

        None of these takes memory, so that sweeping can always go on.
        """
        group = value >> _SPAN_BITS
        rest = self._sets.bits[group] & ~self._slots.hidden
        target = self._sets.find(rest)
        if target is None:
            self._sets.rename(group, rest)
            return
        if target:
            self._blocks.put(block, target << _SPAN_BITS | value & _MAX_SPAN)
        else:
            self._blocks.delete(block)
        self._sets.move(group, target, 1)


def _distinct(hashes: Sequence[int]) -> Sequence[int]:
    """The same without repeats, first come first."""
    return hashes if len(hashes) == 1 or len(set(hashes)) == len(hashes) else tuple(dict.fromkeys(hashes))
