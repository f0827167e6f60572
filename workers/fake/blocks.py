"""The fake engine's KV cache: which blocks are held and which are remembered, and the events it publishes. Pure.

Invariants
 1. Held and remembered blocks together never exceed the capacity, except that sequences already running may grow
    past it: a real engine would preempt one.
 2. Only full blocks are findable, by a hash chained over all tokens before; nobody's block is forgotten while held.
 3. A block is forgotten least recently used first, of one sequence the last block first.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

MEDIUM = "GPU"  # what vLLM says of its main KV memory, on a CPU too
_SPEC_KIND = "full_attention"


# The events and their batch mirror vLLM 0.32, distributed/kv_events.py: tag, field order, omitted defaults.
class KvEvent(msgspec.Struct, omit_defaults=True, frozen=True, tag=True):
    """An event on the wire: a map whose `type` is the class's name."""


class BlockStored(KvEvent, frozen=True):
    """Blocks became findable: a run of a chain that begins after `parent_block_hash`."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(KvEvent, frozen=True):
    """Blocks were forgotten."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(KvEvent, frozen=True):
    """Every block was forgotten."""


class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    """What one message carries: `ts` is wall-clock seconds."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


def chain_hashes(tokens: Sequence[int], block_size: int, salt: str | None, lora_name: str | None = None) -> list[int]:
    """Hashes of the full blocks of `tokens`: 64 bits, each over its own tokens and the hash before."""
    hashes: list[int] = []
    for end in range(block_size, len(tokens) + 1, block_size):
        hashes.append(_hash_block(hashes[-1] if hashes else None, tokens[end - block_size : end], salt, lora_name))
    return hashes


def _hash_block(parent: int | None, tokens: Sequence[int], salt: str | None, lora_name: str | None) -> int:
    root = f"{salt or ''}\0{lora_name or ''}".encode(errors="replace")
    start = root if parent is None else parent.to_bytes(8, "big")
    block_hash = hashlib.blake2b(array("I", tokens).tobytes(), digest_size=8)
    block_hash.update(start)
    return int.from_bytes(block_hash.digest(), "big")


def _extra_keys(held: "HeldBlocks", index: int) -> tuple[str, ...] | None:
    """As vLLM's: the adapter of every block, the salt of the first."""
    keys = (held.lora_name, held.salt if index == 0 else None)
    return tuple(key for key in keys if key) or None


@dataclass(slots=True, eq=False)
class HeldBlocks:
    """The blocks of one sequence. `hashes` are its findable ones, from the front; `tokens` all it has."""

    tokens: list[int]
    salt: str | None
    session_id: str | None
    num_blocks: int
    cached_tokens: int  # of its tokens, how many were found when it came
    lora_name: str | None = None
    hashes: list[int] = field(default_factory=list)


class BlockCache:
    """The blocks of one engine."""

    def __init__(self, capacity_blocks: int, block_size_tokens: int) -> None:
        self._capacity = capacity_blocks
        self._block_size = block_size_tokens
        self._holders: dict[int, int] = {}  # findable and held: how many sequences hold it
        self._remembered: OrderedDict[int, None] = OrderedDict()  # findable and not held, oldest use first
        self._unfinished = 0  # held, not findable
        self._events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []

    @property
    def used_blocks(self) -> int:
        """Blocks held by sequences; what vLLM calls usage."""
        return len(self._holders) + self._unfinished

    def findable(self) -> set[int]:
        """Hashes of all blocks that a new sequence could share."""
        return {*self._holders, *self._remembered}

    def take_events(self) -> list[BlockStored | BlockRemoved | AllBlocksCleared]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def try_hold(
        self, tokens: Sequence[int], salt: str | None, session_id: str | None = None, lora_name: str | None = None
    ) -> HeldBlocks | None:
        """Hold blocks for `tokens`, sharing those found; None if there is no room (nothing has changed then).

        The last token is always computed, so a prompt of whole blocks never shares its last one.
        """
        hashes = chain_hashes(tokens[: max(0, len(tokens) - 1)], self._block_size, salt, lora_name)
        shared = next((index for index, key in enumerate(hashes) if not self._has(key)), len(hashes))
        num_blocks = self._blocks_for(len(tokens))
        revived = sum(key in self._remembered for key in hashes[:shared])
        if self.used_blocks + revived + num_blocks - shared > self._capacity:
            return None
        for key in hashes[:shared]:
            self._hold(key)
        self._take_unfinished(num_blocks - shared)
        cached_tokens = shared * self._block_size
        return HeldBlocks(list(tokens), salt, session_id, num_blocks, cached_tokens, lora_name, hashes[:shared])

    def append(self, held: HeldBlocks, token: int) -> None:
        """The sequence has one more token."""
        held.tokens.append(token)
        if self._blocks_for(len(held.tokens)) > held.num_blocks:
            held.num_blocks += 1
            self._take_unfinished(1)

    def store(self, held: HeldBlocks, num_computed_tokens: int) -> None:
        """The KV of the first tokens is there: their full blocks become findable."""
        first, size = len(held.hashes), self._block_size
        last = num_computed_tokens // size
        if last <= first:
            return
        for index in range(first, last):
            parent = held.hashes[-1] if held.hashes else None
            key = _hash_block(parent, held.tokens[index * size : (index + 1) * size], held.salt, held.lora_name)
            self._unfinished -= 1
            self._hold(key)
            held.hashes.append(key)
        self._events.append(
            BlockStored(
                block_hashes=held.hashes[first:last],
                parent_block_hash=held.hashes[first - 1] if first else None,
                token_ids=held.tokens[first * size : last * size],
                block_size=size,
                lora_id=None if held.lora_name is None else 1,
                medium=MEDIUM,
                lora_name=held.lora_name,
                extra_keys=[_extra_keys(held, index) for index in range(first, last)],
                group_idx=0,
                kv_cache_spec_kind=_SPEC_KIND,
                session_id=held.session_id,
            )
        )

    def release(self, held: HeldBlocks) -> None:
        """The sequence has ended; what it stored is remembered while there is room."""
        self._unfinished -= held.num_blocks - len(held.hashes)
        held.num_blocks = 0
        for key in reversed(held.hashes):
            self._holders[key] -= 1
            if self._holders[key] == 0:
                del self._holders[key]
                self._remembered[key] = None
        held.hashes.clear()
        self._forget_surplus()

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _has(self, key: int) -> bool:
        return key in self._holders or key in self._remembered

    def _hold(self, key: int) -> None:
        self._remembered.pop(key, None)
        self._holders[key] = self._holders.get(key, 0) + 1

    def _take_unfinished(self, count: int) -> None:
        self._unfinished += count
        self._forget_surplus()

    def _forget_surplus(self) -> None:
        while self._remembered and self.used_blocks + len(self._remembered) > self._capacity:
            key, _ = self._remembered.popitem(last=False)
            self._events.append(BlockRemoved(block_hashes=[key], medium=MEDIUM, group_idx=0))
