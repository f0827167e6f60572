"""Membership, one situation at a time. Numbers in test names are invariants of workers/membership.py."""

import pytest

from kvstore.types import WorkerId
from tests.builders import make_lease, make_worker
from workers.lease_record import LeaseRecord
from workers.membership import Joined, Left, Membership
from workers.types import Phase

W = WorkerId("w")
LEASE_S = 6.0
STATE = make_worker(W)


@pytest.fixture
def members() -> Membership:
    return Membership(LEASE_S)


def look(record: LeaseRecord) -> dict[WorkerId, LeaseRecord]:
    return {record.state.spec.id: record}


def silence(
    members: Membership, records: dict[WorkerId, LeaseRecord], start_s: float, duration_s: float
) -> list[object]:
    """A look every second."""
    return [change for i in range(1, int(duration_s) + 1) for change in members.observe(records, start_s + i)]


def test_invariant_1_a_worker_joins_on_the_first_look_that_shows_it(members: Membership) -> None:
    assert members.observe({}, 0.0) == []
    assert members.observe(look(make_lease(STATE)), 1.0) == [Joined(STATE)]
    assert members.states() == {W: STATE}


def test_a_change_is_told_once_and_a_mere_heartbeat_is_not(members: Membership) -> None:
    members.observe(look(make_lease(STATE, 1)), 0.0)
    assert members.observe(look(make_lease(STATE, 2)), 1.0) == []
    busy = make_worker(W, running_seqs=1)
    assert members.observe(look(make_lease(busy, 3)), 2.0) == [Joined(busy)]
    assert members.observe(look(make_lease(busy, 3)), 3.0) == []


def test_invariant_1_a_worker_that_says_so_leaves_at_once_and_only_once(members: Membership) -> None:
    members.observe(look(make_lease(STATE, 1)), 0.0)
    lost = look(make_lease(make_worker(W, phase=Phase.LOST), 2))
    assert members.observe(lost, 1.0) == [Left(W, "left")]
    assert members.observe(lost, 2.0) == []
    assert members.states() == {}


def test_invariant_1_a_worker_that_is_first_seen_leaving_never_joined(members: Membership) -> None:
    assert members.observe(look(make_lease(make_worker(W, phase=Phase.LOST), 2)), 0.0) == []


@pytest.mark.parametrize("still_there", [True, False])
def test_invariant_1_a_worker_whose_beat_does_not_rise_leaves_after_the_lease(
    members: Membership, still_there: bool
) -> None:
    """Whether or not its record is still there: a key is no sign of life."""
    record = look(make_lease(STATE, 1))
    members.observe(record, 0.0)
    shown = record if still_there else {}
    assert silence(members, shown, 0.0, 5.0) == []
    assert members.observe(shown, 6.0) == [Left(W, "no heartbeat for 6 s")]
    assert silence(members, shown, 6.0, 20.0) == []


def test_invariant_1_a_worker_joins_again_when_its_beat_rises(members: Membership) -> None:
    members.observe(look(make_lease(STATE, 7)), 0.0)
    silence(members, look(make_lease(STATE, 7)), 0.0, 6.0)
    assert members.states() == {}
    assert members.observe(look(make_lease(STATE, 8)), 7.0) == [Joined(STATE)]


def test_invariant_1_an_old_record_of_a_worker_that_left_does_not_bring_it_back(members: Membership) -> None:
    """Redis restored from a snapshot of before the worker left."""
    members.observe(look(make_lease(STATE, 7)), 0.0)
    members.observe(look(make_lease(make_worker(W, phase=Phase.LOST), 8)), 1.0)
    assert silence(members, look(make_lease(STATE, 5)), 1.0, 20.0) == []


def test_invariant_1_a_worker_whose_clock_went_back_is_back_with_its_second_heartbeat(members: Membership) -> None:
    """The epoch is a wall-clock time: lower than before, but somebody is writing."""
    members.observe(look(make_lease(make_worker(W, epoch=1000), 7)), 0.0)
    older = make_worker(W, epoch=10)
    changes = [c for i in range(1, 10) for c in members.observe(look(make_lease(older, i)), float(i))]
    assert changes == [Left(W, "no heartbeat for 6 s"), Joined(older)]


def test_invariant_1_once_its_record_is_gone_a_worker_is_new(members: Membership) -> None:
    members.observe(look(make_lease(make_worker(W, phase=Phase.LOST), 8)), 0.0)
    members.observe({}, 1.0)
    assert members.observe(look(make_lease(STATE, 1)), 2.0) == [Joined(STATE)]


def test_invariant_2_an_outage_changes_nothing_and_gives_everybody_a_full_lease(members: Membership) -> None:
    members.observe(look(make_lease(STATE, 1)), 0.0)
    assert silence(members, {}, 0.0, 5.0) == []
    members.observe_outage()
    assert members.states() == {W: STATE}
    assert members.observe({}, 1000.0) == []
    assert silence(members, {}, 1000.0, 5.0) == []
    assert members.observe({}, 1006.0) == [Left(W, "no heartbeat for 6 s")]


def test_invariant_2_a_worker_that_writes_again_after_an_outage_never_left(members: Membership) -> None:
    members.observe(look(make_lease(STATE, 1)), 0.0)
    members.observe_outage()
    assert members.observe({}, 50.0) == []
    assert members.observe(look(make_lease(STATE, 60)), 51.0) == []


def test_invariant_2_a_follower_that_stalled_does_not_hold_it_against_the_workers(members: Membership) -> None:
    members.observe(look(make_lease(STATE, 1)), 0.0)
    assert members.observe(look(make_lease(STATE, 1)), 3600.0) == []
    assert members.states() == {W: STATE}


def test_invariant_3_an_older_record_changes_nothing(members: Membership) -> None:
    members.observe(look(make_lease(make_worker(W, epoch=5), 10)), 0.0)
    for older in (
        make_lease(make_worker(W, epoch=5, phase=Phase.DRAINING), 9),
        make_lease(make_worker(W, epoch=5, phase=Phase.DRAINING), 10),
        make_lease(make_worker(W, epoch=4, phase=Phase.DRAINING), 99),
        make_lease(make_worker(W, epoch=5, phase=Phase.LOST), 10),
    ):
        assert members.observe(look(older), 1.0) == []
    assert members.states()[W].spec.epoch == 5


def test_invariant_3_a_new_epoch_counts_its_beats_from_the_start(members: Membership) -> None:
    members.observe(look(make_lease(make_worker(W, epoch=5), 10)), 0.0)
    restarted = make_worker(W, epoch=6)
    assert members.observe(look(make_lease(restarted, 1)), 1.0) == [Joined(restarted)]


def test_each_worker_has_its_own_lease(members: Membership) -> None:
    a, b = make_worker("a"), make_worker("b")
    members.observe({**look(make_lease(a, 1)), **look(make_lease(b, 1))}, 0.0)
    changes = []
    for i in range(1, 8):
        changes += members.observe({**look(make_lease(a, 1)), **look(make_lease(b, i + 1))}, float(i))
    assert changes == [Left(WorkerId("a"), "no heartbeat for 6 s")]
    assert members.states() == {"b": b}
