"""What events teach about the workers' latencies. Keeps the fleet table's coefficients up to date. Pure.

Invariants
 1. A prefill is a sample only if this router knows all the work that stood before it.
 2. Nothing is learned from an attempt that failed, or across an engine's restart.
"""

import math
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from msgspec import Struct

from kvstore.types import WorkerId
from router.fleet.prefill_work import PrefillWork
from router.fleet.table import FleetTable, Rows
from router.fleet.tpot import tokens_per_step
from router.latency import LatencyParams, LatencyPrior, WorkerLatency, step_sample
from workers.types import WorkerState

_WRITE_EVERY_S = 0.05  # a worker's coefficients, to the table
_SMOOTHING = 0.3  # of what changes with the load, once a report


class AttemptSample(Struct, frozen=True):
    """What was known of an attempt when it was dispatched; completed by the events that follow."""

    dispatched_at_s: float
    prompts: float  # this one and what was left of those before it; 0: not all of them are known
    new_tokens: float  # summed over them
    quad: float
    step_s: float  # predicted
    transfer_tokens: int  # 0: no hand-off


def attempt_sample(
    table: FleetTable, prefill_on: WorkerId, work: PrefillWork, *, step_s: float, transfer_tokens: int, now_s: float
) -> AttemptSample:
    """The sample of an attempt about to be promised to `prefill_on`."""
    before = table.pending_work(prefill_on, now_s)
    if before is None:
        return AttemptSample(now_s, 0.0, 0.0, 0.0, step_s, transfer_tokens)
    prompts, tokens, quad = before
    return AttemptSample(now_s, prompts + 1, tokens + work.tokens, quad + work.quad, step_s, transfer_tokens)


class Kind(Enum):
    """Of what a worker's model has samples: places of the coefficients in LatencyParams."""

    PREFILL = slice(0, 3)
    STEP = slice(3, 6)
    TRANSFER = slice(6, 8)


_KINDS = tuple(Kind)


@dataclass(slots=True)
class _Pupil:
    """One worker's model, and what it has been taught."""

    model_name: str
    latency: WorkerLatency
    taught: set[Kind] = field(default_factory=set)
    prompt_tokens_per_step: float = 0.0  # smoothed
    written_at_s: float = -math.inf
    unwritten: set[Kind] = field(default_factory=set)  # of what it has learned something since


class Learning:
    """One latency model a worker. Of what a worker has no samples it is believed to be like the others of its model."""

    def __init__(self, table: FleetTable, prior: LatencyPrior) -> None:
        self._table = table
        self._prior = prior
        self._pupils: dict[WorkerId, _Pupil] = {}
        self._common: dict[tuple[str, Kind], WorkerId] = {}  # who was last taught something of its kind
        self._untaught: dict[tuple[str, Kind], Rows] = {}  # rows of those who never were, until the fleet changes
        self._unwritten: dict[WorkerId, _Pupil] = {}
        self.write_at_s = math.inf  # when `write` is due

    def on_worker(self, before: WorkerState | None, state: WorkerState, now_s: float) -> None:
        """A worker joined or reported: its own counters tell the length of its decode steps."""
        worker_id = state.spec.id
        pupil = self._pupils.get(worker_id)
        if pupil is None:
            pupil = self._pupils[worker_id] = _Pupil(state.spec.model, WorkerLatency(self._prior))
            self._untaught.clear()
        load = state.load
        if load.spec_drafts:
            tokens = tokens_per_step(load.spec_drafts, load.spec_draft_tokens, load.spec_accepted_tokens)
            self._table.set_tokens_per_step(worker_id, tokens)
        if before is None or before.spec.epoch != state.spec.epoch:
            pupil.latency.new_epoch(now_s)
            self._write(worker_id, pupil)
            return
        sample = step_sample(before.load, state.load)
        if sample is None:
            return
        pupil.prompt_tokens_per_step += _SMOOTHING * (sample.prompt_tokens - pupil.prompt_tokens_per_step)
        self._table.set_prompt_tokens_per_step(worker_id, pupil.prompt_tokens_per_step)
        learned = pupil.latency.observe_step(
            sample.mean_itl_s, sample.running_seqs, sample.kv_tokens, sample.steps, now_s, sample.prompt_tokens
        )
        self._teach(worker_id, pupil, Kind.STEP, learned, now_s)

    def on_worker_gone(self, worker_id: WorkerId) -> None:
        """Its next life may be on other hardware."""
        self._pupils.pop(worker_id, None)
        self._unwritten.pop(worker_id, None)
        self._untaught.clear()

    def on_prefill_over(self, worker_id: WorkerId, sample: AttemptSample, now_s: float, *, local: bool) -> None:
        """A prompt has been computed; `local`: seen by the first token, one decode step later.

        Where prompts share the steps of others, a short one is seen to take no time at all, or a step more: it has
        waited for the one under way. So its time is known to half a step only.
        """
        pupil = self._pupils.get(worker_id)
        if pupil is None or sample.prompts == 0:
            return
        step_s = sample.step_s if local else 0.0
        duration_s, unsure_s = now_s - sample.dispatched_at_s - step_s, step_s / 2
        if duration_s + unsure_s > 0.0:
            learned = pupil.latency.observe_prefill(
                duration_s, sample.prompts, sample.new_tokens, sample.quad, now_s, unsure_s=unsure_s
            )
            self._teach(worker_id, pupil, Kind.PREFILL, learned, now_s)

    def on_transferred(self, worker_id: WorkerId, sample: AttemptSample, prefilled_at_s: float, now_s: float) -> None:
        """The decode worker has answered: blocks have come and one step is done."""
        pupil = self._pupils.get(worker_id)
        if pupil is not None and sample.transfer_tokens:
            duration_s = max(0.0, now_s - prefilled_at_s - sample.step_s)
            learned = pupil.latency.observe_transfer(duration_s, sample.transfer_tokens, now_s)
            self._teach(worker_id, pupil, Kind.TRANSFER, learned, now_s)

    def write(self) -> None:
        """Bring the table up to date."""
        self.write_at_s = math.inf
        unwritten, self._unwritten = self._unwritten, {}
        for worker_id, pupil in unwritten.items():
            self._write_lessons(worker_id, pupil)

    def _teach(self, worker_id: WorkerId, pupil: _Pupil, kind: Kind, learned: bool, now_s: float) -> None:
        """The table follows at once, or `_WRITE_EVERY_S` later where it was written just now."""
        if not learned:
            return
        pupil.unwritten.add(kind)
        if now_s >= pupil.written_at_s + _WRITE_EVERY_S:
            pupil.written_at_s = now_s
            self._write_lessons(worker_id, pupil)
        elif worker_id not in self._unwritten:
            self._unwritten[worker_id] = pupil
            self.write_at_s = min(self.write_at_s, pupil.written_at_s + _WRITE_EVERY_S)

    def _write_lessons(self, worker_id: WorkerId, pupil: _Pupil) -> None:
        params = pupil.latency.params()
        for kind in (kind for kind in _KINDS if kind in pupil.unwritten):
            key = pupil.model_name, kind
            self._common[key] = worker_id
            if kind not in pupil.taught:
                pupil.taught.add(kind)
                self._untaught.pop(key, None)
            rows = self._untaught.get(key)
            if rows is None:
                rows = self._untaught[key] = self._rows_without(kind, pupil.model_name)
            stall_s = None
            if kind is Kind.STEP:
                stall_s = pupil.latency.stall_s_per_1k_tokens()
                self._table.set_step_margin(worker_id, pupil.latency.step_margin())
            self._table.set_some_latency(self._table.row(worker_id), kind.value, params, stall_s)
            if len(rows):
                self._table.set_some_latency(rows, kind.value, params, stall_s)
        pupil.unwritten.clear()

    def _rows_without(self, kind: Kind, model_name: str) -> Rows:
        """Of workers that have no samples of this kind."""
        ids = [at for at, other in self._pupils.items() if other.model_name == model_name and kind not in other.taught]
        return np.array([self._table.row(worker_id) for worker_id in ids], dtype=np.intp)

    def _write(self, worker_id: WorkerId, pupil: _Pupil) -> None:
        own = pupil.latency
        params = list(own.params())
        stall_s = own.stall_s_per_1k_tokens()
        for kind in _KINDS if len(pupil.taught) < len(_KINDS) else ():
            if kind in pupil.taught:
                continue
            teacher = self._pupils.get(self._common.get((pupil.model_name, kind), worker_id))
            if teacher is not None:
                theirs: tuple[float, ...] = teacher.latency.params()
                params[kind.value] = theirs[kind.value]
                if kind is Kind.STEP:
                    stall_s = teacher.latency.stall_s_per_1k_tokens()
        self._table.set_latency(worker_id, LatencyParams(*params), own.step_margin(), stall_s)
