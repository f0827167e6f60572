"""What a decision reads and what it says. Sizes in tokens, times in seconds."""

from dataclasses import dataclass, field

from kvstore.types import RequestId, WorkerId
from workers.types import WorkerState


@dataclass(frozen=True, slots=True)
class Request:
    """Only what a decision reads; the body itself never enters the core."""

    id: RequestId
    model: str
    route: str  # the engine's path, such as /v1/chat/completions
    num_prompt_tokens: int  # an estimate until the router tokenises
    max_output_tokens: int
    can_hand_off: bool  # prefill and decode may run on different workers


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as the policy sees it: its last report and what this router has promised it since."""

    worker: WorkerState
    reserved_prefill_tokens: int
    reserved_seqs: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds until the first token, by cause."""

    queue_s: float
    prefill_s: float
    transfer_s: float

    @property
    def ttft_s(self) -> float:
        return self.queue_s + self.prefill_s + self.transfer_s


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair of workers, or one: `prefill` is None where the decode worker does its own prefill."""

    decode: WorkerState
    prefill: WorkerState | None
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Where attempt number `attempt` of a request runs, and why there."""

    request_id: RequestId
    attempt: int  # 1 for the first
    decode: WorkerState
    prefill: WorkerState | None
    forecast: Forecast
    excluded: frozenset[WorkerId] = field(default_factory=frozenset)  # failed this request before
