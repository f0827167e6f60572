"""Invariants 1 to 3 of router/fleet/ledger.py, by hand. The numbers in test names are theirs."""

import pytest

from kvstore.types import RequestId, WorkerId
from router.fleet.ledger import Ledger
from router.fleet.prefill_work import PrefillWork
from router.types import Forecast, RoutingDecision
from tests.builders import make_decode, make_prefill, make_table

P, D = WorkerId("prefill-1"), WorkerId("decode-1")
R = RequestId("r1")
NOTHING = (0, 0)


def decision(attempt: int = 1, *, hand_off: bool = True, request_id: RequestId = R) -> RoutingDecision:
    prefill = make_prefill() if hand_off else None
    forecast = Forecast(0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return RoutingDecision(request_id, attempt, make_decode(), prefill, forecast)


class Books:
    """A ledger on a table of its own, with the totals it writes."""

    def __init__(self) -> None:
        self.table = make_table(make_prefill(), make_decode())
        self.ledger = Ledger(self.table)

    def reserve(self, decision: RoutingDecision, tokens: int = 100) -> None:
        work = PrefillWork(tokens, 0.0, 1.0)
        self.ledger.reserve(decision, work, kv_tokens=tokens, tpot_s=0.1, streamed=True, now_s=0.0)

    def release(self, request_id: RequestId, attempt: int | None = None) -> bool:
        return self.ledger.release(request_id, 0.0, attempt) is not None

    def reserved(self, worker_id: WorkerId) -> tuple[int, int]:
        """(prefill tokens, sequences)"""
        row = self.table.row(worker_id)
        return int(self.table.own_prefill_tokens[row]), int(self.table.own_seqs[row])


def test_a_hand_off_promises_the_prompt_to_one_worker_and_the_sequence_to_the_other() -> None:
    books = Books()
    books.reserve(decision(), 100)
    assert books.reserved(P) == (100, 0)
    assert books.reserved(D) == (0, 1)
    books.ledger.validate()


def test_a_local_prefill_promises_both_to_the_decode_worker() -> None:
    books = Books()
    books.reserve(decision(hand_off=False), 100)
    assert books.reserved(D) == (100, 1)
    assert books.reserved(P) == NOTHING


def test_invariant_1_a_request_cannot_be_reserved_twice() -> None:
    books = Books()
    books.reserve(decision(1), 100)
    with pytest.raises(AssertionError, match="invariant 1"):
        books.reserve(decision(2), 100)


def test_invariant_1_a_release_counts_once_and_only_for_the_live_attempt() -> None:
    books = Books()
    books.reserve(decision(2), 100)
    assert not books.release(R, 1)
    assert not books.release(RequestId("never seen"), 1)
    assert books.reserved(D)[1] == 1
    assert books.release(R, 2)
    assert not books.release(R, 2)
    assert not books.release(R)
    assert books.reserved(D) == books.reserved(P) == NOTHING


def test_a_release_without_an_attempt_ends_whichever_is_live() -> None:
    books = Books()
    books.reserve(decision(7), 100)
    assert books.release(R)
    assert books.reserved(D) == NOTHING


def test_invariant_2_totals_are_sums_over_live_reservations() -> None:
    books = Books()
    books.reserve(decision(request_id=RequestId("a")), 100)
    books.reserve(decision(request_id=RequestId("b")), 30)
    books.reserve(decision(request_id=RequestId("c"), hand_off=False), 5)
    assert books.reserved(P) == (130, 0)
    assert books.reserved(D) == (5, 3)
    books.release(RequestId("a"), 1)
    assert books.reserved(P) == (30, 0)
    assert books.reserved(D) == (5, 2)
    assert books.ledger.attempts() == {"b": 1, "c": 1}
    books.ledger.validate()


def test_invariant_2_validate_notices_a_wrong_total() -> None:
    books = Books()
    books.reserve(decision(), 100)
    books.table.own_seqs[books.table.row(D)] = 2
    with pytest.raises(AssertionError, match="invariant 2"):
        books.ledger.validate()


def test_invariant_3_a_prefill_is_counted_until_it_is_over_and_then_not_again() -> None:
    books = Books()
    books.reserve(decision(), 100)
    books.ledger.prefill_over(R, 1, 0.0)
    books.ledger.prefill_over(R, 1, 0.0)
    assert books.reserved(P) == NOTHING
    assert books.reserved(D)[1] == 1
    assert books.release(R, 1)
    assert books.reserved(D) == NOTHING
    books.ledger.validate()


def test_invariant_3_an_old_attempt_does_not_end_the_new_ones_prefill() -> None:
    books = Books()
    books.reserve(decision(2), 100)
    books.ledger.prefill_over(R, 1, 0.0)
    books.ledger.prefill_over(RequestId("never seen"), 2, 0.0)
    assert books.reserved(P)[0] == 100


def test_a_prefill_worker_is_needed_until_its_prefill_is_over_and_a_decode_worker_to_the_end() -> None:
    books = Books()
    books.reserve(decision(3), 100)
    assert books.ledger.using(P) == [(R, 3)]
    assert books.ledger.using(D) == [(R, 3)]
    books.ledger.prefill_over(R, 3, 0.0)
    assert books.ledger.using(P) == []
    assert books.ledger.using(D) == [(R, 3)]
    books.release(R, 3)
    assert books.ledger.using(D) == []
