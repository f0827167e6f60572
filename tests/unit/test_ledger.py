"""Invariants 1 to 3 of router/ledger.py, by hand. The numbers in test names are theirs."""

import pytest

from kvstore.types import RequestId, WorkerId
from router.ledger import Ledger, Reserved
from router.types import Forecast, RoutingDecision
from tests.builders import make_decode, make_prefill

P, D = WorkerId("prefill-1"), WorkerId("decode-1")
R = RequestId("r1")
NOTHING = Reserved(prefill_tokens=0, seqs=0)


def decision(attempt: int = 1, *, hand_off: bool = True, request_id: RequestId = R) -> RoutingDecision:
    prefill = make_prefill() if hand_off else None
    return RoutingDecision(request_id, attempt, make_decode(), prefill, Forecast(0, 0, 0))


def test_a_hand_off_promises_the_prompt_to_one_worker_and_the_sequence_to_the_other() -> None:
    ledger = Ledger()
    ledger.reserve(decision(), 100)
    assert ledger.reserved(P) == Reserved(prefill_tokens=100, seqs=0)
    assert ledger.reserved(D) == Reserved(prefill_tokens=0, seqs=1)
    ledger.validate()


def test_a_local_prefill_promises_both_to_the_decode_worker() -> None:
    ledger = Ledger()
    ledger.reserve(decision(hand_off=False), 100)
    assert ledger.reserved(D) == Reserved(prefill_tokens=100, seqs=1)
    assert ledger.reserved(P) == NOTHING


def test_invariant_1_a_request_cannot_be_reserved_twice() -> None:
    ledger = Ledger()
    ledger.reserve(decision(1), 100)
    with pytest.raises(AssertionError, match="invariant 1"):
        ledger.reserve(decision(2), 100)


def test_invariant_1_a_release_counts_once_and_only_for_the_live_attempt() -> None:
    ledger = Ledger()
    ledger.reserve(decision(2), 100)
    assert not ledger.release(R, 1)
    assert not ledger.release(RequestId("never seen"), 1)
    assert ledger.reserved(D).seqs == 1
    assert ledger.release(R, 2)
    assert not ledger.release(R, 2)
    assert not ledger.release(R)
    assert ledger.reserved(D) == ledger.reserved(P) == NOTHING


def test_a_release_without_an_attempt_ends_whichever_is_live() -> None:
    ledger = Ledger()
    ledger.reserve(decision(7), 100)
    assert ledger.release(R)
    assert ledger.reserved(D) == NOTHING


def test_invariant_2_totals_are_sums_over_live_reservations() -> None:
    ledger = Ledger()
    ledger.reserve(decision(request_id=RequestId("a")), 100)
    ledger.reserve(decision(request_id=RequestId("b")), 30)
    ledger.reserve(decision(request_id=RequestId("c"), hand_off=False), 5)
    assert ledger.reserved(P) == Reserved(prefill_tokens=130, seqs=0)
    assert ledger.reserved(D) == Reserved(prefill_tokens=5, seqs=3)
    ledger.release(RequestId("a"), 1)
    assert ledger.reserved(P) == Reserved(prefill_tokens=30, seqs=0)
    assert ledger.reserved(D) == Reserved(prefill_tokens=5, seqs=2)
    assert ledger.attempts() == {"b": 1, "c": 1}
    ledger.validate()


def test_invariant_2_validate_notices_a_wrong_total() -> None:
    ledger = Ledger()
    ledger.reserve(decision(), 100)
    ledger._seqs[D] = 2
    with pytest.raises(AssertionError, match="invariant 2"):
        ledger.validate()


def test_invariant_3_a_prefill_is_counted_until_it_is_over_and_then_not_again() -> None:
    ledger = Ledger()
    ledger.reserve(decision(), 100)
    ledger.prefill_over(R, 1)
    ledger.prefill_over(R, 1)
    assert ledger.reserved(P) == NOTHING
    assert ledger.reserved(D).seqs == 1
    assert ledger.release(R, 1)
    assert ledger.reserved(D) == NOTHING
    ledger.validate()


def test_invariant_3_an_old_attempt_does_not_end_the_new_ones_prefill() -> None:
    ledger = Ledger()
    ledger.reserve(decision(2), 100)
    ledger.prefill_over(R, 1)
    ledger.prefill_over(RequestId("never seen"), 2)
    assert ledger.reserved(P).prefill_tokens == 100


def test_invariant_3_refuses_a_prompt_of_no_tokens() -> None:
    with pytest.raises(AssertionError, match="invariant 3"):
        Ledger().reserve(decision(), 0)


def test_a_prefill_worker_is_needed_until_its_prefill_is_over_and_a_decode_worker_to_the_end() -> None:
    ledger = Ledger()
    ledger.reserve(decision(3), 100)
    assert ledger.using(P) == [(R, 3)]
    assert ledger.using(D) == [(R, 3)]
    ledger.prefill_over(R, 3)
    assert ledger.using(P) == []
    assert ledger.using(D) == [(R, 3)]
    ledger.release(R, 3)
    assert ledger.using(D) == []
