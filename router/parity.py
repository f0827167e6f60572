"""Does the router know what the engines have cached? Predicted against reported cached tokens, by model. Pure.

A router that hashes something other than what the engine cached predicts confidently and wrongly, for ever, and nobody
notices: requests are only slower. So every answer that reports its cached tokens is compared with the prediction, and
a model whose predictions drift is routed by load alone until they are right again.

    error = sum |predicted - reported| / sum max(predicted, reported), both decayed over the last WINDOW answers

Differences within a block are none: an engine's block may be larger than the index's, and the newest block of a prompt
may still be on its way here.

Invariants
 1. A model is trusted until MIN_ANSWERS comparable answers, of which it got more than DRIFT_ERROR wrong.
 2. It is trusted again when its error falls below TRUST_ERROR: predictions go on being made while it is not.
"""

from dataclasses import dataclass

WINDOW = 200
MIN_ANSWERS = 30
DRIFT_ERROR = 0.5
TRUST_ERROR = 0.25
_MOST_MODELS = 1000


@dataclass(slots=True)
class ModelParity:
    """How well one model's cached tokens are predicted."""

    answers: int = 0  # comparable: predicted or reported anything
    wrong_tokens: float = 0.0
    all_tokens: float = 0.0
    is_trusted: bool = True

    @property
    def error(self) -> float:
        """0: all predictions right, 1: all wrong."""
        return self.wrong_tokens / self.all_tokens if self.all_tokens else 0.0


class Parity:
    """One `ModelParity` a model."""

    def __init__(self) -> None:
        self._models: dict[str, ModelParity] = {}

    def observe(self, model: str, predicted_tokens: int, reported_tokens: int, block_size_tokens: int) -> bool:
        """Compare one answer; True if the model's trust has changed by it."""
        largest = max(predicted_tokens, reported_tokens)
        if largest < block_size_tokens:
            return False
        if model not in self._models and len(self._models) >= _MOST_MODELS:
            return False
        known = self._models.setdefault(model, ModelParity())
        difference = abs(predicted_tokens - reported_tokens)
        keep = 1 - 1 / WINDOW
        known.wrong_tokens = known.wrong_tokens * keep + (difference if difference > block_size_tokens else 0)
        known.all_tokens = known.all_tokens * keep + largest
        known.answers += 1
        before = known.is_trusted
        if known.is_trusted:
            known.is_trusted = known.answers < MIN_ANSWERS or known.error <= DRIFT_ERROR
        else:
            known.is_trusted = known.error < TRUST_ERROR
        return known.is_trusted is not before

    def is_trusted(self, model: str) -> bool:
        """Whether predictions for this model may steer requests."""
        known = self._models.get(model)
        return known is None or known.is_trusted

    def models(self) -> dict[str, ModelParity]:
        """Every model seen."""
        return dict(self._models)
