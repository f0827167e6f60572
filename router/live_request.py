"""What the core remembers of a request that has not ended, and of the lengths of answers that have. Pure."""

from bisect import bisect_left, insort
from collections import deque

from msgspec import Struct

from kvstore.types import WorkerId
from router.fleet.learning import AttemptSample
from router.types import Overlap, Request

_FIRST_GUESS_TOKENS = 256.0  # before any answer of a model has been seen
_SMOOTHING = 0.02
_ERROR_WINDOW = 128  # forecasts


class LiveRequest(Struct):
    """A request between its arrival and its end."""

    request: Request
    overlap: Overlap
    arrived_at_s: float
    attempt: int = 0  # 0 while it has never been dispatched
    is_waiting: bool = False
    is_promised: bool = False
    is_due: bool = False  # its client was told to come back, and came in time
    aborted: bool = False  # the live attempt has been told to stop
    excluded: set[WorkerId] = set()
    sample: AttemptSample | None = None
    prefilled_at_s: float | None = None  # by another worker than the one that decodes
    first_token_due_at_s: float | None = None  # by the forecast of the live attempt; None once it has come
    why: str = ""  # admission's word on it


class ForecastErrors:
    """By how many seconds TTFT forecasts of a model are too short: what nine of ten of the last ones were within.

    A window, so that a bad moment is forgotten as fast as it was learned, however small the errors after it.
    """

    def __init__(self) -> None:
        self._late_s: dict[str, tuple[deque[float], list[float]]] = {}  # by model: oldest first, and sorted

    def observe(self, model: str, late_s: float) -> None:
        """A first token came so much later than was forecast when its request was sent to a worker."""
        latest, ranked = self._late_s.setdefault(model, (deque(), []))
        latest.append(late_s)
        insort(ranked, late_s)
        if len(latest) > _ERROR_WINDOW:
            del ranked[bisect_left(ranked, latest.popleft())]

    def allowance_s(self, model: str) -> float:
        """What to add to a forecast before it is promised."""
        _, ranked = self._late_s.get(model, (None, None))
        return max(0.0, ranked[9 * (len(ranked) - 1) // 10]) if ranked else 0.0


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
