"""What the core remembers of a request that has not ended, and of the lengths of answers that have. Pure."""

from dataclasses import dataclass, field

from kvstore.types import WorkerId
from router.learning import AttemptSample
from router.types import Overlap, Request

_FIRST_GUESS_TOKENS = 256.0  # before any answer of a model has been seen
_SMOOTHING = 0.02


@dataclass(slots=True)
class LiveRequest:
    """A request between its arrival and its end."""

    request: Request
    overlap: Overlap
    arrived_at_s: float
    attempt: int = 0  # 0 while it has never been dispatched
    is_waiting: bool = False
    is_promised: bool = False
    aborted: bool = False  # the live attempt has been told to stop
    excluded: set[WorkerId] = field(default_factory=set)
    sample: AttemptSample | None = None
    prefilled_at_s: float | None = None  # by another worker than the one that decodes
    why: str = ""  # admission's word on it


class OutputLengths:
    """How long a model's answers are of late: a smoothed mean."""

    def __init__(self) -> None:
        self._tokens: dict[str, float] = {}

    def observe(self, model: str, tokens: int) -> None:
        """An answer has ended."""
        before = self._tokens.get(model, _FIRST_GUESS_TOKENS)
        self._tokens[model] = before + _SMOOTHING * (tokens - before)

    def expected(self, request: Request) -> int:
        """Tokens to expect of an answer: no more than it may have, at least one."""
        return min(request.max_output_tokens, max(1, round(self._tokens.get(request.model, _FIRST_GUESS_TOKENS))))
