"""Who may serve a request at all."""

import pytest

from router.fleet.eligibility import can_decode, serves
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from tests.builders import make_decode, make_prefill, make_table, make_worker
from workers.types import Phase, Role


@pytest.mark.parametrize("phase", list(Phase))
def test_only_ready_workers_are_chosen(phase: Phase) -> None:
    table = make_table(make_prefill(phase=phase), make_decode(phase=phase))
    prefill, decode = table.eligible("m", CHAT_ROUTE)
    expected = 1 if phase is Phase.READY else 0
    assert (len(prefill), len(decode)) == (expected, expected)


@pytest.mark.parametrize("role", list(Role))
def test_a_prefill_worker_never_answers_a_client(role: Role) -> None:
    assert can_decode(make_worker(role=role)) == (role is not Role.PREFILL)


def test_a_worker_serves_its_model_on_its_routes() -> None:
    worker = make_worker(routes={COMPLETION_ROUTE: ()})
    assert serves(worker, "m", COMPLETION_ROUTE)
    assert not serves(worker, "m", CHAT_ROUTE)
    assert not serves(worker, "another", COMPLETION_ROUTE)
