"""From a request to what the fleet's caches hold of its prompt: tokens, block hashes, overlap.

Invariants
 1. Nothing here waits for Redis, or for an engine. Tokenising long new text happens in a thread; the rest is memory.
 2. A prompt whose tokens are not known, or of a model whose predictions have drifted, has no overlap: it is routed by
    load, and a counter says so. Prompts are never logged.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from kvstore.blocks import chain_blocks, chain_root
from kvstore.fleet_index import FleetIndex
from kvstore.fleet_index import SlotsChanged as SourceSlotsChanged
from kvstore.types import WorkerId
from router.events import SlotsChanged
from router.parity import Parity
from router.tokens.tokenizer import PromptTokenizer
from router.tokens.types import Kind, NotTokenised
from router.types import NO_OVERLAP, Overlap
from workers.ranks import rank_id

_log = logging.getLogger(__name__)


class Located(Struct, frozen=True, gc=False):
    """What is known of one prompt."""

    num_tokens: int | None  # None: not tokenised
    overlap: Overlap  # what decisions may use
    seen: Overlap  # what the index says, also where it is not trusted
    tokens: "array[int] | None" = None  # encoded in one piece: as sure as the tokenizer itself


NOT_LOCATED = Located(None, NO_OVERLAP, NO_OVERLAP)


class PromptIndex:
    """The tokeniser and the prefix index, joined."""

    def __init__(self, tokenizer: PromptTokenizer, index: FleetIndex, block_size_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.index = index
        self.parity = Parity()
        self.not_tokenised: Counter[tuple[str, str]] = Counter()  # by model and reason
        self._block_size_tokens = block_size_tokens
        self._slots: dict[WorkerId, tuple[int, int, int]] = {}

    @property
    def is_loading(self) -> bool:
        """Some model's tokenizer is on its way."""
        return any(model.state == Kind.LOADING for model in self.tokenizer.stats().values())

    def on_slots_changed(self, change: SourceSlotsChanged) -> SlotsChanged:
        """The index has new slots for a source; returns what the core should know of it."""
        worker_id = rank_id(change.source.worker_id, change.source.dp_rank)
        device, host, disk = (-1 if slot is None else slot for slot in change.slots)
        if (device, host, disk) == (-1, -1, -1):
            self._slots.pop(worker_id, None)
        else:
            self._slots[worker_id] = device, host, disk
        return SlotsChanged(worker_id, (device, host, disk))

    async def locate(self, model: str, route: str, fields: Mapping[str, Any], adapter: str = "") -> Located:
        """Tokens and overlap of a request's prompt. An adapter changes the KV, not the tokens."""
        prompt = await self.tokenizer.tokenise(model, route, fields)
        if isinstance(prompt, NotTokenised):
            known = prompt.kind is not Kind.UNKNOWN_MODEL
            self.not_tokenised[model if known else "", prompt.kind] += 1  # clients invent names of models
            return NOT_LOCATED
        root = chain_root(adapter or None, prompt.cache_salt)
        chain = chain_blocks(prompt.tokens, self._block_size_tokens, root)
        seen = Overlap(self._block_size_tokens, self.index.match(chain))
        trusted = self.parity.is_trusted(model)
        tokens = prompt.tokens if prompt.is_whole else None
        return Located(prompt.num_tokens, seen if trusted else NO_OVERLAP, seen, tokens)

    def expect(self, located: Located, worker_id: WorkerId, engine_block_tokens: int) -> int:
        """Tokens of the prompt that this worker should have cached, in whole blocks of its engine."""
        if located.num_tokens is None:
            return 0
        slots = [slot for slot in self._slots.get(worker_id, ()) if slot >= 0]
        blocks = max(
            (blocks for blocks, holders in located.seen.levels for slot in slots if holders >> slot & 1), default=0
        )
        tokens = min(blocks * self._block_size_tokens, located.num_tokens - 1)
        return tokens - tokens % max(1, engine_block_tokens)

    def compare(self, model: str, located: Located, predicted_tokens: int, reported_tokens: int) -> None:
        """An answer says what was cached of its prompt."""
        if located.num_tokens is None:
            return
        if self.parity.observe(model, predicted_tokens, reported_tokens, self._block_size_tokens):
            if self.parity.is_trusted(model):
                _log.warning("model %s: cached tokens are predicted right again; prefix-aware routing resumes", model)
            else:
                error = self.parity.models()[model].error
                _log.error(
                    "model %s: cached tokens are predicted wrong (error %.0f%%); routed by load alone until they are"
                    " right: see docs/operations.md, 'Parity'", model, 100 * error,
                )  # fmt: skip
