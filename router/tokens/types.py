"""What tokenising takes and gives. Pure."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

# Token ids as they are cached, joined and hashed: unsigned 32 bit in the machine's byte order.
TOKEN_TYPE = "I"


class Kind(StrEnum):
    """Why a prompt has no token ids here; a label for metrics."""

    LOADING = "loading"  # the model's tokenizer is on its way
    LOAD_FAILED = "load_failed"
    UNKNOWN_MODEL = "unknown_model"  # no tokenizer is configured for the name
    UNSUPPORTED_ENGINE = "unsupported_engine"  # the engine prepares prompts in a way that is not mirrored
    UNSUPPORTED_ROUTE = "unsupported_route"
    UNSUPPORTED_FIELD = "unsupported_field"  # a field or value whose effect on the prompt is not mirrored
    SEVERAL_PROMPTS = "several_prompts"
    MEDIA = "media"  # images, audio and embeddings become tokens inside the engine only
    CLIENT_TEMPLATE = "client_template"  # the engine refuses it too
    TEMPLATE = "template"  # the chat template refused the request; the engine will word the error
    TOO_LONG = "too_long"
    BUSY = "busy"  # more text waits for the threads than is worth waiting for
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class NotTokenised:
    """The token ids are not known. `detail` names fields and types, never what a client wrote."""

    kind: Kind
    detail: str = ""

    @property
    def reason(self) -> str:
        """Kind and detail in one line."""
        return f"{self.kind}: {self.detail}" if self.detail else str(self.kind)


@dataclass(frozen=True, slots=True)
class TokenisedPrompt:
    """The prompt of one request. `tokens` may be shared and is never changed."""

    tokens: "array[int]"
    cache_salt: str | None = None
    is_whole: bool = field(default=False, compare=False)  # encoded in one piece, not joined from segments

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.tokens)


class CannotTokeniseError(Exception):
    """Raised inside this package; its edge turns it into NotTokenised."""

    def __init__(self, kind: Kind, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt before it is encoded."""

    text: str
    add_special_tokens: bool


class Renderer(Protocol):
    """How requests to one model become token ids. Pure and safe to call from several threads."""

    prefix: bytes  # tokens that `add_special_tokens` puts before every prompt, as TOKEN_TYPE
    suffix: bytes  # and after it
    segments_are_exact: bool  # `split` may be used

    def read(self, route: str, fields: Mapping[str, Any]) -> "PromptText | array[int]":
        """The request's text, or its token ids where it brings them. Raises CannotTokeniseError."""
        ...

    def split(self, text: str) -> list[str]:
        """Segments of `text`, in order. If `segments_are_exact`, their tokens joined are the tokens of `text`."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        """The tokens of `text` as TOKEN_TYPE. Other threads run meanwhile. Raises CannotTokeniseError."""
        ...
