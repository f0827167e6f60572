"""Membership against a naive twin that keeps everything it saw. Numbers: invariants of workers/membership.py."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.types import WorkerId
from tests.builders import make_lease, make_worker
from workers.lease_record import LeaseRecord
from workers.membership import Joined, Left, Membership
from workers.types import Phase, WorkerState

LEASE_S = 4.0
IDS = [WorkerId(name) for name in "abc"]


@dataclass(frozen=True)
class Look:
    """What Redis showed; None: it did not answer."""

    records: dict[WorkerId, LeaseRecord] | None
    after_s: float


@dataclass
class Seen:
    """Everything the twin has to know of one worker."""

    orders: list[tuple[int, int] | None] = field(default_factory=list)  # by look that worked; None: no record
    member: LeaseRecord | None = None
    silent_s: float = 0.0


class Twin:
    """The invariants, written down one after the other, without a thought for memory."""

    def __init__(self) -> None:
        self.seen = {worker_id: Seen() for worker_id in IDS}
        self.listening_since_s: float | None = None

    def look(self, records: dict[WorkerId, LeaseRecord] | None, now_s: float) -> list[Joined | Left]:
        if records is None:
            self.listening_since_s = None
            for seen in self.seen.values():
                seen.silent_s = 0.0
            return []
        heard_s = 0.0 if self.listening_since_s is None else min(now_s - self.listening_since_s, LEASE_S / 4)
        self.listening_since_s = now_s
        changes: list[Joined | Left] = []
        for worker_id, seen in self.seen.items():
            seen.silent_s += heard_s
            changes += self.judge(worker_id, seen, records.get(worker_id))
        return changes

    def judge(self, worker_id: WorkerId, seen: Seen, record: LeaseRecord | None) -> list[Joined | Left]:
        before = seen.orders[-1] if seen.orders else None
        seen.orders.append(order(record) if record else None)
        if seen.member is None:
            lives = record is not None and record.state.phase is not Phase.LOST
            if not lives or (before is not None and order(record) <= before):  # invariant 1: only a rising beat counts
                return []
            return self.join(seen, record)
        if record is not None and order(record) > order(seen.member):  # invariant 3
            if record.state.phase is Phase.LOST:
                seen.member = None
                return [Left(worker_id, "left")]
            changed = record.state != seen.member.state
            return self.join(seen, record)[: 1 if changed else 0]
        if seen.silent_s >= LEASE_S:  # invariants 1 and 2
            # What counts from here on is the newest it ever said, until another look.
            seen.orders[-1] = order(seen.member) if record is not None else None
            seen.member = None
            return [Left(worker_id, f"no heartbeat for {LEASE_S:g} s")]
        return []

    def join(self, seen: Seen, record: LeaseRecord | None) -> list[Joined | Left]:
        assert record is not None
        seen.member, seen.silent_s = record, 0.0
        return [Joined(record.state)]

    def states(self) -> dict[WorkerId, WorkerState]:
        return {worker_id: seen.member.state for worker_id, seen in self.seen.items() if seen.member is not None}


def order(record: LeaseRecord | None) -> tuple[int, int]:
    assert record is not None
    return record.state.spec.epoch, record.beat


def record_of(worker_id: WorkerId) -> st.SearchStrategy[LeaseRecord]:
    state = st.builds(
        make_worker,
        st.just(worker_id),
        phase=st.sampled_from([Phase.READY, Phase.READY, Phase.READY, Phase.DRAINING, Phase.LOST]),
        epoch=st.integers(1, 3),
        running_seqs=st.integers(0, 1),
    )
    return st.builds(make_lease, state, st.integers(1, 6))


records = st.fixed_dictionaries({}, optional={worker_id: record_of(worker_id) for worker_id in IDS})
looks = st.builds(
    Look, st.one_of(records, records, records, st.none()), st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 100.0])
)


@settings(max_examples=400)
@given(st.lists(looks, max_size=30))
def test_invariants_1_to_3_membership_is_its_twin(history: list[Look]) -> None:
    membership, twin, now_s = Membership(LEASE_S), Twin(), 0.0
    for look in history:
        now_s += look.after_s
        expected = twin.look(look.records, now_s)
        before = membership.states()
        if look.records is None:
            membership.observe_outage()
            assert membership.states() == before  # invariant 2
        else:
            changes = membership.observe(look.records, now_s)
            assert Counter(map(repr, changes)) == Counter(map(repr, expected))
        assert membership.states() == twin.states()


@given(st.lists(looks, max_size=30))
def test_invariant_1_nobody_leaves_who_has_not_joined_and_the_changes_add_up_to_the_fleet(history: list[Look]) -> None:
    membership, fleet, now_s = Membership(LEASE_S), dict[WorkerId, WorkerState](), 0.0
    for look in history:
        now_s += look.after_s
        for change in [] if look.records is None else membership.observe(look.records, now_s):
            match change:
                case Joined(state):
                    assert fleet.get(state.spec.id) != state
                    fleet[state.spec.id] = state
                case Left(worker_id):
                    del fleet[worker_id]
        assert fleet == membership.states()


@given(st.lists(st.sampled_from(["beat", "none", "outage", "stall"]), max_size=60))
def test_invariant_2_a_worker_that_renews_in_time_never_leaves(history: list[str]) -> None:
    """Renewing every second, with up to two heartbeats lost in a row; outages and stalls of any number and length."""
    membership, now_s, beat, lost = Membership(LEASE_S), 0.0, 0, 0
    for what in ["beat", *history]:
        now_s += 1000.0 if what == "stall" else 1.0
        beat += 1
        if what == "outage":
            membership.observe_outage()
            lost = 0
            continue
        lost = lost + 1 if what == "none" and lost < 2 else 0
        shown = {} if lost else {IDS[0]: make_lease(make_worker(IDS[0]), beat)}
        assert not [change for change in membership.observe(shown, now_s) if isinstance(change, Left)]
    assert IDS[0] in membership.states()


@given(st.integers(1, 6), st.lists(st.sampled_from([0.5, 1.0]), min_size=50, max_size=50))
def test_invariant_1_a_record_that_merely_stays_joins_once_and_leaves_once(beat: int, gaps_s: list[float]) -> None:
    membership, now_s = Membership(LEASE_S), 0.0
    record = {IDS[0]: make_lease(make_worker(IDS[0]), beat)}
    changes: list[Joined | Left] = []
    for gap_s in gaps_s:
        now_s += gap_s
        changes += membership.observe(record, now_s)
    assert changes == [Joined(record[IDS[0]].state), Left(IDS[0], f"no heartbeat for {LEASE_S:g} s")]
