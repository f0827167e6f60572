"""RouterCore, one situation at a time. Numbers in test names are invariants of router/core.py."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
from router.events import (
    Abort,
    Dispatch,
    Event,
    FirstToken,
    PrefillDone,
    Reject,
    RejectReason,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    WorkerChanged,
    WorkerGone,
)
from router.types import Request, RoutingDecision
from tests.builders import make_core, make_decode, make_prefill, make_request, make_worker
from workers.types import Phase, Role, WorkerState

R = RequestId("r1")
P1, P2, D1, D2 = (WorkerId(name) for name in ("prefill-1", "prefill-2", "decode-1", "decode-2"))


@pytest.fixture
def core() -> Iterator[RouterCore]:
    """Every test is also a test of the invariants that `validate` knows."""
    core = make_core()
    yield core
    core.validate()


def join(core: RouterCore, *workers: WorkerState) -> None:
    for worker in workers:
        assert core.handle(WorkerChanged(worker), 0.0) == []


def arrive(core: RouterCore, request: Request | None = None) -> RoutingDecision:
    (command,) = core.handle(RequestArrived(request or make_request()), 0.0)
    assert isinstance(command, Dispatch)
    return command.decision


def rejected(core: RouterCore, event: Event) -> Reject:
    (command,) = core.handle(event, 0.0)
    assert isinstance(command, Reject)
    return command


def promised(core: RouterCore) -> dict[WorkerId, tuple[int, int]]:
    """(prefill tokens, sequences) of the workers to whom anything is promised."""
    candidates = {w.spec.id: core.candidate(w) for w in core.fleet()}
    totals = {name: (c.reserved_prefill_tokens, c.reserved_seqs) for name, c in candidates.items()}
    return {name: total for name, total in totals.items() if total != (0, 0)}


def test_a_request_is_handed_off_where_there_is_a_prefill_pool(core: RouterCore) -> None:
    join(core, make_prefill(), make_decode())
    decision = arrive(core)
    assert decision.prefill is not None
    assert (decision.attempt, decision.prefill.spec.id, decision.decode.spec.id) == (1, P1, D1)


@pytest.mark.parametrize("request_", [make_request(can_hand_off=False), make_request(route="/v1/responses")])
def test_a_request_that_cannot_be_handed_off_stays_on_the_decode_worker(core: RouterCore, request_: Request) -> None:
    routes = {request_.route: ()}
    join(core, make_prefill(), make_worker("decode-1", Role.DECODE, routes=routes))
    decision = arrive(core, request_)
    assert (decision.prefill, decision.decode.spec.id) == (None, D1)


def test_prefill_is_local_when_no_prefill_worker_is_left(core: RouterCore) -> None:
    join(core, make_prefill(phase=Phase.DRAINING), make_decode())
    assert arrive(core).prefill is None


def test_invariant_2_a_dispatch_is_reserved_and_its_end_releases_it(core: RouterCore) -> None:
    join(core, make_prefill(), make_decode())
    arrive(core)
    assert promised(core) == {P1: (100, 0), D1: (0, 1)}
    assert core.handle(PrefillDone(R, 1), 1.0) == []
    assert promised(core) == {D1: (0, 1)}
    assert core.handle(FirstToken(R, 1), 2.0) == []
    assert core.handle(RequestDone(R, 1), 3.0) == []
    assert promised(core) == {}


def test_a_local_prefill_is_over_with_the_first_token(core: RouterCore) -> None:
    join(core, make_worker())
    arrive(core)
    assert promised(core) == {"mixed-1": (100, 1)}
    core.handle(FirstToken(R, 1), 1.0)
    assert promised(core) == {"mixed-1": (0, 1)}


def test_a_reservation_makes_the_next_request_go_elsewhere(core: RouterCore) -> None:
    join(core, make_decode("decode-1"), make_decode("decode-2"))
    chosen = {arrive(core, make_request(f"r{i}")).decode.spec.id for i in range(2)}
    assert chosen == {D1, D2}


def test_invariant_1_and_4_a_retriable_failure_is_tried_on_another_worker(core: RouterCore) -> None:
    join(core, make_decode("decode-1"), make_decode("decode-2"))
    first = arrive(core)
    (command,) = core.handle(RequestFailed(R, 1, first.decode.spec.id, retriable=True), 1.0)
    assert isinstance(command, Dispatch)
    second = command.decision
    assert second.attempt == 2
    assert {first.decode.spec.id, second.decode.spec.id} == {D1, D2}
    assert second.excluded == {first.decode.spec.id}
    assert promised(core) == {second.decode.spec.id: (100, 1)}


def test_a_failed_prefill_worker_leaves_the_decode_worker_eligible(core: RouterCore) -> None:
    join(core, make_prefill(), make_decode())
    arrive(core)
    (command,) = core.handle(RequestFailed(R, 1, P1, retriable=True), 1.0)
    assert isinstance(command, Dispatch)
    assert (command.decision.prefill, command.decision.decode.spec.id) == (None, D1)


def test_a_failure_that_cannot_be_retried_ends_the_request(core: RouterCore) -> None:
    join(core, make_decode("decode-1"), make_decode("decode-2"))
    decision = arrive(core)
    assert core.handle(RequestFailed(R, 1, decision.decode.spec.id, retriable=False), 1.0) == []
    assert promised(core) == {}
    assert core.handle(RequestFailed(R, 1, decision.decode.spec.id, retriable=True), 2.0) == []


def test_attempts_are_exhausted_when_nobody_is_left_and_the_message_says_so(core: RouterCore) -> None:
    join(core, make_decode("decode-1"))
    arrive(core)
    reject = rejected(core, RequestFailed(R, 1, D1, retriable=True))
    assert reject.reason is RejectReason.ATTEMPTS_EXHAUSTED
    assert reject.retry_after_s == 2.0
    assert reject.detail == "1 attempt(s) failed, on worker(s) decode-1, and no other worker is left to try"
    assert promised(core) == {}


def test_attempts_are_exhausted_at_the_limit_and_the_message_names_it() -> None:
    core = make_core(max_attempts=2)
    join(core, *(make_decode(f"decode-{i}") for i in range(5)))
    failed = arrive(core).decode.spec.id
    (command,) = core.handle(RequestFailed(R, 1, failed, retriable=True), 1.0)
    assert isinstance(command, Dispatch)
    reject = rejected(core, RequestFailed(R, 2, command.decision.decode.spec.id, retriable=True))
    assert reject.reason is RejectReason.ATTEMPTS_EXHAUSTED
    assert "no more than 2 are made (router.max_attempts)" in reject.detail
    assert "no other worker" not in reject.detail


def test_invariant_3_events_of_an_old_attempt_change_nothing(core: RouterCore) -> None:
    join(core, make_prefill("prefill-1"), make_prefill("prefill-2"), make_decode())
    first = arrive(core)
    assert first.prefill is not None
    core.handle(RequestFailed(R, 1, first.prefill.spec.id, retriable=True), 1.0)
    before = promised(core)
    late: list[Event] = [PrefillDone(R, 1), FirstToken(R, 1), RequestDone(R, 1), RequestFailed(R, 1, D1, True)]
    for event in late:
        assert core.handle(event, 2.0) == []
        assert promised(core) == before
    core.handle(RequestDone(R, 2), 3.0)
    assert promised(core) == {}


@pytest.mark.parametrize(
    "event",
    [PrefillDone(R, 1), FirstToken(R, 1), RequestDone(R, 1), RequestFailed(R, 1, D1, True), RequestCancelled(R)],
)
def test_invariant_3_events_of_an_unknown_request_change_nothing(core: RouterCore, event: Event) -> None:
    join(core, make_decode())
    arrive(core, make_request("other"))
    before = promised(core)
    assert core.handle(event, 1.0) == []
    assert promised(core) == before


def test_a_cancelled_request_is_released_whatever_it_was_doing(core: RouterCore) -> None:
    join(core, make_prefill(), make_decode())
    progress: list[list[Event]] = [[], [PrefillDone(R, 1)], [PrefillDone(R, 1), FirstToken(R, 1)]]
    for events in progress:
        arrive(core)
        for event in events:
            core.handle(event, 1.0)
        assert core.handle(RequestCancelled(R), 2.0) == []
        assert promised(core) == {}
        assert core.handle(RequestDone(R, 1), 3.0) == []


def test_a_cancel_after_a_reject_is_nothing_and_the_id_is_free_again(core: RouterCore) -> None:
    rejected(core, RequestArrived(make_request()))
    assert core.handle(RequestCancelled(R), 1.0) == []
    assert core.handle(RequestFailed(R, 1, D1, retriable=True), 1.0) == []
    join(core, make_decode())
    assert arrive(core).attempt == 1


def test_invariant_1_a_live_request_cannot_arrive_again(core: RouterCore) -> None:
    join(core, make_decode())
    arrive(core)
    with pytest.raises(AssertionError, match="invariant 1"):
        core.handle(RequestArrived(make_request()), 1.0)


def test_invariant_5_a_worker_that_goes_aborts_what_needs_it_and_nothing_else(core: RouterCore) -> None:
    join(core, make_decode("decode-1"))
    arrive(core, make_request("a"))
    join(core, make_worker("mixed-1", running_seqs=0))
    join(core, make_decode("decode-1", phase=Phase.DRAINING))
    arrive(core, make_request("b"))
    assert core.handle(WorkerGone(D1, "left"), 1.0) == [Abort(RequestId("a"), 1, D1)]
    assert [w.spec.id for w in core.fleet()] == ["mixed-1"]


def test_invariant_5_a_prefill_worker_is_not_needed_once_its_prefill_is_over(core: RouterCore) -> None:
    join(core, make_prefill(), make_decode())
    arrive(core, make_request("a"))
    arrive(core, make_request("b"))
    core.handle(PrefillDone(RequestId("a"), 1), 1.0)
    assert core.handle(WorkerGone(P1, "left"), 2.0) == [Abort(RequestId("b"), 1, P1)]


def test_invariant_5_a_restart_under_the_same_id_aborts(core: RouterCore) -> None:
    join(core, make_decode(epoch=1))
    arrive(core)
    assert core.handle(WorkerChanged(make_decode(epoch=1, phase=Phase.DRAINING)), 1.0) == []
    assert core.handle(WorkerChanged(make_decode(epoch=2)), 2.0) == [Abort(R, 1, D1)]


def test_invariant_5_no_attempt_is_aborted_twice(core: RouterCore) -> None:
    join(core, make_prefill(), make_decode())
    arrive(core)
    assert core.handle(WorkerChanged(make_decode(epoch=2)), 1.0) == [Abort(R, 1, D1)]
    assert core.handle(WorkerGone(D1, "left"), 2.0) == []
    assert core.handle(WorkerGone(P1, "left"), 2.0) == []
    assert core.handle(WorkerGone(D1, "left"), 2.0) == []


def test_invariant_5_the_next_attempt_can_be_aborted_again(core: RouterCore) -> None:
    join(core, make_decode("decode-1"), make_decode("decode-2"))
    first = arrive(core).decode.spec.id
    assert core.handle(WorkerGone(first, "left"), 1.0) == [Abort(R, 1, first)]
    (command,) = core.handle(RequestFailed(R, 1, first, retriable=True), 2.0)
    assert isinstance(command, Dispatch)
    second = command.decision.decode.spec.id
    assert core.handle(WorkerGone(second, "left"), 3.0) == [Abort(R, 2, second)]


def test_invariant_4_a_restart_does_not_clear_a_failure(core: RouterCore) -> None:
    join(core, make_decode("decode-1"))
    arrive(core)
    core.handle(WorkerChanged(make_decode("decode-1", epoch=2)), 1.0)
    assert rejected(core, RequestFailed(R, 1, D1, retriable=True)).reason is RejectReason.ATTEMPTS_EXHAUSTED


def test_only_the_workers_that_a_request_allows_are_chosen(core: RouterCore) -> None:
    join(core, make_prefill("prefill-1"), make_prefill("prefill-2"), make_decode("decode-1"), make_decode("decode-2"))
    decision = arrive(core, replace(make_request(), only=frozenset({P2, D2})))
    assert decision.prefill is not None
    assert (decision.prefill.spec.id, decision.decode.spec.id) == (P2, D2)
    decision = arrive(core, replace(make_request("r2"), only=frozenset({D1})))
    assert (decision.prefill, decision.decode.spec.id) == (None, D1)
    reject = rejected(core, RequestArrived(replace(make_request("r3"), only=frozenset({P1}))))
    assert (reject.reason, reject.retry_after_s) == (RejectReason.NO_WORKER, 2.0)
    assert "allows" in reject.detail


def test_reject_no_worker_has_joined(core: RouterCore) -> None:
    reject = rejected(core, RequestArrived(make_request()))
    assert (reject.reason, reject.retry_after_s) == (RejectReason.NO_WORKER, 2.0)
    assert reject.detail == "no worker has joined yet"


def test_reject_a_model_that_nobody_serves_names_those_that_are(core: RouterCore) -> None:
    join(core, make_worker("a", model="one"), make_worker("b", model="two"))
    reject = rejected(core, RequestArrived(make_request(model="three")))
    assert (reject.reason, reject.retry_after_s) == (RejectReason.UNKNOWN_MODEL, None)
    assert reject.detail == "the model 'three' does not exist here; available: one, two"


def test_reject_a_route_that_no_ready_worker_has(core: RouterCore) -> None:
    join(core, make_decode())
    reject = rejected(core, RequestArrived(make_request(route="/v1/embeddings")))
    assert (reject.reason, reject.retry_after_s) == (RejectReason.ROUTE_NOT_SERVED, None)
    assert "/v1/embeddings" in reject.detail


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING, Phase.LOST])
def test_reject_while_no_decode_worker_is_ready_says_what_each_is_doing(core: RouterCore, phase: Phase) -> None:
    join(core, make_prefill(), make_decode(phase=phase))
    reject = rejected(core, RequestArrived(make_request()))
    assert (reject.reason, reject.retry_after_s) == (RejectReason.NO_WORKER, 2.0)
    assert f"decode-1 (decode) is {phase}" in reject.detail
    assert "prefill-1 (prefill) is ready" in reject.detail


def test_a_starting_worker_has_no_routes_and_that_is_not_route_not_served(core: RouterCore) -> None:
    join(core, make_worker("decode-1", Role.DECODE, phase=Phase.STARTING, routes={}))
    assert rejected(core, RequestArrived(make_request())).reason is RejectReason.NO_WORKER


def test_routable_models_are_those_a_client_would_get(core: RouterCore) -> None:
    join(
        core,
        make_worker("a", Role.PREFILL, model="prefill only"),
        make_worker("b", Role.DECODE, model="starting", phase=Phase.STARTING),
        make_worker("c", Role.DECODE, model="two"),
        make_worker("d", Role.MIXED, model="one"),
        make_worker("e", Role.MIXED, model="one"),
    )
    assert core.routable_models() == ("one", "two")


def test_the_fleet_is_in_order_of_ids(core: RouterCore) -> None:
    join(core, make_worker("b"), make_worker("a"), make_worker("c"))
    assert [worker.spec.id for worker in core.fleet()] == ["a", "b", "c"]
