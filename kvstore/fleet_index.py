"""The prefix index of the whole fleet: every source's deltas and snapshots, in order and exactly once. Pure.

A source has a slot of the PrefixIndex for each tier it holds blocks in. Slots come and go; whoever reads matches
follows the `SlotsChanged` that every method returns. Bits of slots that no source has are to be ignored: a snapshot is
filled into fresh slots first and shown when it is complete.

Invariants
 1. A source that is exact has in its slots what its worker held after delta `seq` of `epoch` (`position`), no more and
    no less. Anything else (a gap, a delta half applied, blocks refused for want of memory) makes it not exact.
 2. A gap retires nothing: what is known goes on being a hint until the missing delta or a snapshot comes.
 3. Nothing of an older epoch is seen together with anything of a newer one: the old slots are retired first.
 4. A snapshot shows as a whole or not at all, and never takes a source back.
 5. A `SlotsChanged` is given out before the next step is taken, so no number is reused that a reader still maps.

`apply` and `load` do all at once. `applying` and `loading` are the same in steps of so many blocks, so that an event
loop can do other things in between, `match` and `drop` among them; but only one of them may be under way at a time.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.prefix_index import PrefixIndex
from kvstore.source_sequence import Arrival, SourceSequence, SyncState
from kvstore.types import WorkerId

Slots = tuple[int | None, ...]  # by Tier; None: nothing held there
NO_SLOTS: Slots = (None,) * len(Tier)
MAX_HELD_BLOCKS = 262_144  # in deltas of all sources that wait for an earlier one: about 10 MB
_ROOM_SHARE = 8  # refusals are counted more than once; an eighth of the index is room enough for any source
_ALL_AT_ONCE = 1 << 62


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """From now on the source's blocks are under these slots."""

    source: SourceId
    slots: Slots


class Outcome(StrEnum):
    """What became of a delta or a snapshot."""

    APPLIED = "applied"
    HELD = "held"  # until those before it have come
    IGNORED = "ignored"  # known already, or of an older epoch, or its source was dropped meanwhile


Steps = Generator[tuple[SlotsChanged, ...], None, Outcome]


@dataclass(frozen=True, slots=True)
class FleetIndexStats:
    """Counters since the start, and how things are now."""

    sources: Mapping[SyncState, int]
    truncated_sources: int  # that lack blocks for want of memory
    blocks: int
    bytes_used: int
    held_blocks: int  # in deltas that wait for an earlier one
    gaps: int
    restarts: int
    snapshots: int
    refused_blocks: int


@dataclass(slots=True, eq=False)
class _Source:
    id: SourceId
    sequence: SourceSequence
    slots: list[int | None]
    torn: bool = False  # a delta is half applied
    refused_blocks: int = 0  # for want of memory, since the last snapshot


class FleetIndex:
    """Sources to slots over one PrefixIndex, which belongs to it alone."""

    def __init__(self, blocks: PrefixIndex) -> None:
        self._blocks = blocks
        self._sources: dict[SourceId, _Source] = {}
        self._held_blocks = 0
        self._gaps = self._restarts = self._snapshots = 0

    def match(self, chain: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """((num_blocks, slots as a bitset), ...), longest last: see PrefixIndex.match."""
        return self._blocks.match(chain)

    def slots(self) -> dict[SourceId, Slots]:
        """The slots of every source that holds anything."""
        return {source.id: tuple(source.slots) for source in self._sources.values() if any_slot(source.slots)}

    def sources(self) -> list[SourceId]:
        """Every source known."""
        return list(self._sources)

    def position(self, source_id: SourceId) -> tuple[int, int] | None:
        """(epoch, seq) up to which the source is known; None for a stranger."""
        source = self._sources.get(source_id)
        return None if source is None else (source.sequence.epoch, source.sequence.seq)

    def is_exact(self, source_id: SourceId) -> bool:
        """Whether the source's matches are the truth at its position (invariant 1)."""
        source = self._sources.get(source_id)
        return source is not None and self._is_exact(source)

    def wanted_snapshots(self) -> dict[SourceId, tuple[int, int]]:
        """Sources that are BEHIND, and the (epoch, seq) that a snapshot must have to help."""
        return {
            source.id: (source.sequence.epoch, source.sequence.wanted_seq)
            for source in self._sources.values()
            if source.sequence.state is SyncState.BEHIND
        }

    def truncated(self) -> SourceId | None:
        """A source that lacks blocks for want of memory and for which there seems to be room now, to be loaded anew."""
        lacking = [source for source in self._sources.values() if self._is_truncated(source)]
        if not lacking:
            return None
        source = min(lacking, key=lambda source: source.refused_blocks)
        wanted = min(source.refused_blocks, self._blocks.num_blocks // _ROOM_SHARE)
        return source.id if self._blocks.room_blocks > wanted else None

    def tick(self) -> None:
        """Call it now and then: deltas that were missing at the last call are not waited for any longer."""
        for source in self._sources.values():
            source.sequence.tick()

    def sweep(self, max_entries: int) -> bool:
        """Clear away a part of what retired slots have left behind; whether there is more."""
        self._blocks.sweep(max_entries)
        return self._blocks.needs_sweep

    def stats(self) -> FleetIndexStats:
        """How things are."""
        states = [source.sequence.state for source in self._sources.values()]
        return FleetIndexStats(
            sources={state: states.count(state) for state in SyncState},
            truncated_sources=sum(self._is_truncated(source) for source in self._sources.values()),
            blocks=self._blocks.num_blocks,
            bytes_used=self._blocks.bytes_used,
            held_blocks=self._held_blocks,
            gaps=self._gaps,
            restarts=self._restarts,
            snapshots=self._snapshots,
            refused_blocks=self._blocks.num_refused_blocks,
        )

    def apply(self, delta: KvDelta) -> tuple[Outcome, list[SlotsChanged]]:
        """Take in a delta as it comes."""
        return _run(self.applying(delta, _ALL_AT_ONCE))

    def load(self, snapshot: KvSnapshot) -> tuple[Outcome, list[SlotsChanged]]:
        """Replace the source's blocks, unless as much is known already; then go on with the deltas held."""
        return _run(self.loading(snapshot, _ALL_AT_ONCE))

    def applying(self, delta: KvDelta, step_blocks: int) -> Steps:
        """`apply` in steps."""
        source = self._sources.get(delta.source)
        if source is None or delta.epoch > source.sequence.epoch:
            source = yield from self._begin(delta.source, delta.epoch)
        if not self._is_known(source) or delta.epoch < source.sequence.epoch:
            return Outcome.IGNORED
        match source.sequence.arrival(delta):
            case Arrival.OLD:
                return Outcome.IGNORED
            case Arrival.EARLY:
                self._hold(source, delta)
                return Outcome.HELD
        return (yield from self._catch_up(source, delta, step_blocks))

    def loading(self, snapshot: KvSnapshot, step_blocks: int) -> Steps:
        """`load` in steps."""
        source = self._sources.get(snapshot.source)
        if source is not None and not self._is_news(source, snapshot):
            return Outcome.IGNORED
        if source is None or snapshot.epoch > source.sequence.epoch:
            source = yield from self._begin(snapshot.source, snapshot.epoch)
        source.sequence.newest = max(source.sequence.newest, snapshot.seq)  # not exact until it is shown
        source.refused_blocks = 0
        fresh: list[int | None] = list(NO_SLOTS)
        shown = False
        try:
            for tier, hashes in snapshot.held.items():
                if len(hashes):
                    slot = fresh[tier] = self._blocks.open_slot()
                    for first in range(0, len(hashes), step_blocks):
                        source.refused_blocks += self._blocks.store(slot, hashes[first : first + step_blocks])
                        yield ()
            if not self._is_known(source):
                return Outcome.IGNORED
            old, source.slots, shown = source.slots, fresh, True
            self._retire(old)
        finally:
            if not shown:
                self._retire(fresh)
        self._snapshots += 1
        source.torn = False
        with_held = source.sequence.held_blocks
        following = source.sequence.jump(snapshot.seq)
        self._held_blocks += source.sequence.held_blocks - with_held
        if any_slot(old) or any_slot(fresh):
            yield (_changed(source),)
        if following is not None:
            yield from self._catch_up(source, following, step_blocks)
        return Outcome.APPLIED

    def drop(self, source_id: SourceId) -> list[SlotsChanged]:
        """Forget a source; whatever it says later makes it new."""
        source = self._sources.pop(source_id, None)
        if source is None:
            return []
        self._held_blocks -= source.sequence.held_blocks
        self._retire(source.slots)
        return [SlotsChanged(source_id, NO_SLOTS)] if any_slot(source.slots) else []

    def drop_worker(self, worker_id: WorkerId) -> list[SlotsChanged]:
        """Forget every source of a worker."""
        ours = [source_id for source_id in self._sources if source_id.worker_id == worker_id]
        return [changed for source_id in ours for changed in self.drop(source_id)]

    def _begin(self, source_id: SourceId, epoch: int) -> Generator[tuple[SlotsChanged, ...], None, _Source]:
        """A new source, or an old one's new epoch (invariant 3)."""
        self._restarts += source_id in self._sources
        changed = self.drop(source_id)
        source = self._sources[source_id] = _Source(source_id, SourceSequence(epoch), list(NO_SLOTS))
        if changed:
            yield tuple(changed)
        return source

    def _hold(self, source: _Source, delta: KvDelta) -> None:
        sequence = source.sequence
        self._gaps += sequence.state is SyncState.SYNCED
        before = sequence.held_blocks
        sequence.hold(delta)
        self._held_blocks += sequence.held_blocks - before
        if self._held_blocks > MAX_HELD_BLOCKS:
            self._held_blocks -= sequence.held_blocks
            sequence.forget_held()

    def _catch_up(self, source: _Source, delta: KvDelta, step_blocks: int) -> Steps:
        """Apply the next delta and all that were held for it."""
        following: KvDelta | None = delta
        while following is not None:
            source.torn = True
            for change in following.changes:
                yield from self._apply_change(source, change, step_blocks)
                if not self._is_known(source):
                    return Outcome.IGNORED
            source.torn = False
            before = source.sequence.held_blocks
            following = source.sequence.advance()
            self._held_blocks += source.sequence.held_blocks - before
        return Outcome.APPLIED

    def _apply_change(
        self, source: _Source, change: KvChange, step_blocks: int
    ) -> Generator[tuple[SlotsChanged, ...], None, None]:
        if change.op is Op.CLEAR:
            old, source.slots = source.slots, list(NO_SLOTS)
            self._retire(old)
            if any_slot(old):
                yield (_changed(source),)
            return
        slot = source.slots[change.tier]
        if slot is None:
            if change.op is Op.REMOVE or not change.hashes:
                return
            slot = source.slots[change.tier] = self._blocks.open_slot()
            yield (_changed(source),)
        for first in range(0, len(change.hashes), step_blocks):
            if not self._is_known(source):
                return
            part = change.hashes[first : first + step_blocks]
            if change.op is Op.STORE:
                source.refused_blocks += self._blocks.store(slot, part)
            else:
                self._blocks.remove(slot, part)
            yield ()

    def _retire(self, slots: Sequence[int | None]) -> None:
        for slot in slots:
            if slot is not None:
                self._blocks.retire(slot)

    def _is_known(self, source: _Source) -> bool:
        """Whether it has not been dropped since."""
        return self._sources.get(source.id) is source

    def _is_news(self, source: _Source, snapshot: KvSnapshot) -> bool:
        known = (source.sequence.epoch, source.sequence.seq)
        offered = (snapshot.epoch, snapshot.seq)
        return offered > known or (offered == known and (source.torn or self._is_truncated(source)))

    def _is_exact(self, source: _Source) -> bool:
        synced = source.sequence.state is SyncState.SYNCED
        return synced and not source.torn and not self._is_truncated(source)

    def _is_truncated(self, source: _Source) -> bool:
        return any(slot is not None and self._blocks.is_truncated(slot) for slot in source.slots)


def any_slot(slots: Sequence[int | None]) -> bool:
    """Whether any of them is one."""
    return any(slot is not None for slot in slots)


def _changed(source: _Source) -> SlotsChanged:
    return SlotsChanged(source.id, tuple(source.slots))


def _run(steps: Steps) -> tuple[Outcome, list[SlotsChanged]]:
    changes: list[SlotsChanged] = []
    while True:
        try:
            changes += next(steps)
        except StopIteration as end:
            return end.value, changes
