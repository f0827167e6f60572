"""What a decision reads and what it says. Sizes in tokens, times in seconds."""

from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct

from kvstore.types import RequestId, WorkerId
from workers.types import WorkerState


class Slo(Struct, frozen=True, gc=False):
    """What the client was promised, or would like to be."""

    ttft_s: float  # arrival to first token
    tpot_s: float  # mean gap after it


class Terms(Struct, frozen=True, gc=False):
    """Who asks and on which terms."""

    tenant: str
    class_name: str
    slo: Slo
    value: float  # worth of meeting the promise, against other classes
    weight: float  # of the tenant, in fair shares
    deadline_s: float  # from arrival; a request still waiting then is given up
    best_effort_ok: bool  # may be served without a promise where none can be given


UNPROMISED = Terms("default", "none", Slo(float("inf"), float("inf")), 1.0, 1.0, float("inf"), True)


class Request(Struct, frozen=True, gc=False):
    """Only what a decision reads; the body itself never enters the core."""

    id: RequestId
    model: str
    route: str  # the engine's path, such as /v1/chat/completions
    num_prompt_tokens: int  # counted if `tokens_counted`, else estimated from the body's size
    max_output_tokens: int
    can_hand_off: bool  # prefill and decode may run on different workers
    terms: Terms = UNPROMISED
    terms_implicit: bool = True  # nobody chose them: neither the client nor its key
    session: str = ""  # the client's x-session-id
    adapter: str = ""  # of the model: the request names it instead
    streamed: bool = True
    tokens_counted: bool = False
    digest: bytes = b""  # of the body: recognises a client that comes back with the same request
    only: frozenset[WorkerId] | None = None  # the workers that may be chosen; None: any


class Overlap(Struct, frozen=True, gc=False):
    """Who holds how much of a prompt. Slots are the prefix index's numbers for (worker, tier)."""

    block_size_tokens: int
    levels: tuple[tuple[int, int], ...]  # (leading blocks, bitset of slots that hold at least these), rising


NO_OVERLAP = Overlap(1, ())


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as operators and tests see it: its last report and what this router has promised it since."""

    worker: WorkerState
    reserved_prefill_tokens: int
    reserved_seqs: int


class Forecast(NamedTuple):
    """Predicted seconds, by cause. They add without weights (architecture law 7)."""

    queue_s: float  # prompts before this one, on the worker that prefills
    fetch_s: float  # blocks from a lower tier
    prefill_s: float  # tokens that no cache holds
    transfer_s: float  # KV blocks from the prefill to the decode worker
    step_s: float  # the decode step that makes the first token
    harm_s: float  # added, in sum, to the requests that run there already
    tpot_s: float  # gap between tokens with this request in the batch
    overlap_tokens: float  # of the prompt, held where it is prefilled; a whole number

    @property
    def ttft_s(self) -> float:
        """Until the first token."""
        return self.queue_s + self.fetch_s + self.prefill_s + self.transfer_s + self.step_s

    @property
    def work_s(self) -> float:
        """How long the prefilling worker is busy with this prompt."""
        return self.fetch_s + self.prefill_s

    @property
    def cost_s(self) -> float:
        """What policies minimise: own latency and the harm to others."""
        return self.ttft_s + self.harm_s


class Considered(NamedTuple):
    """One line of an explanation."""

    prefill: WorkerId | None
    decode: WorkerId
    forecast: Forecast


class Choice(Struct, frozen=True, gc=False):
    """A pair of workers, or one: `prefill` is None where the decode worker does its own prefill."""

    decode: WorkerState
    prefill: WorkerState | None
    forecast: Forecast
    shared_tokens: float = 0.0  # of the prompt, that the decode worker has on its device
    num_candidates: int = 0  # workers that could have been chosen
    num_near_equal: int = 0  # of which the seeded draw was made


class RoutingDecision(Struct, frozen=True, gc=False):
    """Where attempt number `attempt` of a request runs, and why there."""

    request_id: RequestId
    attempt: int  # 1 for the first
    decode: WorkerState
    prefill: WorkerState | None
    forecast: Forecast
    excluded: frozenset[WorkerId] = frozenset()  # failed this request before
    promised: bool = False  # its targets count in later admissions
    waited_s: float = 0.0  # in the router's queue
    considered: tuple[Considered, ...] = ()
    num_candidates: int = 0
    num_near_equal: int = 0
    why: str = ""  # admission's word on it


class Usage(Struct, frozen=True, array_like=True, gc=False):
    """What the engine said the request used."""

    prompt_tokens: int
    cached_tokens: int | None  # None: not reported
    output_tokens: int


@dataclass(frozen=True, slots=True)
class WorkerPromises:
    """What one router replica has promised to one worker."""

    worker_id: WorkerId
    backlog_s: float  # predicted seconds of prefill not yet over
    seqs: int
    kv_tokens: int
    min_tpot_s: float  # inf: nobody there was promised one


@dataclass(frozen=True, slots=True)
class TenantWork:
    """What one router replica says of a tenant, in seconds of work, decayed until now."""

    tenant: str
    used_s: float
    asked_s: float
    weight: float


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What another router replica says of itself."""

    replica_id: str
    workers: tuple[WorkerPromises, ...]
    waiting: tuple[tuple[str, float], ...] = ()  # by model, seconds of promised work in its queue
    tenants: tuple[TenantWork, ...] = ()
