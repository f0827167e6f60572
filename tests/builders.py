"""Plain factories: a whole object with one thing said about it."""

from collections.abc import Mapping
from random import Random

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.policy import LeastPredictedWork
from router.types import Candidate, Request
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
) -> WorkerState:
    """A worker that is ready to serve, unless told otherwise."""
    spec = WorkerSpec(
        id=WorkerId(worker_id),
        role=role,
        model=model,
        address=f"http://{worker_id}:80",
        epoch=epoch,
        kv_blocks_total=100,
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
    can_hand_off: bool = True,
) -> Request:
    """A chat request that may be handed off."""
    return Request(
        id=RequestId(request_id),
        model=model,
        route=route,
        num_prompt_tokens=num_prompt_tokens,
        max_output_tokens=16,
        can_hand_off=can_hand_off,
    )


def make_candidate(worker: WorkerState, *, reserved_prefill_tokens: int = 0, reserved_seqs: int = 0) -> Candidate:
    """A worker as a policy sees it."""
    return Candidate(worker, reserved_prefill_tokens, reserved_seqs)


def make_core(seed: int = 0, *, max_attempts: int = 3) -> RouterCore:
    """A core with the shipped policy."""
    return RouterCore(LeastPredictedWork(Random(seed)), max_attempts=max_attempts, retry_after_s=2.0)


def make_lease(state: WorkerState, beat: int = 1) -> LeaseRecord:
    """One renewal of a worker's lease."""
    return LeaseRecord(LEASE_VERSION, beat, state)
