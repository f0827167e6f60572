"""Plain factories: a whole object with one thing said about it."""

from collections.abc import Iterable, Mapping
from random import Random

from kvstore.types import RequestId, WorkerId
from router.admission.desk import AdmissionDesk
from router.choice.chooser import HandOff
from router.choice.policy import LeastCost
from router.choice.view import View
from router.core import CoreSettings, RouterCore
from router.fleet.table import FleetTable
from router.latency import LatencyParams, LatencyPrior
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.slo_settings import SloSettings
from router.types import NO_OVERLAP, UNPROMISED, Overlap, Request, Slo, Terms
from workers.lease_record import LEASE_VERSION, LeaseRecord
from workers.types import Phase, Role, WorkerLoad, WorkerSpec, WorkerState

MODEL = "m"
ROUTES: Mapping[str, tuple[str, ...]] = {CHAT_ROUTE: ("messages", "model"), COMPLETION_ROUTE: ("model", "prompt")}


def make_worker(
    worker_id: str = "mixed-1",
    role: Role = Role.MIXED,
    *,
    phase: Phase = Phase.READY,
    model: str = MODEL,
    epoch: int = 1,
    routes: Mapping[str, tuple[str, ...]] = ROUTES,
    running_seqs: int = 0,
    waiting_seqs: int = 0,
    kv_blocks_total: int = 100,
) -> WorkerState:
    """A worker that is ready to serve, unless told otherwise."""
    spec = WorkerSpec(
        id=WorkerId(worker_id),
        role=role,
        model=model,
        address=f"http://{worker_id}:80",
        epoch=epoch,
        kv_blocks_total=kv_blocks_total,
        block_size_tokens=32,
        max_model_len_tokens=2048,
        routes=routes,
    )
    return WorkerState(spec, phase, WorkerLoad(running_seqs, waiting_seqs, kv_blocks_used=0))


def make_prefill(worker_id: str = "prefill-1", *, phase: Phase = Phase.READY, epoch: int = 1) -> WorkerState:
    """A worker of the prefill pool."""
    return make_worker(worker_id, Role.PREFILL, phase=phase, epoch=epoch)


def make_decode(worker_id: str = "decode-1", *, phase: Phase = Phase.READY, epoch: int = 1) -> WorkerState:
    """A worker of the decode pool."""
    return make_worker(worker_id, Role.DECODE, phase=phase, epoch=epoch)


def make_request(
    request_id: str = "r1",
    *,
    model: str = MODEL,
    route: str = CHAT_ROUTE,
    num_prompt_tokens: int = 100,
    max_output_tokens: int = 16,
    can_hand_off: bool = True,
    terms: Terms = UNPROMISED,
    streamed: bool = True,
) -> Request:
    """A chat request that may be handed off."""
    return Request(
        id=RequestId(request_id),
        model=model,
        route=route,
        num_prompt_tokens=num_prompt_tokens,
        max_output_tokens=max_output_tokens,
        can_hand_off=can_hand_off,
        terms=terms,
        terms_implicit=terms is UNPROMISED,
        streamed=streamed,
        digest=request_id.encode(),
    )


def make_terms(
    *,
    tenant: str = "default",
    class_name: str = "chat",
    ttft_s: float = 1.0,
    tpot_s: float = 0.1,
    value: float = 1.0,
    weight: float = 1.0,
    deadline_s: float = 60.0,
    best_effort_ok: bool = False,
) -> Terms:
    """A promise asked for."""
    return Terms(tenant, class_name, Slo(ttft_s, tpot_s), value, weight, deadline_s, best_effort_ok)


def make_table(*workers: WorkerState, params: LatencyParams | None = None) -> FleetTable:
    """A table of these workers; the prefix index's slot of each is its place, device tier."""
    table = FleetTable(params or LatencyPrior().params())
    for place, worker in enumerate(workers):
        table.upsert(worker)
        table.set_slots(worker.spec.id, (place, -1, -1))
    return table


def make_view(
    table: FleetTable, request: Request | None = None, overlap: Overlap = NO_OVERLAP, now_s: float = 0.0
) -> View:
    """All eligible workers of the table."""
    request = request or make_request()
    prefill, decode = table.eligible(request.model, request.route)
    return View(request, overlap, now_s, table, prefill, decode)


def make_overlap(blocks_by_slot: Mapping[int, int], block_size_tokens: int = 32) -> Overlap:
    """Slots that hold so many leading blocks."""
    depths = sorted({blocks for blocks in blocks_by_slot.values() if blocks > 0})
    return Overlap(
        block_size_tokens,
        tuple((depth, _bits(slot for slot, blocks in blocks_by_slot.items() if blocks >= depth)) for depth in depths),
    )


def _bits(slots: Iterable[int]) -> int:
    return sum(1 << slot for slot in set(slots))


def make_core(
    seed: int = 0,
    *,
    max_attempts: int = 3,
    hand_off: HandOff = "always",
    dispatch_ahead_s: float = 0.1,
    slo: SloSettings | None = None,
    prior: LatencyPrior | None = None,
) -> RouterCore:
    """A core with the shipped policy, handing off whatever it can."""
    settings = CoreSettings(
        max_attempts=max_attempts, retry_after_s=2.0, hand_off=hand_off, dispatch_ahead_s=dispatch_ahead_s
    )
    return RouterCore(LeastCost(Random(seed)), settings, AdmissionDesk(slo or SloSettings()), prior)


def make_lease(state: WorkerState, beat: int = 1) -> LeaseRecord:
    """One renewal of a worker's lease."""
    return LeaseRecord(LEASE_VERSION, beat, state)
