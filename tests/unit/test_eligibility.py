"""Who may serve a request at all."""

import pytest

from kvstore.types import WorkerId
from router.eligibility import can_decode, decode_workers, prefill_workers, serves
from router.openai import COMPLETION_ROUTE
from tests.builders import make_decode, make_prefill, make_request, make_worker
from workers.types import Phase, Role

NOBODY: frozenset[WorkerId] = frozenset()
FLEET = [make_prefill("p1"), make_prefill("p2"), make_decode("d1"), make_worker("m1")]


def test_prefill_comes_from_the_prefill_pool_only() -> None:
    assert [w.spec.id for w in prefill_workers(FLEET, make_request(), NOBODY)] == ["p1", "p2"]


def test_decode_comes_from_decode_and_mixed_workers() -> None:
    assert [w.spec.id for w in decode_workers(FLEET, make_request(), NOBODY)] == ["d1", "m1"]


def test_a_request_that_cannot_be_handed_off_has_no_prefill_worker() -> None:
    request = make_request(can_hand_off=False)
    assert prefill_workers(FLEET, request, NOBODY) == []
    assert [w.spec.id for w in decode_workers(FLEET, request, NOBODY)] == ["d1", "m1"]


def test_workers_that_failed_the_request_are_left_out() -> None:
    excluded = frozenset({WorkerId("p1"), WorkerId("d1")})
    assert [w.spec.id for w in prefill_workers(FLEET, make_request(), excluded)] == ["p2"]
    assert [w.spec.id for w in decode_workers(FLEET, make_request(), excluded)] == ["m1"]


@pytest.mark.parametrize("phase", list(Phase))
def test_only_ready_workers_are_chosen(phase: Phase) -> None:
    fleet = [make_prefill(phase=phase), make_decode(phase=phase)]
    expected = 1 if phase is Phase.READY else 0
    assert len(prefill_workers(fleet, make_request(), NOBODY)) == expected
    assert len(decode_workers(fleet, make_request(), NOBODY)) == expected


@pytest.mark.parametrize("role", list(Role))
def test_a_prefill_worker_never_answers_a_client(role: Role) -> None:
    assert can_decode(make_worker(role=role)) == (role is not Role.PREFILL)


def test_a_worker_serves_its_model_on_its_routes() -> None:
    worker = make_worker(routes={COMPLETION_ROUTE: ()})
    assert serves(worker, make_request(route=COMPLETION_ROUTE))
    assert not serves(worker, make_request())
    assert not serves(worker, make_request(route=COMPLETION_ROUTE, model="another"))
