"""What this router has promised each worker and the worker's reports do not show yet. Pure.

Invariants
 1. Every attempt is reserved at most once and released exactly once; a late release of an old attempt does nothing.
 2. A worker's totals are the sums over its live reservations: never negative, zero when nothing is in flight.
 3. A prefill is counted on one worker only, and no longer than until it is over.
"""

from dataclasses import dataclass

from kvstore.types import RequestId, WorkerId
from router.types import RoutingDecision


@dataclass(frozen=True, slots=True)
class Reserved:
    """Totals promised to one worker."""

    prefill_tokens: int
    seqs: int


@dataclass(slots=True)
class _Reservation:
    attempt: int
    prefill_on: WorkerId
    decode_on: WorkerId
    prefill_tokens: int  # 0 once the prefill is over


class Ledger:
    """Reservations by request. Only `RouterCore` writes it."""

    def __init__(self) -> None:
        self._reservations: dict[RequestId, _Reservation] = {}
        self._prefill_tokens: dict[WorkerId, int] = {}
        self._seqs: dict[WorkerId, int] = {}

    def reserve(self, decision: RoutingDecision, num_prompt_tokens: int) -> None:
        """Promise the decision's workers their work: a prompt of one token or more. One reservation a request."""
        assert num_prompt_tokens > 0, "invariant 3: zero stands for a prefill that is over"
        assert decision.request_id not in self._reservations, "invariant 1: reserved twice"
        decode_on = decision.decode.spec.id
        prefill_on = decision.prefill.spec.id if decision.prefill else decode_on
        self._reservations[decision.request_id] = _Reservation(
            decision.attempt, prefill_on, decode_on, num_prompt_tokens
        )
        _add(self._prefill_tokens, prefill_on, num_prompt_tokens)
        _add(self._seqs, decode_on, 1)

    def prefill_over(self, request_id: RequestId, attempt: int) -> None:
        """The prompt has been computed. Idempotent; ignored for an attempt that is not the live one."""
        reservation = self._reservations.get(request_id)
        if reservation is None or reservation.attempt != attempt:
            return
        _add(self._prefill_tokens, reservation.prefill_on, -reservation.prefill_tokens)
        reservation.prefill_tokens = 0

    def release(self, request_id: RequestId, attempt: int | None = None) -> bool:
        """End a reservation; False if there was none (of that attempt)."""
        reservation = self._reservations.get(request_id)
        if reservation is None or (attempt is not None and reservation.attempt != attempt):
            return False
        del self._reservations[request_id]
        _add(self._prefill_tokens, reservation.prefill_on, -reservation.prefill_tokens)
        _add(self._seqs, reservation.decode_on, -1)
        return True

    def reserved(self, worker_id: WorkerId) -> Reserved:
        """Totals promised to a worker."""
        return Reserved(self._prefill_tokens.get(worker_id, 0), self._seqs.get(worker_id, 0))

    def using(self, worker_id: WorkerId) -> list[tuple[RequestId, int]]:
        """(request, attempt) of everything that still needs this worker.

        A prefill worker is needed until its prefill is over. If it dies after that, before its blocks are pulled,
        the decode engine recomputes them: that costs latency, not the request.
        """
        return [
            (request_id, held.attempt)
            for request_id, held in self._reservations.items()
            if worker_id == held.decode_on or (worker_id == held.prefill_on and held.prefill_tokens > 0)
        ]

    def attempts(self) -> dict[RequestId, int]:
        """The live attempt of every request that holds a reservation."""
        return {request_id: reservation.attempt for request_id, reservation in self._reservations.items()}

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        tokens: dict[WorkerId, int] = {}
        seqs: dict[WorkerId, int] = {}
        for reservation in self._reservations.values():
            _add(tokens, reservation.prefill_on, reservation.prefill_tokens)
            _add(seqs, reservation.decode_on, 1)
        assert tokens == self._prefill_tokens, "invariant 2: prefill tokens"
        assert seqs == self._seqs, "invariant 2: sequences"


def _add(totals: dict[WorkerId, int], worker_id: WorkerId, amount: int) -> None:
    total = totals.get(worker_id, 0) + amount
    assert total >= 0, "invariant 2: negative total"
    if total:
        totals[worker_id] = total
    else:
        totals.pop(worker_id, None)
