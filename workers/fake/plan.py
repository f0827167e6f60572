"""What a fake engine does and when: its latencies and its faults. Pure; loaded from JSON, unknown keys refused.

{"timing": {"prefill_s_per_token": 0.0002, "decode_s_per_token": 0.02, "max_running_seqs": 16},
 "faults": [{"match": {"route": "/v1/completions", "nth": 3}, "action": "disconnect_after_chunks", "chunks": 2},
            {"match": {"after_tokens": 500}, "action": "exit"}]}
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

GENERATION_ROUTES = ("/v1/chat/completions", "/v1/completions")
_STRICT = ConfigDict(extra="forbid", strict=True)


class PlanError(Exception):
    """The text is no plan; the message says where and why."""


class Action(StrEnum):
    """How a fault shows."""

    STATUS = "status"  # answers with `status` and an error body
    DISCONNECT_BEFORE_HEADERS = "disconnect_before_headers"
    DISCONNECT_AFTER_CHUNKS = "disconnect_after_chunks"  # after `chunks` events of a stream, or in a unary body
    HANG_BEFORE_HEADERS = "hang_before_headers"
    HANG_AFTER_CHUNKS = "hang_after_chunks"
    WEDGE = "wedge"  # from then on everything hangs except /health, which stays 200
    EXIT = "exit"  # the process dies; in-process: the listener and all connections close
    SSE_ERROR_FIRST = "sse_error_first"  # 200, then an error as the first event of the stream


# What befalls the engine rather than one request: with `after_tokens` it strikes in the middle of a stream.
ENGINE_ACTIONS = frozenset({Action.WEDGE, Action.EXIT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latencies of the engine. Prefills take turns; decode steps of running sequences overlap."""

    __pydantic_config__ = _STRICT

    start_s: float = 0.0  # before the port opens
    prefill_s_fixed: float = 0.0
    prefill_s_per_token: float = 0.0  # per prompt token that neither the cache nor a transfer provided
    decode_s_per_token: float = 0.0
    decode_s_per_seq: float = 0.0  # added to a step for each further running sequence
    max_running_seqs: int = 256  # others wait

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative")
        if self.max_running_seqs < 1:
            raise ValueError("`max_running_seqs` must be at least 1")

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds to compute `num_tokens` tokens of a prompt."""
        return self.prefill_s_fixed + self.prefill_s_per_token * num_tokens

    def step_s(self, running_seqs: int) -> float:
        """Seconds of one decode step with `running_seqs` sequences in the batch."""
        return self.decode_s_per_token + self.decode_s_per_seq * max(0, running_seqs - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """When a fault strikes; exactly one of `nth`, `every` and `after_tokens`.

    `nth` (from 1) and `every` count requests on `route`, a supervisor's probes included; without a route, those on
    the generation routes. `after_tokens` is met once, when the engine has generated that many tokens: engine actions
    strike at that moment, the others the next request.
    """

    __pydantic_config__ = _STRICT

    route: str | None = None
    nth: int | None = None
    every: int | None = None
    after_tokens: int | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.nth, self.every, self.after_tokens) if value is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError("`match` needs exactly one of `nth`, `every` and `after_tokens`, at least 1")

    def covers(self, route: str) -> bool:
        """Whether requests on `route` count."""
        return route in GENERATION_ROUTES if self.route is None else route == self.route


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One scripted failure."""

    __pydantic_config__ = _STRICT

    match: Match
    action: Action
    status: int = 500  # of Action.STATUS
    chunks: int = 1  # of the *_AFTER_CHUNKS actions

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            raise ValueError("`status` must be an HTTP error, 400 to 599")
        if self.chunks < 0:
            raise ValueError("`chunks` must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything scripted about one fake engine. The default is a fast engine without faults."""

    __pydantic_config__ = _STRICT

    timing: Timing = field(default_factory=Timing)
    faults: tuple[Fault, ...] = ()
    kv_load_failure_policy: Literal["recompute", "fail"] = "recompute"  # when a hand-off cannot be read


class FaultScript:
    """Counts what happens and says which fault strikes. One per engine and plan; the first match in order wins."""

    def __init__(self, plan: Plan) -> None:
        self._faults = plan.faults
        self._requests_seen = [0] * len(plan.faults)
        self._tokens_made = 0
        self._spent: set[int] = set()

    def on_request(self, route: str) -> Fault | None:
        """A request arrived."""
        struck = None
        for index, fault in enumerate(self._faults):
            if fault.match.covers(route):
                self._requests_seen[index] += 1
                if struck is None and self._is_due(index, fault.match):
                    struck = fault
                    self._spent.add(index)
        return struck

    def on_token(self) -> Fault | None:
        """One token was generated; returns a fault of the engine that is due at this very moment."""
        self._tokens_made += 1
        for index, fault in enumerate(self._faults):
            due = fault.match.after_tokens is not None and self._tokens_made >= fault.match.after_tokens
            if due and fault.action in ENGINE_ACTIONS and index not in self._spent:
                self._spent.add(index)
                return fault
        return None

    def _is_due(self, index: int, match: Match) -> bool:
        if match.nth is not None:
            return self._requests_seen[index] == match.nth
        if match.every is not None:
            return self._requests_seen[index] % match.every == 0
        return match.after_tokens is not None and self._tokens_made >= match.after_tokens and index not in self._spent


def load_plan(text: str | bytes) -> Plan:
    """The plan in `text` (JSON); raises PlanError."""
    try:
        return TypeAdapter(Plan).validate_json(text)
    except ValidationError as error:
        raise PlanError("; ".join(_problem(detail["loc"], detail["msg"]) for detail in error.errors())) from error


def _problem(location: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part) for part in location) or "plan"
    return f"{where}: {'unknown key' if message == 'Unexpected keyword argument' else message}"
