"""The fleet as columns: one row a worker, so that a decision weighs a thousand of them in a few numpy calls. Pure.

Invariants
 1. A known worker has exactly one row. The row of a worker that left is reused only when nothing is promised to it.
 2. `own_*` columns are the sums of this router's live reservations: zero when nothing is in flight.
 3. `busy_until_s` of a row without pending prefills is never in the future of the last event.
 4. `seqs` and `kv_tokens` are what is reported, or what all replicas promised where the report is older than that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvstore.types import RequestId, WorkerId
from router.fleet import eligibility
from router.fleet.prefill_work import PendingPrefill, PrefillWork
from router.fleet.tpot import TpotLoad
from router.latency import LatencyParams
from router.types import ReplicaReport, WorkerPromises
from workers.types import Phase, WorkerState

Rows = NDArray[np.intp]
Column = NDArray[np.float64]

NO_ROWS: Rows = np.empty(0, dtype=np.intp)
TIERS = 3
# Places in `FleetTable.seen`, the columns that decisions read. C0 to T1 are those of LatencyParams, in its order.
BUSY, REMOTE_BUSY, UNSHARED, BLOCK_TOKENS = range(4)
C0, C1, C2, D0, D1, D2, T0, T1 = range(4, 12)
SEQS, KV, KV_TOTAL, MIN_TPOT, STEP_MARGIN, STALL, PROMPT_PER_STEP, TOKENS_PER_STEP = range(12, 20)
_NUM_SEEN = 20
_OWN_MIN_TPOT, _REMOTE_MIN_TPOT, _NUM_COLUMNS = 23, 30, 31


@dataclass(slots=True)
class _Row:
    """What is kept of a worker beside its columns."""

    worker_id: WorkerId
    state: WorkerState | None  # None: left, with promises still open
    pending: dict[RequestId, PendingPrefill] = field(default_factory=dict)  # prefills, in order of dispatch
    tpots: TpotLoad = field(default_factory=TpotLoad)


class FleetTable:
    """Owner of the columns. Written by the core and its ledger only.

    All columns are lines of one matrix, so that a decision fetches its rows of all that it reads in one call.
    """

    seen: Column  # (_NUM_SEEN, rows): what decisions read
    busy_until_s: Column  # when the prompts that this router promised will be computed
    remote_until_s: Column  # the same of the other replicas
    unshared_s: Column  # work promised since the last exchange
    engine_block_tokens: Column
    params: Column  # (rows, 8): LatencyParams
    seqs: Column
    kv_tokens: Column
    kv_total_tokens: Column  # inf: not known
    min_tpot_s: Column  # the tightest promise, of all replicas; inf: none
    step_margin: Column
    stall_s_per_1k_tokens: Column
    prompt_tokens_per_step: Column
    tokens_per_step: Column
    own_prefill_tokens: Column
    own_seqs: Column
    own_kv_tokens: Column
    own_min_tpot_s: Column
    reported_seqs: Column
    running_seqs: Column
    waiting_seqs: Column
    reported_kv_tokens: Column
    remote_seqs: Column
    remote_kv_tokens: Column
    remote_min_tpot_s: Column

    def __init__(self, default_params: LatencyParams) -> None:
        self.slots: NDArray[np.intp] = np.empty((TIERS, 0), dtype=np.intp)  # of the prefix index; -1: none
        self.num_slots = 0  # above every slot there has been
        self._rows: list[_Row | None] = []
        self._row_of: dict[WorkerId, int] = {}
        self._free: list[int] = []
        self._eligible: dict[tuple[str, str, str], tuple[Rows, Rows]] = {}
        self.num_replicas = 1
        self.is_blind = False  # there are other replicas, and what they promise is not known
        self.has_lower_tiers = False  # some worker keeps blocks in host memory or on disk
        self._new_row = np.zeros(_NUM_COLUMNS)  # nothing promised, nothing reported, the prior's coefficients
        self._new_row[C0 : T1 + 1] = default_params
        self._new_row[STALL] = default_params.c1
        for place in (BLOCK_TOKENS, STEP_MARGIN, TOKENS_PER_STEP):
            self._new_row[place] = 1.0
        for place in (KV_TOTAL, MIN_TPOT, _OWN_MIN_TPOT, _REMOTE_MIN_TPOT):
            self._new_row[place] = np.inf
        self._columns: Column = np.empty((_NUM_COLUMNS, 0))
        self._allocate(16)

    # -- workers

    def upsert(self, state: WorkerState) -> None:
        """A worker joined or changed."""
        row = self.row(state.spec.id)
        known = self._rows[row]
        assert known is not None
        before, known.state = known.state, state
        if before is None or before.phase is not state.phase or before.spec != state.spec:
            self._eligible.clear()
        load = state.load
        self.reported_seqs[row] = load.running_seqs + load.waiting_seqs
        self.running_seqs[row] = load.running_seqs
        self.waiting_seqs[row] = load.waiting_seqs
        self.reported_kv_tokens[row] = load.kv_blocks_used * state.spec.block_size_tokens
        self._refresh_load(row)
        self.engine_block_tokens[row] = max(1, state.spec.block_size_tokens)
        self.kv_total_tokens[row] = state.spec.kv_blocks_total * state.spec.block_size_tokens or np.inf

    def remove(self, worker_id: WorkerId) -> None:
        """A worker left. Promises to it stay until each is released."""
        row = self._row_of.get(worker_id)
        if row is None:
            return
        known = self._rows[row]
        assert known is not None
        known.state = None
        self.slots[:, row] = -1
        self._eligible.clear()
        self._drop_if_unused(row)

    def state(self, worker_id: WorkerId) -> WorkerState | None:
        """The worker, if it is in the fleet."""
        row = self._row_of.get(worker_id)
        known = self._rows[row] if row is not None else None
        return known.state if known is not None else None

    def state_at(self, row: int) -> WorkerState:
        """The worker of a row that is in the fleet."""
        known = self._rows[row]
        assert known is not None and known.state is not None
        return known.state

    def id_at(self, row: int) -> WorkerId:
        """The worker of a row."""
        known = self._rows[row]
        assert known is not None
        return known.worker_id

    def states(self) -> list[WorkerState]:
        """Every worker, by id."""
        known = (self._rows[self._row_of[worker_id]] for worker_id in sorted(self._row_of))
        return [row.state for row in known if row is not None and row.state is not None]

    def eligible(self, model: str, route: str, adapter: str = "") -> tuple[Rows, Rows]:
        """Rows that may prefill for others, and rows that may answer: ready, of this model and route. By worker id."""
        found = self._eligible.get((model, route, adapter))
        if found is None:
            serving = [state for state in self.states() if eligibility.serves(state, model, route, adapter)]
            prefill = [self._row_of[s.spec.id] for s in serving if not eligibility.can_decode(s)]
            decode = [self._row_of[s.spec.id] for s in serving if eligibility.can_decode(s)]
            found = np.array(prefill, dtype=np.intp), np.array(decode, dtype=np.intp)
            if len(self._eligible) > 1000:  # models are asked for by clients: bounded whatever they send
                self._eligible.clear()
            self._eligible[model, route, adapter] = found
        return found

    def rows_of_model(self, model: str) -> Rows:
        """Ready workers of a model, whatever they are for."""
        found = self._eligible.get((model, "", ""))
        if found is None:
            ready = [s for s in self.states() if s.phase is Phase.READY and s.spec.model == model]
            rows = np.array([self._row_of[s.spec.id] for s in ready], dtype=np.intp)
            found = self._eligible[model, "", ""] = rows, NO_ROWS
        return found[0]

    def row(self, worker_id: WorkerId) -> int:
        """The worker's row, made if there is none yet."""
        row = self._row_of.get(worker_id)
        if row is None:
            if not self._free:
                self._allocate(2 * len(self._rows))
            row = self._free.pop()
            self._rows[row] = _Row(worker_id, None)
            self._row_of[worker_id] = row
            self._columns[:, row] = self._new_row
            self.slots[:, row] = -1
        return row

    def row_of(self, worker_id: WorkerId) -> int | None:
        """The worker's row, if it is known."""
        return self._row_of.get(worker_id)

    def set_slots(self, worker_id: WorkerId, slots: tuple[int, int, int]) -> None:
        """The prefix index's slots of a worker's tiers."""
        self.slots[:, self.row(worker_id)] = slots
        self.num_slots = max(self.num_slots, 1 + max(slots))
        self.has_lower_tiers = bool((self.slots[1:] >= 0).any())

    def set_latency(
        self, worker_id: WorkerId, params: LatencyParams, step_margin: float, stall_s_per_1k_tokens: float
    ) -> None:
        """The fitted coefficients of a worker and the safety factor of its step predictions."""
        row = self.row(worker_id)
        self.params[row] = params
        self.step_margin[row] = step_margin
        self.stall_s_per_1k_tokens[row] = stall_s_per_1k_tokens

    def set_step_margin(self, worker_id: WorkerId, step_margin: float) -> None:
        """The safety factor of its step predictions."""
        self.step_margin[self.row(worker_id)] = step_margin

    def set_some_latency(
        self, rows: Rows | int, place: slice, params: LatencyParams, stall_s_per_1k_tokens: float | None
    ) -> None:
        """Some coefficients of one worker, or of those that have none of their own; `place`: which. None: it stays."""
        values: tuple[float, ...] = params
        self.params[rows, place] = values[place]
        if stall_s_per_1k_tokens is not None:
            self.stall_s_per_1k_tokens[rows] = stall_s_per_1k_tokens

    def set_prompt_tokens_per_step(self, worker_id: WorkerId, tokens: float) -> None:
        """How many prompt tokens its decode steps carry along, of late."""
        self.prompt_tokens_per_step[self.row(worker_id)] = tokens

    def set_tokens_per_step(self, worker_id: WorkerId, tokens: float) -> None:
        """What a decode step of a sequence yields on average there: above 1 with speculation."""
        self.tokens_per_step[self.row(worker_id)] = tokens

    # -- promises of this router

    def promise_prefill(
        self, worker_id: WorkerId, request_id: RequestId, work: PrefillWork, now_s: float, *, is_observed: bool
    ) -> None:
        """A prompt will be computed there. `is_observed`: an event will tell when."""
        row = self.row(worker_id)
        ends_at_s = max(self.busy_until_s.item(row), now_s) + work.work_s
        self._at(row).pending[request_id] = PendingPrefill(work, ends_at_s, is_observed)
        self.own_prefill_tokens[row] += work.tokens
        self.busy_until_s[row] = ends_at_s
        self.unshared_s[row] += work.work_s

    def prefill_over(self, worker_id: WorkerId, request_id: RequestId, now_s: float, *, done: bool) -> None:
        """It has been computed (`done`: the ones behind it start now), or will not be."""
        row = self.row(worker_id)
        pending = self._at(row).pending
        over = pending.pop(request_id)
        tokens = self.own_prefill_tokens.item(row) - over.work.tokens
        assert tokens >= 0, "invariant 2"
        self.own_prefill_tokens[row] = tokens
        rest_s = 0.0
        for item in pending.values():
            work_s = item.work.work_s
            rest_s += work_s if item.is_observed else min(work_s, max(0.0, item.ends_at_s - now_s))
        until_s = now_s + rest_s
        if not done:
            until_s = min(self.busy_until_s.item(row) - over.work.work_s, until_s)
        self.busy_until_s[row] = until_s if pending else min(until_s, now_s)
        self._drop_if_unused(row)

    def pending_work(self, worker_id: WorkerId, now_s: float) -> tuple[float, float, float] | None:
        """(prompts, new tokens, quad) promised there and not done by the forecast, all this router's; None: not known.

        Engines compute several prompts at once and tell only when one is over: of them all the same part is left.
        """
        row = self.row(worker_id)
        if self.remote_seqs.item(row) > 0:
            return None
        pending = self._at(row).pending
        tokens, quad, work_s = 0, 0.0, 0.0
        for item in pending.values():
            if not item.is_observed:
                return None
            tokens, quad, work_s = tokens + item.work.tokens, quad + item.work.quad, work_s + item.work.work_s
        part = min(1.0, max(0.0, self.busy_until_s.item(row) - now_s) / work_s) if work_s else 0.0
        return part * len(pending), part * tokens, part * quad

    def hold(self, row: int, work_s: float, now_s: float) -> None:
        """Count work that waits in this router for the worker of a row; take it back with a negative `work_s`."""
        self.busy_until_s[row] = max(self.busy_until_s.item(row), now_s) + work_s

    def promise_seq(self, worker_id: WorkerId, kv_tokens: int, tpot_s: float) -> None:
        """A sequence will be decoded there; `tpot_s` is inf where nothing was promised."""
        row = self.row(worker_id)
        self.own_seqs[row] = self.own_seqs.item(row) + 1
        self.own_kv_tokens[row] = self.own_kv_tokens.item(row) + kv_tokens
        self._refresh_load(row)
        self._at(row).tpots.add(tpot_s)
        self._refresh_tpot(row)

    def seq_over(self, worker_id: WorkerId, kv_tokens: int, tpot_s: float) -> None:
        """It has ended."""
        row = self.row(worker_id)
        self.own_seqs[row] = seqs = self.own_seqs.item(row) - 1
        self.own_kv_tokens[row] = tokens = self.own_kv_tokens.item(row) - kv_tokens
        assert seqs >= 0 and tokens >= 0, "invariant 2"
        self._refresh_load(row)
        self._at(row).tpots.remove(tpot_s)
        self._refresh_tpot(row)
        self._drop_if_unused(row)

    def promises(self, now_s: float) -> tuple[WorkerPromises, ...]:
        """What the other replicas should know: rows to which anything is promised."""
        rows = np.flatnonzero((self.own_seqs > 0) | (self.busy_until_s > now_s))
        return tuple(
            WorkerPromises(
                worker_id=self._at(row).worker_id,
                backlog_s=max(0.0, float(self.busy_until_s[row]) - now_s),
                seqs=int(self.own_seqs[row]),
                kv_tokens=int(self.own_kv_tokens[row]),
                min_tpot_s=self._at(row).tpots.min_s,
            )
            for row in rows
        )

    # -- promises of other replicas

    def set_remote(self, reports: Iterable[ReplicaReport], num_replicas: int, now_s: float) -> None:
        """Replace all that is known of the other replicas' promises."""
        for column in (self.remote_until_s, self.remote_seqs, self.remote_kv_tokens, self.unshared_s):
            column[:] = 0.0
        self.remote_min_tpot_s[:] = np.inf
        reports = tuple(reports)
        self.num_replicas = num_replicas
        self.is_blind = num_replicas > 1 and not reports
        for report in reports:
            for promised in report.workers:
                row = self._row_of.get(promised.worker_id)
                if row is None:
                    continue
                self.remote_until_s[row] = max(self.remote_until_s[row], now_s) + promised.backlog_s
                self.remote_seqs[row] += promised.seqs
                self.remote_kv_tokens[row] += promised.kv_tokens
                self.remote_min_tpot_s[row] = min(self.remote_min_tpot_s[row], promised.min_tpot_s)
        np.minimum(self.own_min_tpot_s, self.remote_min_tpot_s, out=self.min_tpot_s)
        np.maximum(self.reported_seqs, self.own_seqs + self.remote_seqs, out=self.seqs)
        np.maximum(self.reported_kv_tokens, self.own_kv_tokens + self.remote_kv_tokens, out=self.kv_tokens)

    # -- derived columns

    def backlog_s(self, rows: Rows, now_s: float) -> Column:
        """Predicted seconds until each row has computed the prompts promised to it, by all replicas. What this router
        promised since the last exchange is taken to have been promised as often by each of the others."""
        own: Column = np.maximum(self.busy_until_s[rows] - now_s, 0.0)
        if self.num_replicas == 1:
            return own
        others = np.maximum(self.remote_until_s[rows] - now_s, 0.0)
        total: Column = own + others + self.unshared_s[rows] * (self.num_replicas - 1)
        return total

    def backlog_at(self, row: int, now_s: float) -> float:
        """The same of one row."""
        own_s = max(self.busy_until_s.item(row) - now_s, 0.0)
        if self.num_replicas == 1:
            return own_s
        others_s = max(self.remote_until_s.item(row) - now_s, 0.0)
        return own_s + others_s + self.unshared_s.item(row) * (self.num_replicas - 1)

    def own_promises(self, worker_id: WorkerId) -> tuple[int, int]:
        """(prefill tokens, sequences) that this router has promised a worker."""
        row = self._row_of.get(worker_id)
        return (0, 0) if row is None else (int(self.own_prefill_tokens[row]), int(self.own_seqs[row]))

    def totals(self) -> dict[WorkerId, tuple[int, int]]:
        """(prefills, sequences) promised to each known worker."""
        return {
            worker_id: (len(self._at(row).pending), int(self.own_seqs[row])) for worker_id, row in self._row_of.items()
        }

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        for worker_id, row in self._row_of.items():
            assert self._at(row).worker_id == worker_id, "invariant 1"
        for row, known in enumerate(self._rows):
            if known is None:
                assert self.own_seqs[row] == self.own_kv_tokens[row] == self.own_prefill_tokens[row] == 0, "invariant 2"
            else:
                assert self.own_seqs[row] == known.tpots.count, "invariant 2"
                promised = self.own_seqs[row] + self.remote_seqs[row]
                assert self.seqs[row] == max(self.reported_seqs[row], promised), "invariant 4"

    def _at(self, row: int) -> _Row:
        known = self._rows[row]
        assert known is not None
        return known

    def _refresh_load(self, row: int) -> None:
        promised, tokens = self.own_seqs.item(row), self.own_kv_tokens.item(row)
        self.seqs[row] = max(self.reported_seqs.item(row), promised + self.remote_seqs.item(row))
        self.kv_tokens[row] = max(self.reported_kv_tokens.item(row), tokens + self.remote_kv_tokens.item(row))

    def _refresh_tpot(self, row: int) -> None:
        self.own_min_tpot_s[row] = own_s = self._at(row).tpots.min_s
        self.min_tpot_s[row] = min(own_s, self.remote_min_tpot_s.item(row))

    def _drop_if_unused(self, row: int) -> None:
        known = self._at(row)
        if known.state is None and not known.pending and self.own_seqs.item(row) == 0:
            del self._row_of[known.worker_id]
            self._rows[row] = None
            self._free.append(row)

    def _allocate(self, size: int) -> None:
        """Make room for `size` rows."""
        old = len(self._rows)
        columns = np.repeat(self._new_row[:, np.newaxis], size, axis=1)
        columns[:, :old] = self._columns
        self._columns, self.seen = columns, columns[:_NUM_SEEN]
        self.params = columns[C0 : T1 + 1].T
        self.busy_until_s, self.remote_until_s, self.unshared_s, self.engine_block_tokens = columns[:C0]
        (
            self.seqs, self.kv_tokens, self.kv_total_tokens, self.min_tpot_s,
            self.step_margin, self.stall_s_per_1k_tokens, self.prompt_tokens_per_step, self.tokens_per_step,
            self.own_prefill_tokens, self.own_seqs, self.own_kv_tokens, self.own_min_tpot_s,
            self.reported_seqs, self.running_seqs, self.waiting_seqs, self.reported_kv_tokens,
            self.remote_seqs, self.remote_kv_tokens, self.remote_min_tpot_s,
        ) = columns[SEQS:]  # fmt: skip
        known_slots = self.slots
        self.slots = np.full((TIERS, size), -1, dtype=np.intp)
        self.slots[:, :old] = known_slots
        self._rows += [None] * (size - old)
        self._free += range(size - 1, old - 1, -1)
