"""FleetIndex against the truth: what every worker held after every one of its deltas. Numbers: kvstore/fleet_index.py.

Deltas are lost, repeated and reordered; workers restart and clear; snapshots come late, early or twice; routers restart
and are fed from snapshots and the log; sources are dropped in the middle of a step; memory runs out.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.fleet_index import NO_SLOTS, FleetIndex, Slots, SlotsChanged, Steps
from kvstore.kv_types import KvDelta, KvSnapshot, SourceId
from kvstore.prefix_index import PrefixIndex
from kvstore.source_sequence import SyncState
from kvstore.types import WorkerId
from tests.kv_workers import Held, Worker, shown_by

SOURCES = [SourceId(WorkerId("a"), 0), SourceId(WorkerId("b"), 1)]


@dataclass
class Reader:
    """A router: the index, and the mapping that it builds from what the index returns."""

    index: FleetIndex
    blocks: PrefixIndex
    mapped: dict[SourceId, Slots] = field(default_factory=dict)
    seen: dict[SourceId, tuple[int, int]] = field(default_factory=dict)

    def follow(self, changes: list[SlotsChanged] | tuple[SlotsChanged, ...]) -> None:
        for changed in changes:
            self.mapped[changed.source] = changed.slots
            if changed.slots == NO_SLOTS:
                del self.mapped[changed.source]
        assert self.mapped == self.index.slots()

    def held(self, source: SourceId) -> Held:
        """What a router would conclude from matches alone."""
        return shown_by(self.index, self.mapped, source)


class World:
    """Workers, a network that does what it likes, a store of snapshots and a router."""

    def __init__(self, seed: int, budget_bytes: int) -> None:
        self.random = Random(seed)
        self.budget_bytes = budget_bytes
        self.interrupted = 0.02  # share of steps after which something happens
        self.workers = {source: Worker(source, Random(seed + at)) for at, source in enumerate(SOURCES)}
        self.network: list[KvDelta] = []
        self.stored: list[KvSnapshot] = []
        self.reader = self.new_reader()

    def new_reader(self) -> Reader:
        blocks = PrefixIndex(self.budget_bytes, slots_per_bucket=4)
        return Reader(FleetIndex(blocks), blocks)

    def do(self, what: str, pick: int) -> None:
        """One thing happens: one of the methods below, to a source or a message that `pick` chooses."""
        getattr(self, what)(self.workers[SOURCES[pick % len(SOURCES)]], pick)
        self.check()
        used = [slot for slots in self.reader.mapped.values() for slot in slots if slot is not None]
        assert self.reader.blocks.num_live_slots == len(used), "a slot was left open"

    def say(self, worker: Worker, _: int) -> None:
        self.network.append(worker.step())

    def restart(self, worker: Worker, _: int) -> None:
        worker.restart()

    def deliver(self, _: Worker, pick: int) -> None:
        """One of the oldest messages, so that the order changes a little."""
        if self.network:
            delta = self.network.pop(pick % min(len(self.network), 3))
            self.run(self.reader.index.applying(delta, 1 + pick % 3))

    def deliver_any(self, _: Worker, pick: int) -> None:
        if self.network:
            self.run(self.reader.index.applying(self.network.pop(pick % len(self.network)), 1 + pick % 3))

    def repeat(self, worker: Worker, pick: int) -> None:
        if worker.log:
            self.run(self.reader.index.applying(worker.log[pick % len(worker.log)], 2))

    def lose(self, _: Worker, pick: int) -> None:
        if self.network:
            self.network.pop(pick % len(self.network))

    def write_snapshot(self, worker: Worker, _: int) -> None:
        self.stored.append(worker.snapshot())

    def load(self, _: Worker, pick: int) -> None:
        if self.stored:
            self.run(self.reader.index.loading(self.stored[pick % len(self.stored)], 1 + pick % 3))

    def load_newest(self, worker: Worker, pick: int) -> None:
        self.run(self.reader.index.loading(worker.snapshot(), 1 + pick % 3))

    def drop(self, worker: Worker, _: int) -> None:
        self.forget(worker.source)

    def tick(self, _: Worker, __: int) -> None:
        self.reader.index.tick()

    def sweep(self, _: Worker, pick: int) -> None:
        self.reader.index.sweep(pick % 20)

    def restart_router(self, _: Worker, __: int) -> None:
        self.reader = self.new_reader()
        for snapshot in self.stored:
            self.run(self.reader.index.loading(snapshot, 3))
        for delta in [delta for worker in self.workers.values() for delta in worker.log]:
            self.run(self.reader.index.applying(delta, 3))

    def run(self, steps: Steps) -> None:
        """Take the steps and look at everything in between; now and then drop a source meanwhile, or go no further."""
        for changes in steps:
            self.reader.follow(changes)
            self.check()
            if self.random.random() < self.interrupted:
                self.forget(self.random.choice(SOURCES))
            elif self.random.random() < self.interrupted:
                steps.close()

    def forget(self, source: SourceId) -> None:
        self.reader.follow(self.reader.index.drop(source))
        self.reader.seen.pop(source, None)

    def check(self) -> None:
        reader, index = self.reader, self.reader.index
        reader.blocks.validate()
        for source, worker in self.workers.items():
            position = index.position(source)
            if position is None:
                assert source not in reader.mapped
                continue
            assert position >= reader.seen.get(source, (0, 0)), "invariant 4"
            reader.seen[source] = position
            held = reader.held(source)
            if index.is_exact(source):
                assert held == worker.history[position], "invariant 1"
            shown = {(position[0], tier, block) for tier, blocks in held.items() for block in blocks}
            assert shown <= worker.ever, "invariant 3"

    def settle(self) -> None:
        """Faults stop: each worker says one more thing, the router gets the snapshots that it asks for."""
        index = self.reader.index
        self.interrupted = 0.0
        for worker in self.workers.values():
            self.run(index.applying(worker.step(), 3))
        index.tick()
        index.tick()
        for source, wanted in index.wanted_snapshots().items():
            snapshot = self.workers[source].snapshot()
            assert (snapshot.epoch, snapshot.seq) >= wanted
            self.run(index.loading(snapshot, 3))


OPS = ["say"] * 8 + ["deliver"] * 7 + ["deliver_any", "deliver_any", "repeat", "lose", "restart", "drop", "tick"]
OPS += ["write_snapshot", "write_snapshot", "load", "load_newest", "restart_router", "sweep", "sweep"]
histories = st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 50)), min_size=60, max_size=200)


@settings(max_examples=80)
@given(histories, st.integers(0, 1 << 30))
def test_an_exact_source_is_the_truth_at_its_position_whatever_happens(
    history: list[tuple[str, int]], seed: int
) -> None:
    world = World(seed, budget_bytes=1 << 20)
    for what, pick in history:
        world.do(what, pick)
    world.settle()
    for source, worker in world.workers.items():
        assert world.reader.index.is_exact(source)
        assert world.reader.index.position(source) == (worker.epoch, worker.seq)
        assert world.reader.held(source) == worker.history[(worker.epoch, worker.seq)]


@settings(max_examples=40)
@given(histories, st.integers(0, 1 << 30), st.integers(0, 2000))
def test_invariant_1_holds_also_when_memory_runs_out(
    history: list[tuple[str, int]], seed: int, spare_bytes: int
) -> None:
    world = World(seed, budget_bytes=2500 + spare_bytes)
    for what, pick in history:
        world.do(what, pick)


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.booleans())
def test_invariant_4_a_snapshot_shows_as_a_whole(seed: int, step_blocks: int, is_new: bool) -> None:
    world, source = World(seed, 1 << 20), SOURCES[0]
    worker, reader = world.workers[source], world.reader
    for _ in range(0 if is_new else 5):
        reader.follow(reader.index.apply(worker.step())[1])
    before = reader.held(source)
    for _ in range(5):
        worker.step()
    after = worker.history[(worker.epoch, worker.seq)]
    seen = []
    for changes in reader.index.loading(worker.snapshot(), step_blocks):
        reader.follow(changes)
        seen.append(reader.held(source))
        assert not reader.index.is_exact(source) or reader.index.position(source) == (1, worker.seq)
    shown = next((at for at, held in enumerate(seen) if held != before), len(seen))
    assert all(held == after for held in seen[shown:])
    assert reader.held(source) == after


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 8), st.booleans())
def test_invariant_2_a_gap_retires_nothing_and_reordering_is_repaired_without_a_snapshot(
    seed: int, distance: int, late: bool
) -> None:
    world, source = World(seed, 1 << 20), SOURCES[0]
    worker, index = world.workers[source], world.reader.index
    for _ in range(4):
        index.apply(worker.step())
    world.reader.mapped = index.slots()
    before = world.reader.held(source)
    missing, *overtaking = [worker.step() for _ in range(distance + 1)]
    for delta in overtaking:
        index.apply(delta)
        assert not index.is_exact(source)
        assert world.reader.held(source) == before
    if late:
        index.tick()
        index.tick()
    assert index.stats().sources[SyncState.BEHIND] == late
    assert bool(index.wanted_snapshots()) == late
    index.apply(missing)
    world.reader.mapped = index.slots()
    assert index.is_exact(source)
    assert world.reader.held(source) == worker.history[(worker.epoch, worker.seq)]
    assert index.wanted_snapshots() == {}


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 30), st.integers(1, 30))
def test_what_was_held_goes_on_from_the_snapshot(seed: int, missing: int, following: int) -> None:
    world, source = World(seed, 1 << 20), SOURCES[0]
    worker, reader = world.workers[source], world.reader
    for _ in range(missing):
        worker.step()
    snapshot = worker.snapshot()
    for _ in range(following):
        reader.follow(reader.index.apply(worker.step())[1])
    reader.follow(reader.index.load(snapshot)[1])
    assert reader.index.is_exact(source)
    assert reader.held(source) == worker.history[(1, missing + following)]
    assert reader.index.stats().held_blocks == 0


def test_sources_do_not_see_each_other() -> None:
    world = World(3, 1 << 20)
    index, counts = world.reader.index, defaultdict[SourceId, int](int)
    for _ in range(30):
        for worker in world.workers.values():
            world.reader.follow(index.apply(worker.step())[1])
            counts[worker.source] += 1
    world.reader.follow(index.drop_worker(WorkerId("a")))
    assert index.sources() == [SOURCES[1]]
    assert world.reader.held(SOURCES[1]) == world.workers[SOURCES[1]].history[(1, 30)]
