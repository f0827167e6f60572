"""router/choice/decode_room.py and `decode_room` of router/choice/cost.py, by hand."""

from math import inf, log

import numpy as np
import pytest

from kvstore.types import WorkerId
from router.choice.cost import Costs, decode_room
from router.choice.decode_room import DecodeRoom
from router.latency import LatencyParams
from tests.builders import make_request, make_table, make_view, make_worker

# A step takes 20 ms and 1 ms a sequence; a request is 100 tokens of prompt and 100 of answer.
PARAMS = LatencyParams(c0=0.01, c1=0.2, c2=0.001, d0=0.02, d1=0.001, d2=0.0, t0=0.01, t1=0.01)


def room(*seqs_and_ends: tuple[float, float]) -> DecodeRoom:
    return DecodeRoom(*np.array(seqs_and_ends).reshape(-1, 2).T)


def room_for(costs: Costs, tpot_s: float, *, num_replicas: int = 1, with_margin: bool = True) -> DecodeRoom:
    return decode_room(
        costs, tpot_s=tpot_s, kv_tokens=200, output_tokens=100, num_replicas=num_replicas, with_margin=with_margin
    )


def test_what_fits_now_starts_now_and_the_rest_as_others_end() -> None:
    one = room((2.0, 0.5))
    assert one.starts_in_s(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [0.0, 0.0, 2.0, 4.0]
    assert (one.by(0.0), one.by(4.0)) == (2.0, 4.0)


def test_a_worker_that_is_too_full_counts_once_it_has_room() -> None:
    two = room((1.0, 1.0), (-4.0, 2.0))
    assert two.starts_in_s(np.array([1.0, 3.0, 6.0])).tolist() == [0.0, 2.0, 3.0]
    assert [two.by(at_s) for at_s in (0.0, 2.0, 3.0)] == [1.0, 3.0, 6.0]


def test_without_a_worker_that_counts_nothing_is_foreseen() -> None:
    none = room()
    assert none.starts_in_s(np.array([1.0, 2.0])).tolist() == [inf, inf]
    assert (none.by(9.0), none.speed, none.blocked_s) == (0.0, 0.0, inf)


def test_how_long_no_sequence_may_end() -> None:
    assert room((0.0, 0.5), (-3.0, 1.5)).blocked_s == pytest.approx(log(100.0) / 2.0)
    assert room((0.0, 0.5), (1.0, 1.5)).blocked_s == 0.0


def test_room_is_what_the_tightest_target_and_the_kv_cache_leave() -> None:
    table = make_table(make_worker("a", running_seqs=4), params=PARAMS)
    table.kv_total_tokens[:] = 10_000.0
    found = room_for(Costs(make_view(table, make_request(num_prompt_tokens=100)), 50), 0.0305)
    assert found.seqs.tolist() == [6.0]  # ten in all
    assert found.ends_per_s.tolist() == pytest.approx([10 / (100 * 0.030)])
    table.promise_seq(WorkerId("a"), 0, 0.0275)
    assert room_for(Costs(make_view(table), 50), 0.0305).seqs.tolist() == [3.0]
    table.kv_total_tokens[:] = 400.0
    assert room_for(Costs(make_view(table), 50), 0.0305).seqs.tolist() == [2.0]


def test_the_margin_is_for_newcomers_and_each_replica_counts_on_its_part() -> None:
    table = make_table(make_worker("a", running_seqs=4), params=PARAMS)
    table.step_margin[:] = 1.1
    costs = Costs(make_view(table), 50)
    assert room_for(costs, 0.0342).seqs.tolist() == [7.0]
    assert room_for(costs, 0.0342, num_replicas=2).seqs.tolist() == [3.5]
    assert room_for(costs, 0.0342, with_margin=False).seqs.tolist() == [10.0]


def test_a_full_worker_counts_only_if_its_own_promises_are_as_tight() -> None:
    table = make_table(make_worker("tight", running_seqs=20), make_worker("loose", running_seqs=20), params=PARAMS)
    table.promise_seq(WorkerId("tight"), 0, 0.0305)
    table.promise_seq(WorkerId("loose"), 0, 0.0505)
    costs = Costs(make_view(table), 50)
    assert room_for(costs, 0.0305).seqs.tolist() == [-10.0]
    assert sorted(room_for(costs, 0.0505).seqs.tolist()) == [-10.0, 10.0]


def test_one_that_ends_makes_room_for_a_part_of_one_that_needs_more() -> None:
    table = make_table(make_worker("a"), params=PARAMS)
    table.kv_total_tokens[:] = 1000.0
    for _ in range(10):
        table.promise_seq(WorkerId("a"), 100, inf)
    found = room_for(Costs(make_view(table), 50), 1.0)
    assert found.seqs.tolist() == [0.0]
    assert found.ends_per_s.tolist() == pytest.approx([10 * 0.5 / (100 * 0.031)])
