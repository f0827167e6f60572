"""The policy against all ways tried one by one."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kvstore.types import RequestId
from router.choice.chooser import Chooser, HandOff
from router.choice.cost import Costs, exchange_rate
from router.choice.policy import LeastCost
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from tests.builders import make_overlap, make_request, make_table, make_view, make_worker
from workers.types import Role

TOLERANCE = 1.06  # twice the band of near-equals: each half of a hand-off is drawn within one


@st.composite
def tables(draw: st.DrawFn) -> FleetTable:
    roles = draw(st.lists(st.sampled_from(list(Role)), min_size=1, max_size=7))
    workers = [make_worker(f"{role}-{i}", role, running_seqs=draw(st.integers(0, 20))) for i, role in enumerate(roles)]
    table = make_table(*workers)
    for worker in workers:
        for at in range(draw(st.integers(0, 2))):
            work = PrefillWork(10, 0.0, draw(st.floats(0.0, 3.0)))
            table.promise_prefill(worker.spec.id, RequestId(f"{worker.spec.id}/{at}"), work, 0.0, is_observed=True)
    return table


@given(
    table=tables(),
    blocks=st.dictionaries(st.integers(0, 6), st.integers(0, 40), max_size=7),
    num_prompt_tokens=st.integers(1, 2_000),
    hand_off=st.sampled_from(["cost", "always", "never"]),
    seed=st.integers(0, 99),
)
def test_the_choice_is_allowed_and_no_other_costs_clearly_less(
    table: FleetTable, blocks: dict[int, int], num_prompt_tokens: int, hand_off: HandOff, seed: int
) -> None:
    request, overlap = make_request(num_prompt_tokens=num_prompt_tokens), make_overlap(blocks)

    def choose() -> object:
        chooser = Chooser(table, LeastCost(Random(seed)), hand_off)
        return chooser.choose(request, overlap, (), now_s=0.0, expected_output_tokens=20, keep_promises=False).choice

    choice = choose()
    costs = Costs(make_view(table, request, overlap), 10, exchange_rate(request.terms.slo, 20))
    decode, prefill = range(len(costs.view.decode_rows)), range(len(costs.view.prefill_rows))
    ways = [costs.forecast(None, d) for d in decode] if hand_off != "always" or not prefill else []
    if hand_off != "never":
        ways += [costs.forecast(p, d) for p in prefill for d in decode]
    if choice is None:
        assert not ways
        return
    assert choice.forecast in ways  # type: ignore[attr-defined]
    least_s = min(way.cost_s for way in ways)
    assert choice.forecast.cost_s <= least_s * TOLERANCE + 0.002  # type: ignore[attr-defined]
    assert choice == choose(), "decisions repeat under the same seed"
