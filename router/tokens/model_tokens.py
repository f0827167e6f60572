"""One model's tokens: plan what to encode, look up what is known, join. No I/O and no waiting.

Invariants
 1. `plan`, `encode` and `is_right` change nothing and may run in any thread; everything else is for one thread.
 2. With segments distrusted, every new prompt is encoded whole.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.tokens.segments import SegmentCache, segment_key
from router.tokens.types import TOKEN_TYPE, CannotTokeniseError, Kind, NotTokenised, PromptText, Renderer

_CHECK_EVERY = 256  # prompts; the first is one of them
_MAX_SEGMENTS = 4096  # a prompt with more is encoded whole: looking them all up would take longer than that
_MAX_CHECKED_CHARS = 256 << 10  # a long prompt's check would keep a thread from other work


@dataclass(frozen=True, slots=True)
class Segment:
    """A text that is encoded on its own."""

    text: str
    key: str | bytes


@dataclass(slots=True)
class Plan:
    """A prompt on its way to tokens: `ids`, or `segments` whose tokens are being gathered."""

    prompt: PromptText
    ids: "array[int] | None" = None
    segments: Sequence[Segment] = ()
    is_whole: bool = False  # one segment, with special tokens
    tokens: list[bytes | None] = field(default_factory=list)  # of each segment


@dataclass(frozen=True, slots=True)
class ModelStats:
    """State and counters of one model."""

    state: str  # "ready", or the kind of NotTokenised that every request gets
    detail: str
    is_segmented: bool
    cache_bytes: int
    cache_segments: int
    hits: int  # segments found in the cache
    misses: int
    checks: int  # prompts compared with the encoding of the whole text
    mismatches: int


class ModelTokens:
    """Renderer, cache and counters of one model."""

    def __init__(self, cache_bytes: int) -> None:
        self.not_ready: NotTokenised | None = NotTokenised(Kind.LOADING)
        self._renderer: Renderer | None = None
        self._is_segmented = False
        self._cache = SegmentCache(cache_bytes)
        self._num_prompts = self._hits = self._misses = self._checks = self._mismatches = 0

    def start(self, renderer: Renderer) -> None:
        """The renderer is there."""
        self._renderer = renderer
        self._is_segmented = renderer.segments_are_exact
        self.not_ready = None

    def plan(self, route: str, fields: Mapping[str, Any], max_chars: int) -> Plan:
        """Read a request; raises CannotTokeniseError."""
        renderer = self._ready_renderer()
        prompt = renderer.read(route, fields)
        if not isinstance(prompt, PromptText):
            return Plan(PromptText("", add_special_tokens=False), ids=prompt)
        if len(prompt.text) > max_chars:
            raise CannotTokeniseError(Kind.TOO_LONG)
        texts = renderer.split(prompt.text) if self._is_segmented else ()
        if not self._is_segmented or len(texts) > _MAX_SEGMENTS:
            return Plan(prompt, segments=(Segment(prompt.text, b""),), is_whole=True)
        try:
            segments = [Segment(text, segment_key(text)) for text in texts]
        except UnicodeEncodeError:
            raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "lone surrogates") from None
        return Plan(prompt, segments=segments)

    def look_up(self, plan: Plan) -> list[int]:
        """Fill in the tokens that are known; returns the indices of the other segments."""
        if plan.is_whole:
            plan.tokens = [None]
            return [0]
        plan.tokens = [self._cache.get(segment.key) for segment in plan.segments]
        missing = [index for index, tokens in enumerate(plan.tokens) if tokens is None]
        self._misses += len(missing)
        self._hits += len(plan.tokens) - len(missing)
        return missing

    def encode(self, plan: Plan, missing: Sequence[int]) -> list[bytes]:
        """The tokens of the segments in `missing`; raises CannotTokeniseError."""
        encode = self._ready_renderer().encode
        special = plan.is_whole and plan.prompt.add_special_tokens
        return [encode(plan.segments[index].text, add_special_tokens=special) for index in missing]

    def join(self, plan: Plan, missing: Sequence[int], encoded: Sequence[bytes]) -> "array[int]":
        """The prompt's tokens; what was encoded for it is kept."""
        renderer = self._ready_renderer()
        for index, tokens in zip(missing, encoded, strict=True):
            plan.tokens[index] = tokens
            if not plan.is_whole and self._is_segmented:
                self._cache.put(plan.segments[index].key, tokens)
        self._num_prompts += 1
        parts = [tokens for tokens in plan.tokens if tokens is not None]
        if plan.prompt.add_special_tokens and not plan.is_whole:
            parts = [renderer.prefix, *parts, renderer.suffix]
        ids = array(TOKEN_TYPE)
        ids.frombytes(b"".join(parts))
        return ids

    def is_check_due(self, plan: Plan) -> bool:
        """This prompt should be compared with the encoding of its whole text."""
        is_due = (self._num_prompts - 1) % _CHECK_EVERY == 0
        return is_due and not plan.is_whole and len(plan.prompt.text) <= _MAX_CHECKED_CHARS

    def is_right(self, plan: Plan, ids: "array[int]") -> bool:
        """`ids` are the tokens of the whole text; raises CannotTokeniseError."""
        prompt = plan.prompt
        whole = self._ready_renderer().encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        return whole == ids.tobytes()

    def count_check(self, *, is_right: bool) -> bool:
        """A comparison's outcome. Returns True if it ended the use of segments."""
        self._checks += 1
        if is_right:
            return False
        self._mismatches += 1
        was_segmented, self._is_segmented = self._is_segmented, False
        self._cache.clear()
        return was_segmented

    def stats(self) -> ModelStats:
        """State and counters."""
        return ModelStats(
            state="ready" if self.not_ready is None else self.not_ready.kind.value,
            detail="" if self.not_ready is None else self.not_ready.detail,
            is_segmented=self._is_segmented,
            cache_bytes=self._cache.num_bytes,
            cache_segments=len(self._cache),
            hits=self._hits,
            misses=self._misses,
            checks=self._checks,
            mismatches=self._mismatches,
        )

    def _ready_renderer(self) -> Renderer:
        if self._renderer is None:
            raise CannotTokeniseError(Kind.LOADING)
        return self._renderer
