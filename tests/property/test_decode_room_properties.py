"""Room in decode batches against a search over time, and against adding one sequence after another."""

from math import inf

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore.types import WorkerId
from router.choice.cost import Costs, decode_room
from router.choice.decode_room import DecodeRoom
from router.fleet.table import FleetTable
from router.latency import LatencyParams
from tests.builders import make_request, make_table, make_view, make_worker

PARAMS = LatencyParams(c0=0.01, c1=0.2, c2=0.001, d0=0.02, d1=0.001, d2=0.0003, t0=0.01, t1=0.01)
TOKENS = 130
workers = st.tuples(st.integers(-9, 9).map(float), st.sampled_from([0.25, 0.5, 1.0, 4.0]))
tpots_s = st.sampled_from([0.0251, 0.0307, 0.0419, inf])


def naive_start_s(room: DecodeRoom, num: float) -> float:
    low, high = 0.0, 1000.0
    if room.by(low) >= num:
        return low
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if room.by(middle) >= num else (middle, high)
    return high


@given(rows=st.lists(workers, min_size=1, max_size=5), nums=st.lists(st.integers(1, 20).map(float), min_size=1))
def test_a_sequence_starts_when_there_is_room_for_it_and_those_before_it(
    rows: list[tuple[float, float]], nums: list[float]
) -> None:
    room = DecodeRoom(*np.array(rows).T)
    assert np.allclose(room.starts_in_s(np.array(nums)), [naive_start_s(room, num) for num in nums])


def fits(table: FleetTable, row: int, tpot_s: float) -> bool:
    costs = Costs(make_view(table, make_request(num_prompt_tokens=TOKENS)), 50)
    return bool(costs.keeps_promises(tpot_s)[row] and costs.has_room(TOKENS)[row])


@given(
    promised=st.lists(st.lists(tpots_s, max_size=12), min_size=1, max_size=3),
    tpot_s=tpots_s,
    kv_total_tokens=st.sampled_from([100.0, 1500.0, 9000.0]),
    margin=st.sampled_from([1.0, 1.13]),
)
def test_room_is_as_many_as_can_be_added_one_by_one(
    promised: list[list[float]], tpot_s: float, kv_total_tokens: float, margin: float
) -> None:
    names = [f"w{row}" for row in range(len(promised))]
    table = make_table(*(make_worker(name) for name in names), params=PARAMS)
    table.kv_total_tokens[:] = kv_total_tokens
    table.step_margin[:] = margin
    for name, theirs in zip(names, promised, strict=True):
        for their_s in theirs:
            table.promise_seq(WorkerId(name), TOKENS, their_s)
    costs = Costs(make_view(table, make_request(num_prompt_tokens=TOKENS)), 50)
    found = decode_room(costs, tpot_s=tpot_s, kv_tokens=TOKENS, output_tokens=50)
    counted, slow = [], ~np.asarray(costs.keeps_promises(tpot_s), dtype=np.bool_)
    for row, (name, theirs) in enumerate(zip(names, promised, strict=True)):
        num = 0
        while fits(table, row, tpot_s):
            num += 1
            table.promise_seq(WorkerId(name), TOKENS, tpot_s)
        if not slow[row] or min(theirs, default=inf) <= tpot_s:
            counted.append(float(num))
    assert np.maximum(found.seqs, 0.0).tolist() == counted
    assert (found.ends_per_s > 0.0).all()
