"""Promised TPOTs against a list, and the rule that protects them against each of them."""

import math

from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.types import WorkerId
from router.choice.cost import Costs
from router.fleet.tpot import TpotLoad
from router.latency import LatencyParams
from tests.builders import make_request, make_table, make_view, make_worker

TPOTS = st.one_of(st.sampled_from((0.02, 0.05, 0.1, math.inf)), st.floats(1e-3, 10.0))


class LoadMachine(RuleBasedStateMachine):
    """TpotLoad against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.held = TpotLoad()
        self.twin: list[float] = []

    @rule(tpot_s=TPOTS)
    def add(self, tpot_s: float) -> None:
        self.held.add(tpot_s)
        self.twin.append(tpot_s)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.twin:
            tpot_s = self.twin.pop(data.draw(st.integers(0, len(self.twin) - 1)))
            self.held.remove(tpot_s)

    @invariant()
    def equals_the_list(self) -> None:
        """Invariant 1."""
        assert self.held.count == len(self.twin)
        assert self.held.min_s == min(self.twin, default=math.inf)


TestTpotLoad = LoadMachine.TestCase


@given(
    st.lists(TPOTS, max_size=40),
    TPOTS,
    st.floats(0.0, 0.05),
    st.floats(0.0, 0.005),
    st.sampled_from([1.0, 1.25, 2.0]),
    st.sampled_from([1.0, 2.5]),
)
def test_one_more_sequence_is_let_in_where_the_next_step_keeps_every_promise(
    tpots_s: list[float], new_s: float, fixed_s: float, per_seq_s: float, margin: float, tokens_per_step: float
) -> None:
    """Step / target tokens are needed of each step (AdaServe, Algorithm 1), and a step yields `tokens_per_step`."""
    params = LatencyParams(0.01, 0.2, 0.005, fixed_s, per_seq_s, 0.0, 0.0, 0.0)
    worker = WorkerId("mixed-1")
    table = make_table(make_worker("mixed-1"), params=params)
    for tpot_s in tpots_s:
        table.promise_seq(worker, 0, tpot_s)
    table.step_margin[:] = margin
    table.set_tokens_per_step(worker, tokens_per_step)
    with_new = [*tpots_s, new_s]
    step_s = (fixed_s + per_seq_s * len(with_new)) * margin
    assume(all(not math.isclose(step_s / tpot_s, tokens_per_step) for tpot_s in with_new))  # rounding
    is_kept = all(step_s / tpot_s <= tokens_per_step for tpot_s in with_new)
    view = make_view(table, make_request(num_prompt_tokens=10))
    assert list(Costs(view, 8).keeps_promises(new_s)) == [is_kept]
