"""An engine's block table without a thought for speed or memory: what workers/kv_mirror.py has to agree with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvstore.blocks import chain_root, extend_chain
from kvstore.kv_types import KvChange, Op, Tier
from workers.kv_event_codec import AllBlocksCleared, BlockRemoved, BlockStored, EngineHash, KvEvent

MEDIUMS = {Tier.DEVICE: "GPU", Tier.HOST: "CPU", Tier.DISK: "STORAGE"}


@dataclass(frozen=True)
class Prompt:
    """Tokens under a LoRA adapter and a salt; `extras`: other keys of each engine block."""

    tokens: tuple[int, ...]
    lora_name: str | None = None
    salt: str | None = None
    extras: tuple[tuple[Any, ...], ...] = ()

    def keys(self, block_size: int) -> list[EngineHash]:
        """The engine's ids of its full blocks: of everything up to their end."""
        return [hash(self._prefix(end, block_size)) & (1 << 64) - 1 for end in self._ends(block_size)]

    def stored(self, block_size: int, first: int, last: int, tier: Tier = Tier.DEVICE) -> BlockStored:
        """The event that stores its blocks `first` to `last`, exclusive."""
        keys = self.keys(block_size)
        return BlockStored(
            block_hashes=tuple(keys[first:last]),
            parent_block_hash=keys[first - 1] if first else None,
            token_ids=self.tokens[first * block_size : last * block_size],
            block_size=block_size,
            medium=MEDIUMS[tier],
            lora_name=self.lora_name,
            extra_keys=tuple(self._extra_keys(index) for index in range(first, last)),
            group_idx=0,
            kv_cache_spec_kind="full_attention",
        )

    def canonical(self, block_size: int, num_blocks: int, size_tokens: int) -> list[int]:
        """Canonical hashes complete within its first `num_blocks` engine blocks."""
        chain = [chain_root(self.lora_name, self.salt)]
        for begin in range(0, num_blocks * block_size - size_tokens + 1, size_tokens):
            over = range(begin // block_size, (begin + size_tokens - 1) // block_size + 1)
            extra = b"".join(
                msgspec.msgpack.encode([index * block_size - begin, self._extra(index)])
                for index in over
                if self._extra(index)
            )
            chain += extend_chain(chain[-1], self.tokens[begin : begin + size_tokens], size_tokens, extra)
        return chain[1:]

    def _ends(self, block_size: int) -> range:
        return range(block_size, len(self.tokens) + 1, block_size)

    def _prefix(self, end: int, block_size: int) -> object:
        extras = tuple(self._extra(index) for index in range(end // block_size))
        return self.tokens[:end], self.lora_name or "", self.salt or "", extras

    def _extra(self, index: int) -> tuple[Any, ...]:
        return self.extras[index] if index < len(self.extras) else ()

    def _extra_keys(self, index: int) -> tuple[Any, ...] | None:
        lora = (self.lora_name,) if self.lora_name is not None else ()
        salt = (self.salt,) if self.salt is not None and not index else ()
        return (*lora, *self._extra(index), *salt) or None


@dataclass
class Known:
    """A block: what is before it, what it completes, where it lies."""

    parent: EngineHash | None
    completes: list[int]
    tiers: set[Tier] = field(default_factory=set)


class Twin:
    """Follows the events; everything is worked out anew whenever it is asked for."""

    def __init__(self, prompts: Sequence[Prompt], block_size: int, size_tokens: int) -> None:
        self.contents: dict[EngineHash, Known] = {}
        self.parent_of: dict[int, int | None] = {}
        for prompt in prompts:
            keys = prompt.keys(block_size)
            for index, key in enumerate(keys):
                before = prompt.canonical(block_size, index, size_tokens)
                upto = prompt.canonical(block_size, index + 1, size_tokens)
                self.contents[key] = Known(keys[index - 1] if index else None, upto[len(before) :])
                self.parent_of |= {h: upto[at - 1] if at else None for at, h in enumerate(upto)}
        self.known: set[EngineHash] = set()
        self.published = {Tier.DEVICE}

    def apply(self, event: KvEvent) -> None:
        """One event."""
        if isinstance(event, AllBlocksCleared):
            self.forget_all()
        elif isinstance(event, BlockRemoved):
            for key in event.block_hashes:
                self.contents[key].tiers.discard(_tier(event))
        else:
            self._store(event, _tier(event))

    def forget_all(self) -> None:
        """The engine has nothing, and we know nothing."""
        self.distrust()
        self.known.clear()

    def distrust(self) -> None:
        """Nothing counts as held."""
        for block in self.contents.values():
            block.tiers.clear()
        self.published = {Tier.DEVICE}

    def reachable(self) -> dict[Tier, set[int]]:
        """By published tier."""
        return {
            tier: {h for key in self.known if self._is_reachable(key, tier) for h in self.contents[key].completes}
            for tier in self.published
        }

    @property
    def num_held(self) -> int:
        """Blocks in some tier."""
        return sum(bool(self.contents[key].tiers) for key in self.known)

    def _store(self, event: BlockStored, tier: Tier) -> None:
        parent = event.parent_block_hash
        if tier is Tier.DEVICE and parent in self.known:
            for key in self._path(parent):
                self.contents[key].tiers.add(tier)
        linked = parent is None or parent in self.known
        for key in event.block_hashes:
            linked = linked or key in self.known
            if linked:
                self.known.add(key)
                self.published.add(tier)
                self.contents[key].tiers.add(tier)

    def _is_reachable(self, key: EngineHash, tier: Tier) -> bool:
        return all(min(self.contents[step].tiers, default=len(Tier)) <= tier for step in self._path(key))

    def _path(self, key: EngineHash | None) -> list[EngineHash]:
        path = []
        while key is not None:
            path.append(key)
            key = self.contents[key].parent
        return path


class Follower:
    """What a router has after all changes, on plain sets. Checks the order that KvChange promises."""

    def __init__(self, parent_of: dict[int, int | None]) -> None:
        self.held: dict[Tier, set[int]] = {tier: set() for tier in Tier}
        self._parent_of = parent_of

    def apply(self, changes: Iterable[KvChange]) -> None:
        """Changes in order."""
        for change in changes:
            if change.op is Op.CLEAR:
                assert change.hashes == ()
                self.held = {tier: set() for tier in Tier}
            held = self.held[change.tier]
            for block_hash in change.hashes:
                parent = self._parent_of[block_hash]
                if change.op is Op.STORE:
                    assert parent is None or parent in held, "a child before its parent"
                    assert block_hash not in held
                    held.add(block_hash)
                else:
                    held.remove(block_hash)
                    assert not any(self._parent_of[other] == block_hash for other in held), "a parent before its child"


def removed(keys: Iterable[EngineHash], tier: Tier = Tier.DEVICE) -> BlockRemoved:
    """The event that removes these."""
    return BlockRemoved(tuple(keys), medium=MEDIUMS[tier], group_idx=0)


def _tier(event: BlockStored | BlockRemoved) -> Tier:
    return next(tier for tier, medium in MEDIUMS.items() if medium == event.medium)
