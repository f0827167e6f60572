"""What this router has promised each worker and the worker's reports do not show yet. Pure.

Invariants
 1. Every attempt is reserved at most once and released exactly once; a late release of an old attempt does nothing.
 2. A worker's totals are the sums over its live reservations: never negative, zero when nothing is in flight.
 3. A prefill is counted on one worker only, and no longer than until it is over.
"""

from collections import Counter

from msgspec import Struct

from kvstore.types import RequestId, WorkerId
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable
from router.types import RoutingDecision


class Reservation(Struct):
    """One attempt's promises."""

    attempt: int
    prefill_on: WorkerId
    decode_on: WorkerId
    is_prefilling: bool
    kv_tokens: int
    tpot_s: float  # inf where nothing was promised


class Ledger:
    """Reservations by request, summed by worker in the fleet's table. Only `RouterCore` writes it."""

    def __init__(self, table: FleetTable) -> None:
        self._table = table
        self._reservations: dict[RequestId, Reservation] = {}

    def reserve(
        self,
        decision: RoutingDecision,
        work: PrefillWork,
        *,
        kv_tokens: int,
        tpot_s: float,
        streamed: bool,
        now_s: float,
    ) -> None:
        """Promise the decision's workers their work. One reservation a request.

        `tpot_s` is inf where nothing was promised. An answer in one piece hides the end of a local prefill.
        """
        request_id = decision.request_id
        assert request_id not in self._reservations, "invariant 1: reserved twice"
        decode_on = decision.decode.spec.id
        prefill_on = decision.prefill.spec.id if decision.prefill else decode_on
        self._reservations[request_id] = Reservation(
            decision.attempt, prefill_on, decode_on, is_prefilling=True, kv_tokens=kv_tokens, tpot_s=tpot_s
        )
        is_observed = streamed or decision.prefill is not None
        self._table.promise_prefill(prefill_on, request_id, work, now_s, is_observed=is_observed)
        self._table.promise_seq(decode_on, kv_tokens, tpot_s)

    def prefill_over(self, request_id: RequestId, attempt: int, now_s: float) -> bool:
        """The prompt has been computed; False if that was known, or for an attempt that is not the live one."""
        held = self._reservations.get(request_id)
        if held is None or held.attempt != attempt or not held.is_prefilling:
            return False
        held.is_prefilling = False
        self._table.prefill_over(held.prefill_on, request_id, now_s, done=True)
        return True

    def release(self, request_id: RequestId, now_s: float, attempt: int | None = None) -> Reservation | None:
        """End a reservation and return it; None if there was none (of that attempt)."""
        held = self._reservations.get(request_id)
        if held is None or (attempt is not None and held.attempt != attempt):
            return None
        del self._reservations[request_id]
        if held.is_prefilling:
            self._table.prefill_over(held.prefill_on, request_id, now_s, done=False)
        self._table.seq_over(held.decode_on, held.kv_tokens, held.tpot_s)
        return held

    def get(self, request_id: RequestId) -> Reservation | None:
        """The live reservation of a request."""
        return self._reservations.get(request_id)

    def using(self, worker_id: WorkerId) -> list[tuple[RequestId, int]]:
        """(request, attempt) of everything that still needs this worker.

        A prefill worker is needed until its prefill is over. If it dies after that, before its blocks are pulled,
        the decode engine recomputes them: that costs latency, not the request.
        """
        return [
            (request_id, held.attempt)
            for request_id, held in self._reservations.items()
            if worker_id == held.decode_on or (worker_id == held.prefill_on and held.is_prefilling)
        ]

    def attempts(self) -> dict[RequestId, int]:
        """The live attempt of every request that holds a reservation."""
        return {request_id: held.attempt for request_id, held in self._reservations.items()}

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        self._table.validate()
        prefills, seqs = Counter[WorkerId](), Counter[WorkerId]()
        for held in self._reservations.values():
            prefills[held.prefill_on] += held.is_prefilling
            seqs[held.decode_on] += 1
        for worker_id, totals in self._table.totals().items():
            assert totals == (prefills[worker_id], seqs[worker_id]), f"invariant 2: {worker_id}"
