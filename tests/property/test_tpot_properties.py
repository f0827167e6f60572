"""The feasibility rules against brute force, and a simulated engine that keeps what they promise."""

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.tpot import AcceptanceCurve, TpotLoad, admits_tpot, chain_curve, least_budget

TPOTS = st.one_of(st.sampled_from((0.02, 0.05, 0.1, math.inf)), st.floats(1e-3, 10.0))
CURVES = st.lists(st.floats(0.0, 1.0), max_size=8).map(lambda fs: AcceptanceCurve(tuple(sorted(fs, reverse=True))))


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
        assert self.held.count == len(self.twin)
        assert self.held.min_s == min(self.twin, default=math.inf)
        assert self.held.sum_inverse == pytest.approx(math.fsum(1 / tpot_s for tpot_s in self.twin), abs=1e-9)

    @invariant()
    def depends_on_nothing_else(self) -> None:
        """Invariant 1: to the last bit."""
        anew = TpotLoad()
        for tpot_s in sorted(self.twin):
            anew.add(tpot_s)
        assert (anew.sum_inverse, anew.min_s) == (self.held.sum_inverse, self.held.min_s)


TestTpotLoad = LoadMachine.TestCase


def loaded(tpots_s: list[float]) -> TpotLoad:
    held = TpotLoad()
    for tpot_s in tpots_s:
        held.add(tpot_s)
    return held


@given(st.lists(TPOTS, max_size=40), TPOTS, st.floats(0.0, 0.05), st.floats(0.0, 0.005), st.floats(1.0, 2.0))
def test_a_stock_engine_is_admitted_to_where_its_next_step_keeps_every_promise(
    tpots_s: list[float], new_s: float, fixed_s: float, per_seq_s: float, margin: float
) -> None:
    with_new = [*tpots_s, new_s]
    step_s = fixed_s + per_seq_s * len(with_new)
    is_kept = all(step_s * margin <= tpot_s for tpot_s in with_new)
    assert admits_tpot(loaded(tpots_s), new_s, lambda n: fixed_s + per_seq_s * n, margin=margin) is is_kept


def paced_gaps_s(tpots_s: list[float], fixed_s: float, per_seq_s: float, steps: int) -> list[float]:
    """Mean gap of each sequence on an engine that lets it run when its credit, tightest / tpot a step, reaches 1."""
    tightest_s = min(tpots_s)
    credits, tokens, now_s = [0.0] * len(tpots_s), [0] * len(tpots_s), 0.0
    for _ in range(steps):
        credits = [c + tightest_s / tpot_s for c, tpot_s in zip(credits, tpots_s, strict=True)]
        running = [i for i, c in enumerate(credits) if c >= 1.0 - 1e-9]
        for i in running:
            credits[i] -= 1.0
            tokens[i] += 1
        now_s += fixed_s + per_seq_s * len(running)
    return [now_s / made for made in tokens]


@given(st.lists(st.floats(0.02, 0.4), max_size=12), st.floats(0.02, 0.4), st.floats(0.0, 0.02), st.floats(0.0, 0.01))
def test_an_engine_that_paces_keeps_what_the_virtual_batch_admitted(
    tpots_s: list[float], new_s: float, fixed_s: float, per_seq_s: float
) -> None:
    if admits_tpot(loaded(tpots_s), new_s, lambda n: fixed_s + per_seq_s * n, is_paced=True):
        with_new = [*tpots_s, new_s]
        gaps_s = paced_gaps_s(with_new, fixed_s, per_seq_s, 2_000)
        for gap_s, tpot_s in zip(gaps_s, with_new, strict=True):
            assert gap_s <= tpot_s * 1.02  # the last, unfinished gaps


@given(st.lists(TPOTS, max_size=20), TPOTS, st.floats(0.001, 0.01))
def test_pacing_admits_whatever_a_stock_engine_admits(tpots_s: list[float], new_s: float, per_seq_s: float) -> None:
    held = loaded(tpots_s)
    if admits_tpot(held, new_s, lambda n: per_seq_s * n * 0.999999):
        assert admits_tpot(held, new_s, lambda n: per_seq_s * n * 0.99999, is_paced=True)


@given(CURVES, st.floats(0.0, 12.0))
def test_the_nodes_needed_are_the_least_that_yield_enough(curve: AcceptanceCurve, tokens: float) -> None:
    yields = list(accumulate(curve.path_probabilities, initial=1.0))
    enough = [nodes for nodes, total in enumerate(yields, start=1) if total >= tokens]
    assert curve.nodes_needed(tokens) == min(enough, default=math.inf)


@given(
    st.lists(st.one_of(st.floats(0.005, 0.3), st.just(math.inf)), max_size=12),
    CURVES,
    st.lists(st.floats(0.0, 0.01), min_size=61, max_size=61),
    st.integers(0, 60),
)
def test_a_budget_is_found_where_trying_them_all_finds_one(
    tpots_s: list[float], curve: AcceptanceCurve, increments_s: list[float], max_nodes: int
) -> None:
    """AdaServe's Algorithm 1 is INVALID for a budget B when the requests' least trees need more than B in sum."""
    profile_s = list(accumulate(increments_s))

    def is_valid(budget: int) -> bool:
        return sum(curve.nodes_needed(profile_s[budget] / tpot_s) for tpot_s in tpots_s) <= budget

    expected = next((budget for budget in range(max_nodes + 1) if is_valid(budget)), None)
    assert least_budget(tpots_s, lambda nodes: profile_s[nodes], curve, max_nodes) == expected


@given(st.integers(1, 10_000), st.integers(1, 8), st.floats(0.0, 1.0))
def test_a_chain_yields_what_its_counters_say(drafts: int, length: int, share: float) -> None:
    accepted = int(drafts * length * share)
    curve = chain_curve(drafts, drafts * length, accepted)
    assert len(curve.path_probabilities) == length
    assert curve.tokens_per_step == pytest.approx(1.0 + accepted / drafts)
