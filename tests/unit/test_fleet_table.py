"""Columns of the fleet. Numbers in test names are invariants of router/fleet/table.py."""

import math

import pytest

from kvstore.types import RequestId, WorkerId
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.types import ReplicaReport, WorkerPromises
from tests.builders import make_decode, make_prefill, make_table, make_worker
from workers.types import Phase, Role

W = WorkerId("mixed-1")
R1, R2 = RequestId("r1"), RequestId("r2")
SECOND = PrefillWork(tokens=100, quad=0.1, work_s=1.0)


def backlog_s(table: FleetTable, now_s: float, worker_id: WorkerId = W) -> float:
    row = table.row_of(worker_id)
    assert row is not None
    return float(table.backlog_s(table.eligible("m", "/v1/completions")[1], now_s)[0])


def test_backlog_is_the_work_promised_and_passes_with_time() -> None:
    table = make_table(make_worker())
    table.promise_prefill(W, R1, SECOND, 10.0, is_observed=True)
    table.promise_prefill(W, R2, SECOND, 10.5, is_observed=True)
    assert [backlog_s(table, now_s) for now_s in (10.5, 11.5, 20.0)] == pytest.approx([1.5, 0.5, 0.0])


def test_the_end_of_a_prefill_corrects_the_forecast() -> None:
    table = make_table(make_worker())
    table.promise_prefill(W, R1, SECOND, 10.0, is_observed=True)
    table.promise_prefill(W, R2, SECOND, 10.0, is_observed=True)
    table.prefill_over(W, R1, 10.2, done=True)  # sooner than predicted: the other starts now
    assert backlog_s(table, 10.2) == pytest.approx(1.0)
    table.prefill_over(W, R2, 13.0, done=True)  # later
    assert backlog_s(table, 13.0) == 0.0


def test_a_cancelled_prefill_takes_its_share_with_it() -> None:
    table = make_table(make_worker())
    table.promise_prefill(W, R1, SECOND, 10.0, is_observed=True)
    table.promise_prefill(W, R2, SECOND, 10.0, is_observed=True)
    table.prefill_over(W, R2, 10.5, done=False)
    assert backlog_s(table, 10.5) == pytest.approx(0.5)


def test_a_prefill_whose_end_nobody_sees_is_over_when_predicted() -> None:
    table = make_table(make_worker())
    table.promise_prefill(W, R1, SECOND, 10.0, is_observed=False)
    table.promise_prefill(W, R2, SECOND, 15.0, is_observed=True)
    assert backlog_s(table, 15.0) == pytest.approx(1.0)
    table.promise_prefill(W, RequestId("r3"), SECOND, 15.0, is_observed=True)
    table.prefill_over(W, R2, 16.0, done=True)
    assert backlog_s(table, 16.0) == pytest.approx(1.0)


def test_invariant_1_a_row_outlives_its_worker_while_something_is_promised_to_it() -> None:
    table = make_table(make_worker())
    table.promise_seq(W, 100, 0.1)
    table.remove(W)
    assert table.states() == []
    row = table.row_of(W)
    assert row is not None
    table.seq_over(W, 100, 0.1)
    assert table.row_of(W) is None
    table.upsert(make_worker("another"))
    assert table.row_of(WorkerId("another")) == row
    assert table.min_tpot_s[row] == math.inf
    table.validate()


def test_a_thousand_workers_find_room() -> None:
    table = make_table(*(make_worker(f"w{i:04}") for i in range(1000)))
    table.validate()
    assert [state.spec.id for state in table.states()] == [f"w{i:04}" for i in range(1000)]


def test_eligible_rows_follow_role_phase_model_and_route() -> None:
    table = make_table(
        make_prefill("p1"), make_decode("d1"), make_worker("m1"), make_worker("m2", phase=Phase.DRAINING),
        make_worker("o1", model="other"), make_worker("n1", routes={}),
    )  # fmt: skip
    prefill, decode = table.eligible("m", "/v1/completions")
    assert [table.state_at(row).spec.id for row in prefill] == ["p1"]
    assert [table.state_at(row).spec.id for row in decode] == ["d1", "m1"]
    table.upsert(make_worker("m2", phase=Phase.READY))
    assert len(table.eligible("m", "/v1/completions")[1]) == 3
    table.remove(WorkerId("d1"))
    assert len(table.eligible("m", "/v1/completions")[1]) == 2


def test_a_promise_counts_until_the_report_shows_it_and_not_twice() -> None:
    table = make_table(make_worker(running_seqs=3, waiting_seqs=1))
    rows = table.eligible("m", "/v1/completions")[1]
    assert table.seqs[rows[0]] == 4
    for _ in range(5):
        table.promise_seq(W, 1000, math.inf)
    assert table.seqs[rows[0]] == 5
    assert table.kv_tokens[rows[0]] == 5000


def test_other_replicas_promises_add_up_and_are_replaced_by_the_next_report() -> None:
    table = make_table(make_worker())
    rows = table.eligible("m", "/v1/completions")[1]
    promised = WorkerPromises(W, backlog_s=2.0, seqs=3, kv_tokens=500, min_tpot_s=0.05)
    unknown = WorkerPromises(WorkerId("gone"), 1.0, 1, 1, 1.0)
    table.set_remote([ReplicaReport("a", (promised, unknown), ()), ReplicaReport("b", (promised,), ())], 3, 10.0)
    assert table.backlog_s(rows, 11.0)[0] == pytest.approx(3.0)
    assert table.seqs[rows[0]] == 6
    assert table.min_tpot_s[rows[0]] == 0.05
    table.promise_prefill(W, R1, SECOND, 11.0, is_observed=True)
    # Since the exchange each of the two others is taken to have done as this one did.
    assert table.backlog_s(rows, 11.0)[0] == pytest.approx(3.0 + 1.0 + 2.0)
    table.set_remote([], 1, 11.0)
    assert table.backlog_s(rows, 11.0)[0] == pytest.approx(1.0)
    assert table.min_tpot_s[rows[0]] == math.inf


def test_own_promises_as_others_are_told() -> None:
    table = make_table(make_worker(), make_worker("idle"))
    table.promise_prefill(W, R1, SECOND, 10.0, is_observed=True)
    table.promise_seq(W, 300, 0.2)
    assert table.promises(10.25) == (WorkerPromises(W, 0.75, 1, 300, 0.2),)


def test_roles_that_change_with_a_restart_are_seen() -> None:
    table = make_table(make_worker("w", Role.MIXED))
    table.upsert(make_worker("w", Role.PREFILL, epoch=2))
    prefill, decode = table.eligible("m", "/v1/completions")
    assert (len(prefill), len(decode)) == (1, 0)
