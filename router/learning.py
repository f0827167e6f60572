"""What events teach about the workers' latencies. Keeps the fleet table's coefficients up to date. Pure.

Invariants
 1. A prefill is a sample only if this router knows all the work that stood before it.
 2. Nothing is learned from an attempt that failed, or across an engine's restart.
"""

from dataclasses import dataclass

from kvstore.types import WorkerId
from router.fleet_table import FleetTable, PrefillWork
from router.latency import LatencyPrior, WorkerLatency, step_sample
from router.tpot import chain_curve
from workers.types import WorkerState


@dataclass(frozen=True, slots=True)
class AttemptSample:
    """What was known of an attempt when it was dispatched; completed by the events that follow."""

    dispatched_at_s: float
    prompts: int  # this one and those before it; 0: not all of them are known
    new_tokens: int  # summed over them
    quad: float
    step_s: float  # predicted
    transfer_tokens: int  # 0: no hand-off


def attempt_sample(
    table: FleetTable, prefill_on: WorkerId, work: PrefillWork, *, step_s: float, transfer_tokens: int, now_s: float
) -> AttemptSample:
    """The sample of an attempt about to be promised to `prefill_on`."""
    before = table.pending_work(prefill_on)
    if before is None:
        return AttemptSample(now_s, 0, 0, 0.0, step_s, transfer_tokens)
    prompts, tokens, quad = before
    return AttemptSample(now_s, prompts + 1, tokens + work.tokens, quad + work.quad, step_s, transfer_tokens)


class Learning:
    """One latency model a worker."""

    def __init__(self, table: FleetTable, prior: LatencyPrior) -> None:
        self._table = table
        self._prior = prior
        self._models: dict[WorkerId, WorkerLatency] = {}

    def on_worker(self, before: WorkerState | None, state: WorkerState, now_s: float) -> None:
        """A worker joined or reported: its own counters tell the length of its decode steps."""
        worker_id = state.spec.id
        model = self._models.get(worker_id)
        if model is None:
            model = self._models[worker_id] = WorkerLatency(self._prior)
        load = state.load
        if load.spec_drafts:
            curve = chain_curve(load.spec_drafts, load.spec_draft_tokens, load.spec_accepted_tokens)
            self._table.set_tokens_per_step(worker_id, curve.tokens_per_step)
        if before is None or before.spec.epoch != state.spec.epoch:
            model.new_epoch(now_s)
        else:
            sample = step_sample(before.load, state.load)
            if sample is None:
                return
            model.observe_step(
                sample.mean_itl_s, sample.running_seqs, sample.kv_tokens, sample.steps, now_s, sample.prompt_tokens
            )
        self._write(worker_id, model)

    def on_worker_gone(self, worker_id: WorkerId) -> None:
        """Its next life may be on other hardware."""
        self._models.pop(worker_id, None)

    def on_prefill_over(self, worker_id: WorkerId, sample: AttemptSample, now_s: float, *, local: bool) -> None:
        """A prompt has been computed; `local`: seen by the first token, one decode step later."""
        model = self._models.get(worker_id)
        if model is None or sample.prompts == 0:
            return
        duration_s = now_s - sample.dispatched_at_s - (sample.step_s if local else 0.0)
        if duration_s > 0:
            model.observe_prefill(duration_s, sample.prompts, sample.new_tokens, sample.quad, now_s)
            self._write(worker_id, model)

    def on_transferred(self, worker_id: WorkerId, sample: AttemptSample, prefilled_at_s: float, now_s: float) -> None:
        """The decode worker has answered: blocks have come and one step is done."""
        model = self._models.get(worker_id)
        if model is not None and sample.transfer_tokens:
            model.observe_transfer(max(0.0, now_s - prefilled_at_s - sample.step_s), sample.transfer_tokens, now_s)
            self._write(worker_id, model)

    def model(self, worker_id: WorkerId) -> WorkerLatency | None:
        """The worker's model, if it is known."""
        return self._models.get(worker_id)

    def _write(self, worker_id: WorkerId, model: WorkerLatency) -> None:
        margins = model.prefill_margin(), model.step_margin()
        self._table.set_latency(worker_id, model.params(), margins, model.stall_s_per_1k_tokens())
