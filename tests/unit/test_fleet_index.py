"""FleetIndex and SourceSequence, one thing at a time. Numbers: kvstore/fleet_index.py, kvstore/source_sequence.py."""

from collections.abc import Sequence

import pytest

from kvstore import fleet_index, source_sequence
from kvstore.fleet_index import NO_SLOTS, FleetIndex, Outcome, SlotsChanged
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.prefix_index import PrefixIndex
from kvstore.source_sequence import MAX_HELD_DELTAS, PATIENCE_DELTAS, SyncState
from kvstore.types import WorkerId

A, B = SourceId(WorkerId("a")), SourceId(WorkerId("b"), 3)
CHAIN = tuple((index * 0x9E3779B97F4A7C15) % (1 << 64) for index in range(1, 41))


def make_index(budget_bytes: int = 1 << 20) -> FleetIndex:
    return FleetIndex(PrefixIndex(budget_bytes))


def store(hashes: Sequence[int], tier: Tier = Tier.DEVICE) -> KvChange:
    return KvChange(Op.STORE, tier, tuple(hashes))


def delta(seq: int, *changes: KvChange, epoch: int = 1, source: SourceId = A) -> KvDelta:
    return KvDelta(source, epoch, seq, changes)


def snapshot(seq: int, hashes: Sequence[int], epoch: int = 1, source: SourceId = A) -> KvSnapshot:
    return KvSnapshot(source, epoch, seq, {Tier.DEVICE: hashes} if hashes else {})


def overlap(index: FleetIndex, source: SourceId, tier: Tier = Tier.DEVICE) -> int:
    """Leading blocks of CHAIN that the source is said to hold."""
    slot = index.slots().get(source, NO_SLOTS)[tier]
    rows = [num_blocks for num_blocks, bits in index.match(CHAIN) if slot is not None and bits >> slot & 1]
    return max(rows, default=0)


def test_the_first_store_opens_a_slot_and_says_so() -> None:
    index = make_index()
    outcome, changes = index.apply(delta(1, store(CHAIN[:3]), store(CHAIN[:2], Tier.HOST)))
    assert outcome is Outcome.APPLIED
    assert changes[-1] == SlotsChanged(A, index.slots()[A])
    assert (overlap(index, A), overlap(index, A, Tier.HOST), overlap(index, A, Tier.DISK)) == (3, 2, 0)
    assert index.apply(delta(2, store(CHAIN[3:5]))) == (Outcome.APPLIED, [])
    assert (overlap(index, A), index.position(A), index.is_exact(A)) == (5, (1, 2), True)


def test_an_empty_delta_moves_the_position() -> None:
    index = make_index()
    assert index.apply(delta(1)) == (Outcome.APPLIED, [])
    assert (index.position(A), index.is_exact(A), index.slots()) == ((1, 1), True, {})


@pytest.mark.parametrize("late", [delta(1, store(CHAIN[:9])), delta(2), delta(7, store(CHAIN[:9]), epoch=0)], ids=str)
def test_what_is_old_changes_nothing(late: KvDelta) -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:3])))
    index.apply(delta(2))
    assert index.apply(late) == (Outcome.IGNORED, [])
    assert (overlap(index, A), index.position(A)) == (3, (1, 2))


def test_a_gap_keeps_what_is_known_and_the_missing_delta_closes_it() -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:3])))
    assert index.apply(delta(3, store(CHAIN[5:6]))) == (Outcome.HELD, [])
    assert index.apply(delta(3, store(CHAIN[5:6]))) == (Outcome.IGNORED, [])
    assert (overlap(index, A), index.is_exact(A), index.wanted_snapshots()) == (3, False, {})
    index.apply(delta(2, store(CHAIN[3:5])))
    assert (overlap(index, A), index.is_exact(A), index.position(A)) == (6, True, (1, 3))
    assert index.stats().gaps == 1


def test_patience_ends_after_a_few_deltas() -> None:
    index = make_index()
    for seq in range(2, PATIENCE_DELTAS + 2):
        index.apply(delta(seq))
    assert index.wanted_snapshots() == {}
    index.apply(delta(PATIENCE_DELTAS + 2))
    assert index.wanted_snapshots() == {A: (1, 1)}


def test_patience_ends_at_once_when_much_is_missing() -> None:
    index = make_index()
    index.apply(delta(1000))
    assert index.wanted_snapshots() == {A: (1, 999)}


def test_patience_ends_with_time() -> None:
    index = make_index()
    index.apply(delta(2))
    index.tick()
    assert index.wanted_snapshots() == {}
    index.tick()
    assert index.wanted_snapshots() == {A: (1, 1)}


def test_patience_begins_anew_after_a_gap_is_closed() -> None:
    index = make_index()
    index.apply(delta(1000))
    index.load(snapshot(999, CHAIN[:2]))
    index.apply(delta(1002))
    assert (index.is_exact(A), index.wanted_snapshots()) == (False, {})


def test_a_snapshot_in_the_middle_of_a_gap_helps_but_is_not_enough() -> None:
    index = make_index()
    index.apply(delta(1000))
    assert index.load(snapshot(500, CHAIN[:4]))[0] is Outcome.APPLIED
    assert (overlap(index, A), index.is_exact(A), index.wanted_snapshots()) == (4, False, {A: (1, 999)})
    index.load(snapshot(999, CHAIN[:2]))
    assert (overlap(index, A), index.is_exact(A), index.position(A)) == (2, True, (1, 1000))


@pytest.mark.parametrize(
    "old", [snapshot(3, CHAIN[:9]), snapshot(2, CHAIN[:9]), snapshot(9, CHAIN[:9], epoch=0)], ids=str
)
def test_invariant_4_an_old_snapshot_is_ignored(old: KvSnapshot) -> None:
    index = make_index()
    index.load(snapshot(3, CHAIN[:5]))
    assert index.load(old) == (Outcome.IGNORED, [])
    assert (overlap(index, A), index.position(A)) == (5, (1, 3))


def test_a_snapshot_ahead_of_the_log_makes_the_deltas_that_follow_old() -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:1])))
    index.load(snapshot(5, CHAIN[:5]))
    assert [index.apply(delta(seq))[0] for seq in (2, 3, 4, 5, 6)] == [Outcome.IGNORED] * 4 + [Outcome.APPLIED]


def test_invariant_3_a_restart_retires_the_old_blocks_even_when_its_first_delta_is_missing() -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:8])))
    assert index.apply(delta(2, store(CHAIN[:2]), epoch=2)) == (Outcome.HELD, [SlotsChanged(A, NO_SLOTS)])
    assert (overlap(index, A), index.match(CHAIN)) == (0, ())
    index.apply(delta(1, store(CHAIN[:1]), epoch=2))
    assert (overlap(index, A), index.is_exact(A), index.stats().restarts) == (2, True, 1)


def test_clear_empties_every_tier_and_what_follows_gets_fresh_slots() -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:3]), store(CHAIN[:3], Tier.DISK)))
    before = index.slots()[A]
    _, changes = index.apply(delta(2, KvChange(Op.CLEAR, Tier.DEVICE, ()), store(CHAIN[:1])))
    assert changes[0] == SlotsChanged(A, NO_SLOTS)
    assert (overlap(index, A), overlap(index, A, Tier.DISK)) == (1, 0)
    assert not set(before) & set(index.slots()[A]) - {None}


def test_drop_and_drop_worker() -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:3])))
    index.apply(delta(1, store(CHAIN[:4]), source=B))
    index.apply(delta(1, store(CHAIN[:5]), source=SourceId(WorkerId("b"))))
    assert index.drop(A) == [SlotsChanged(A, NO_SLOTS)]
    assert index.drop(A) == []
    assert {changed.source for changed in index.drop_worker(WorkerId("b"))} == {B, SourceId(WorkerId("b"))}
    assert (index.match(CHAIN), index.sources(), index.position(A)) == ((), [], None)


def test_a_source_dropped_while_it_is_loaded_stays_dropped() -> None:
    index = make_index()
    steps = index.loading(snapshot(5, CHAIN), 4)
    for _ in range(3):
        next(steps)
    index.drop(A)
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert end.value.value is Outcome.IGNORED
    assert (index.match(CHAIN), index.sources()) == ((), [])


def test_what_is_held_is_bounded_for_a_source_and_the_oldest_goes() -> None:
    index = make_index()
    for seq in range(2, MAX_HELD_DELTAS + 12):
        index.apply(delta(seq, store(CHAIN[:1])))
    assert index.stats().held_blocks == MAX_HELD_DELTAS
    assert index.wanted_snapshots() == {A: (1, 11)}
    index.load(snapshot(11, CHAIN[:7]))
    assert (index.position(A), index.is_exact(A)) == ((1, MAX_HELD_DELTAS + 11), True)
    assert index.stats().held_blocks == 0


def test_what_a_snapshot_covers_is_held_no_longer() -> None:
    index = make_index()
    for seq in (3, 4, 7):
        index.apply(delta(seq, store(CHAIN[:10])))
    index.load(snapshot(5, CHAIN[:6]))
    assert (index.stats().held_blocks, index.position(A), index.is_exact(A)) == (10, (1, 5), False)


def test_what_is_held_is_bounded_for_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_index, "MAX_HELD_BLOCKS", 100)
    index = make_index()
    for number in range(20):
        source = SourceId(WorkerId(f"w{number}"))
        index.apply(delta(5, store(CHAIN[:30]), source=source))
        assert index.stats().held_blocks <= 100
    assert index.stats().held_blocks == 90
    assert len(index.wanted_snapshots()) == 17  # those that were given up; the others still wait
    index.drop_worker(WorkerId("w0"))
    assert index.stats().held_blocks == 60


def test_a_large_delta_alone_is_more_than_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_sequence, "MAX_HELD_BLOCKS", 10)
    index = make_index()
    index.apply(delta(3, store(CHAIN[:30])))
    assert (index.stats().held_blocks, index.is_exact(A)) == (0, False)
    index.tick()
    index.tick()
    assert index.wanted_snapshots() == {A: (1, 3)}


def test_a_source_without_room_is_not_exact_and_is_loaded_again_when_there_is_some() -> None:
    hashes = [(index * 0x9E3779B97F4A7C15) % (1 << 64) for index in range(1, 12_001)]
    index = make_index(300_000)
    index.apply(delta(1, store(hashes[:4000]), source=B))
    index.apply(delta(1, store(hashes[4000:])))
    assert (index.is_exact(A), index.truncated(), index.stats().truncated_sources) == (False, None, 1)
    index.drop(B)
    while index.sweep(1000):
        pass
    assert index.truncated() == A
    assert index.load(snapshot(1, hashes[4000:]))[0] is Outcome.APPLIED
    assert (index.is_exact(A), index.truncated()) == (True, None)


def test_stats_count_sources_by_state() -> None:
    index = make_index()
    index.apply(delta(1, store(CHAIN[:3])))
    index.apply(delta(2, source=B))
    index.apply(delta(100, source=SourceId(WorkerId("c"))))
    stats = index.stats()
    assert stats.sources == {SyncState.SYNCED: 1, SyncState.WAITING: 1, SyncState.BEHIND: 1}
    assert (stats.blocks, stats.gaps, stats.snapshots, stats.refused_blocks) == (3, 2, 0, 0)
    assert stats.bytes_used > 0
