"""Everything that was decided about one request, as a record that can be kept, sent and read later. Pure.

It says who asked for how much, where it ran and why there, what every other way would have cost, and how the forecast
compares with what came. It holds no prompt, no completion, no digest of either, no API key and no session.

Times are seconds since the request arrived (`age_s`), rounded to microseconds. What is unlimited is None.
"""

from typing import Literal

import msgspec

TERMS = ("queue_s", "fetch_s", "prefill_s", "transfer_s", "step_s", "harm_s")

Outcome = Literal["waiting", "running", "done", "rejected", "failed", "cancelled"]


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """Who asks for what, on which terms."""

    model: str
    route: str
    streamed: bool
    can_hand_off: bool
    num_prompt_tokens: int
    tokens_counted: bool  # else estimated from the body's size
    max_output_tokens: int
    known_prefix_tokens: int  # of the prompt, in some worker's cache
    tenant: str
    class_name: str
    ttft_s: float | None
    tpot_s: float | None
    deadline_s: float | None
    best_effort_ok: bool


class Predicted(msgspec.Struct, frozen=True, gc=False):
    """A forecast by term; `router/choice/terms.py` says how each comes about."""

    ttft_s: float  # all but the harm
    cost_s: float  # all
    queue_s: float
    fetch_s: float
    prefill_s: float
    transfer_s: float
    step_s: float
    harm_s: float
    tpot_s: float
    overlap_tokens: int


class Way(msgspec.Struct, frozen=True, gc=False):
    """One way to serve the request that was weighed against the chosen one."""

    prefill: str | None  # None: the decode worker computes the prompt itself
    decode: str
    predicted: Predicted
    over_s: float  # its cost above that of the chosen way
    mainly: str  # the term that makes most of the difference; empty for the chosen way


class Queued(msgspec.Struct, frozen=True, gc=False, tag="queued", tag_field="step"):
    """It has to wait in the router."""

    age_s: float
    num_waiting: int  # others in this router's queues at that moment
    why: str


class Dispatched(msgspec.Struct, frozen=True, gc=False, tag="dispatched", tag_field="step"):
    """An attempt was sent to workers."""

    age_s: float
    attempt: int
    prefill: str | None
    decode: str
    predicted: Predicted
    promised: bool
    waited_s: float
    why: str
    excluded: tuple[str, ...]  # had failed this request before
    num_candidates: int
    num_near_equal: int
    ways: tuple[Way, ...]  # the chosen one first, then by cost


class Prefilled(msgspec.Struct, frozen=True, gc=False, tag="prefilled", tag_field="step"):
    """The prefill worker has answered."""

    age_s: float
    attempt: int
    cached_tokens: int | None  # that it did not have to compute


class Began(msgspec.Struct, frozen=True, gc=False, tag="first_token", tag_field="step"):
    """The first bytes of the answer came; of an answer in one piece, all of them."""

    age_s: float
    attempt: int
    predicted_age_s: float


class Aborted(msgspec.Struct, frozen=True, gc=False, tag="aborted", tag_field="step"):
    """The attempt was told to stop, because a worker that it needs has gone."""

    age_s: float
    attempt: int
    worker: str


class Failed(msgspec.Struct, frozen=True, gc=False, tag="failed", tag_field="step"):
    """The attempt ended early."""

    age_s: float
    attempt: int
    worker: str
    retriable: bool


class Rejected(msgspec.Struct, frozen=True, gc=False, tag="rejected", tag_field="step"):
    """The request was turned away."""

    age_s: float
    reason: str
    detail: str
    retry_after_s: float | None


class Cancelled(msgspec.Struct, frozen=True, gc=False, tag="cancelled", tag_field="step"):
    """The client went away, or its time was over."""

    age_s: float
    during: Literal["waiting", "prefill", "answer"]


class Done(msgspec.Struct, frozen=True, gc=False, tag="done", tag_field="step"):
    """The answer is complete. What the engine did not report, or could not be seen, is None."""

    age_s: float
    attempt: int
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    predicted_cached_tokens: int
    tpot_s: float | None
    predicted_tpot_s: float
    ttft_met: bool | None  # None: no target, or an answer in one piece
    tpot_met: bool | None


Step = Queued | Dispatched | Prefilled | Began | Aborted | Failed | Rejected | Cancelled | Done


class Explanation(msgspec.Struct, frozen=True, gc=False):
    """The story of one request, so far or to its end."""

    request_id: str  # the router's own
    public_id: str  # the x-request-id that the client saw: its own, or ours
    router: str  # the replica that decided
    policy: str
    arrived_at_s: float  # Unix time
    outcome: Outcome
    arrival: Arrival
    steps: tuple[Step, ...]


def encode(explanation: Explanation) -> bytes:
    """As JSON."""
    return msgspec.json.encode(explanation)


def decode(data: bytes) -> Explanation:
    """From JSON; raises ValueError for anything else, a newer version's record among it."""
    return msgspec.json.decode(data, type=Explanation)
