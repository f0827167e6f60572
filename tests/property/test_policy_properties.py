"""The policy against all pairs tried one by one."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router.cost import LatencyPrior, forecast_hand_off, forecast_local
from router.policy import LeastPredictedWork
from router.types import Candidate, Choice, Request
from tests.builders import make_candidate, make_request, make_worker
from workers.types import Role

PRIOR = LatencyPrior()


def candidates(*roles: Role) -> st.SearchStrategy[list[Candidate]]:
    def build(loads: list[tuple[Role, int, int, int]]) -> list[Candidate]:
        return [
            make_candidate(
                make_worker(f"{role}-{i}", role, running_seqs=running),
                reserved_prefill_tokens=tokens,
                reserved_seqs=seqs,
            )
            for i, (role, running, tokens, seqs) in enumerate(loads)
        ]

    load = st.tuples(st.sampled_from(roles), st.integers(0, 3), st.sampled_from([0, 0, 500, 5000]), st.integers(0, 3))
    return st.lists(load, max_size=4).map(build)


def allowed(request: Request, prefill: list[Candidate], decode: list[Candidate]) -> list[Choice]:
    """Pairs of a prefill and a decode worker; a mixed worker alone; a decode worker alone if there is no prefill."""
    choices = []
    for d in decode:
        if d.worker.spec.role is Role.MIXED or not prefill:
            choices.append(Choice(d.worker, None, forecast_local(request, d, PRIOR)))
        else:
            choices += [Choice(d.worker, p.worker, forecast_hand_off(request, p, d, PRIOR)) for p in prefill]
    return choices


@given(
    prefill=candidates(Role.PREFILL),
    decode=candidates(Role.DECODE, Role.MIXED),
    num_prompt_tokens=st.integers(1, 10_000),
    seed=st.integers(0, 99),
)
def test_the_choice_is_allowed_and_no_other_is_predicted_sooner(
    prefill: list[Candidate], decode: list[Candidate], num_prompt_tokens: int, seed: int
) -> None:
    request = make_request(num_prompt_tokens=num_prompt_tokens)
    choice = LeastPredictedWork(Random(seed)).choose(request, prefill, decode)
    choices = allowed(request, prefill, decode)
    if choice is None:
        assert not choices
    else:
        assert choice in choices
        assert choice.forecast.ttft_s == min(other.forecast.ttft_s for other in choices)
        assert choice == LeastPredictedWork(Random(seed)).choose(request, prefill, decode)
