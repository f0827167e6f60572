"""Every baseline, on random fleets: what it picks exists, and the same seed picks the same again."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kvstore.types import RequestId
from router.baselines import BASELINES
from router.choice.cost import Costs
from router.choice.interfaces import Pick
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.types import Request
from tests.builders import make_overlap, make_request, make_table, make_view, make_worker
from workers.types import Role

ROLES = st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED])
WORKERS = st.lists(st.tuples(ROLES, st.integers(0, 200), st.integers(0, 3)), max_size=7)
REQUESTS = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3), st.sampled_from(["", "a", "b"])), max_size=6)
BLOCKS = st.dictionaries(st.integers(0, 8), st.integers(0, 200), max_size=6)


def fleet(workers: list[tuple[Role, int, int]]) -> FleetTable:
    states = [make_worker(f"w{i}", role, running_seqs=seqs) for i, (role, seqs, _) in enumerate(workers)]
    table = make_table(*states)
    for state, (_, _, prompts) in zip(states, workers, strict=True):
        for k in range(prompts):
            work = PrefillWork(100 * (k + 1), 1.0, 0.1)
            table.promise_prefill(state.spec.id, RequestId(f"{state.spec.id}-{k}"), work, 0.0, is_observed=True)
    return table


def run(
    name: str, seed: int, table: FleetTable, requests: list[tuple[int, int, str]], blocks: dict[int, int]
) -> list[Pick | None]:
    policy = BASELINES[name](Random(seed))
    picks = []
    for number, (tokens, wait, session) in enumerate(requests):
        made = make_request(f"r{number}", num_prompt_tokens=tokens)
        request = Request(made.id, made.model, made.route, tokens, 16, can_hand_off=True, session=session)
        view = make_view(table, request, make_overlap(blocks), now_s=100.0 * wait)
        picks.append(policy.pick(view, Costs(view, 8)))
    return picks


@given(st.sampled_from(sorted(BASELINES)), st.integers(0, 9), WORKERS, REQUESTS, BLOCKS)
def test_every_pick_is_a_position_and_repeatable(
    name: str,
    seed: int,
    workers: list[tuple[Role, int, int]],
    requests: list[tuple[int, int, str]],
    blocks: dict[int, int],
) -> None:
    table = fleet(workers)
    num_prefill = sum(role is Role.PREFILL for role, _, _ in workers)
    num_decode = len(workers) - num_prefill
    picks = run(name, seed, table, requests, blocks)
    for picked in picks:
        if not num_decode:
            assert picked is None
            continue
        assert picked is not None
        assert 0 <= picked.decode < num_decode
        assert (picked.prefill is None) == (num_prefill == 0)
        assert picked.prefill is None or 0 <= picked.prefill < num_prefill
    assert run(name, seed, table, requests, blocks) == picks
