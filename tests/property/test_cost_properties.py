"""The terms of a decision are the same, bit by bit, row by row and as columns, all at once and of one way alone."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.types import RequestId
from router.choice.cost import FEW, Costs
from router.choice.view import View
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.latency import LatencyParams
from tests.builders import make_overlap, make_request, make_table, make_worker
from workers.types import Role

NOW_S = 3.0
SECONDS = st.floats(1e-6, 1.0)


@st.composite
def tables(draw: st.DrawFn) -> FleetTable:
    """More rows on each side than are weighed one by one."""
    roles = [Role.PREFILL, Role.DECODE] * (FEW + 2)
    workers = [make_worker(f"{role}-{i}", role, running_seqs=draw(st.integers(0, 9))) for i, role in enumerate(roles)]
    table = make_table(*workers)
    for slot, worker in enumerate(workers):
        worker_id = worker.spec.id
        table.set_latency(worker_id, LatencyParams(*(draw(SECONDS) for _ in range(8))), 1.0 + draw(SECONDS), 0.01)
        table.set_slots(worker_id, (slot, slot + 100 if draw(st.booleans()) else -1, -1))
        table.set_tokens_per_step(worker_id, 1.0 + draw(SECONDS))
        table.set_prompt_tokens_per_step(worker_id, 100.0 * draw(SECONDS))
        if draw(st.booleans()):
            table.promise_prefill(worker_id, RequestId("r"), PrefillWork(9, 0.0, draw(SECONDS)), 2.5, is_observed=True)
        table.promise_seq(worker_id, 100, draw(SECONDS))
    table.set_remote([], draw(st.integers(1, 3)), 0.0)
    return table


@given(
    table=tables(),
    blocks=st.dictionaries(st.integers(0, 120), st.integers(0, 40), max_size=20),
    num_prompt_tokens=st.integers(1, 2_000),
)
def test_one_way_alone_a_few_rows_and_columns_agree(
    table: FleetTable, blocks: dict[int, int], num_prompt_tokens: int
) -> None:
    request, overlap = make_request(num_prompt_tokens=num_prompt_tokens), make_overlap(blocks)
    prefill, decode = table.eligible(request.model, request.route)

    def costs(num_rows: int) -> Costs:
        return Costs(View(request, overlap, NOW_S, table, prefill[:num_rows], decode[:num_rows]), 8.0, 0.3)

    columns, rows = costs(FEW + 1), costs(FEW)
    for each in (columns, rows):
        assert len(each.local_s) == len(each.handed_s) == len(each.view.decode_rows)
    for at in range(FEW):
        for p in (None, FEW - 1 - at):
            alone = costs(FEW).forecast(p, at)
            assert columns.forecast(p, at) == rows.forecast(p, at) == alone
        assert columns.local_s[at] == rows.local_s[at]
        assert columns.handed_s[at] == rows.handed_s[at]
        assert columns.prefill.ready_s[at] == rows.prefill.ready_s[at]
        assert columns.idle_tpot_s[at] == rows.idle_tpot_s[at]
        assert columns.shared_tokens(at) == rows.shared_tokens(at) == costs(FEW).shared_tokens(at)
    for with_margin in (False, True):
        kept = columns.keeps_promises(0.5, with_margin=with_margin).tolist()
        assert kept[:FEW] == rows.keeps_promises(0.5, with_margin=with_margin)
    assert columns.has_room(500).tolist()[:FEW] == rows.has_room(500)
    possible = [at % 2 == 0 for at in range(FEW)]
    for each in (columns, rows):
        some = each.within(possible + [False] * (len(each.view.decode_rows) - FEW))
        assert list(some.local_s) == [rows.local_s[at] for at in range(0, FEW, 2)]
        assert some.forecast(None, 1) == rows.forecast(None, 2)
        assert list(some.handed_s) == [rows.handed_s[at] for at in range(0, FEW, 2)]
