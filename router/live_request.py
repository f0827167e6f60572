"""What the core remembers of a request that has not ended, and of the lengths of answers that have. Pure."""

from dataclasses import dataclass, field

from kvstore.types import WorkerId
from router.learning import AttemptSample
from router.types import Overlap, Request

_FIRST_GUESS_TOKENS = 256.0  # before any answer of a model has been seen
_SMOOTHING = 0.02
_ERROR_SMOOTHING = 0.05


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
    first_token_due_at_s: float | None = None  # by the forecast of the live attempt; None once it has come
    why: str = ""  # admission's word on it


class ForecastErrors:
    """By how many seconds TTFT forecasts of a model are too short, nine times of ten: a quantile that follows.

    Each error moves the estimate up by nine parts if it is larger, and down by one part if it is not, so that it rests
    where nine of ten are below it. A part is a two hundredth of the mean error's size.
    """

    def __init__(self) -> None:
        self._short_s: dict[str, tuple[float, float]] = {}  # by model: the quantile, the mean size of errors

    def observe(self, model: str, late_s: float) -> None:
        """A first token came so much later than was forecast when its request was sent to a worker."""
        quantile_s, size_s = self._short_s.get(model, (0.0, 0.0))
        size_s += _ERROR_SMOOTHING * (abs(late_s) - size_s)
        part_s = size_s / 200
        quantile_s = max(0.0, quantile_s + (9 * part_s if late_s > quantile_s else -part_s))
        self._short_s[model] = quantile_s, size_s

    def allowance_s(self, model: str) -> float:
        """What to add to a forecast before it is promised."""
        return self._short_s.get(model, (0.0, 0.0))[0]


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
