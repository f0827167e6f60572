"""Decisions that routers have shipped to Redis, the newest first, with what one looks for in them."""

from dataclasses import dataclass

import msgspec

from kvstore.board import Board
from router.explain.explanation import Outcome

_AT_ONCE = 256
MISSED = "missed"  # answered, but late or slowly
_MOST_LOOKED_AT = 5_000  # of the 20,000 that Redis keeps, for one question


class _Step(msgspec.Struct, frozen=True, gc=False):
    """What a list shows of any step (`router/explain/explanation.py`); a field that a step has not is None."""

    step: str
    age_s: float = 0.0
    attempt: int | None = None
    prefill: str | None = None
    decode: str | None = None
    reason: str | None = None
    detail: str | None = None
    output_tokens: int | None = None
    ttft_met: bool | None = None
    tpot_met: bool | None = None


class _Arrival(msgspec.Struct, frozen=True, gc=False):
    model: str
    tenant: str
    class_name: str
    num_prompt_tokens: int


class _Record(msgspec.Struct, frozen=True, gc=False):
    request_id: str
    public_id: str
    router: str
    arrived_at_s: float
    outcome: Outcome
    arrival: _Arrival
    steps: tuple[_Step, ...]


class Brief(msgspec.Struct, frozen=True):
    """One decision in a list."""

    request_id: str
    public_id: str
    router: str
    arrived_at_s: float  # Unix time
    outcome: str
    class_name: str
    tenant: str
    model: str
    prompt_tokens: int
    output_tokens: int | None
    prefill: str | None
    decode: str | None
    attempts: int
    ttft_s: float | None
    took_s: float
    reason: str | None  # of a rejection
    detail: str | None
    ttft_met: bool | None
    tpot_met: bool | None


class Found(msgspec.Struct, frozen=True):
    """The answer to a question. `more`: there may be others that were not looked at."""

    decisions: list[Brief]
    looked_at: int
    more: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a decision must have; None: anything."""

    request: str | None = None  # its id or the client's begins so
    class_name: str | None = None
    tenant: str | None = None
    outcome: str | None = None  # or the reason of a rejection, or MISSED
    worker: str | None = None  # that an attempt was sent to

    def takes(self, record: _Record) -> bool:
        """Whether this one is wanted."""
        if self.request and not (
            record.request_id.startswith(self.request) or record.public_id.startswith(self.request)
        ):
            return False
        if self.class_name and record.arrival.class_name != self.class_name:
            return False
        if self.tenant and record.arrival.tenant != self.tenant:
            return False
        if self.outcome and not _has_outcome(record, self.outcome):
            return False
        return not self.worker or any(self.worker in (step.prefill, step.decode) for step in record.steps)


class DecisionList:
    """Reads the board's decisions. Every method raises RedisUnavailableError."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def newest(self, limit: int) -> list[Brief]:
        """Of all, without a question."""
        records = await self._board.decisions.newest(0, limit)
        return [_brief(record) for _, data in records if (record := _decode(data)) is not None]

    async def find(self, wanted: Wanted, limit: int) -> Found:
        """Up to `limit` of them, newest first. Looks at the newest 5,000."""
        found: list[Brief] = []
        seen: set[str] = set()  # newer ones move those that were looked at further back
        looked_at = 0
        while looked_at < _MOST_LOOKED_AT:
            records = await self._board.decisions.newest(looked_at, _AT_ONCE)
            for name, data in records:
                looked_at += 1
                record = _decode(data) if name not in seen else None
                seen.add(name)
                if record is not None and wanted.takes(record):
                    found.append(_brief(record))
                    if len(found) == limit:
                        return Found(found, looked_at, more=True)
            if len(records) < _AT_ONCE:
                return Found(found, looked_at, more=False)
        return Found(found, looked_at, more=True)

    async def get(self, request_id: str) -> bytes | None:
        """The whole explanation, as JSON, by the id that the client saw or by the router's own."""
        data = await self._board.decisions.get(request_id)
        if data is not None:
            return data
        found = await self.find(Wanted(request=request_id), 1)
        own = [brief for brief in found.decisions if brief.request_id == request_id]
        return await self._board.decisions.get(own[0].public_id) if own else None


def _has_outcome(record: _Record, wanted: str) -> bool:
    if wanted == MISSED:
        return any(False in (step.ttft_met, step.tpot_met) for step in record.steps)
    return wanted == record.outcome or any(step.reason == wanted for step in record.steps)


def _decode(data: bytes | None) -> _Record | None:
    """None for one that expired meanwhile, or of a version that has other fields."""
    try:
        return msgspec.json.decode(data, type=_Record) if data is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _brief(record: _Record) -> Brief:
    arrival = record.arrival
    sent = [step for step in record.steps if step.step == "dispatched"]
    began = [step for step in record.steps if step.step == "first_token"]
    last = record.steps[-1] if record.steps else _Step("none")
    return Brief(
        request_id=record.request_id,
        public_id=record.public_id,
        router=record.router,
        arrived_at_s=record.arrived_at_s,
        outcome=record.outcome,
        class_name=arrival.class_name,
        tenant=arrival.tenant,
        model=arrival.model,
        prompt_tokens=arrival.num_prompt_tokens,
        output_tokens=last.output_tokens,
        prefill=sent[-1].prefill if sent else None,
        decode=sent[-1].decode if sent else None,
        attempts=len(sent),
        ttft_s=began[-1].age_s if began else None,
        took_s=last.age_s,
        reason=last.reason,
        detail=last.detail,
        ttft_met=last.ttft_met,
        tpot_met=last.tpot_met,
    )
