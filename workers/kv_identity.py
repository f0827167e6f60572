"""From a run of engine blocks to the canonical hashes of its tokens (kvstore/blocks.py). Pure.

The canonical block size is the cluster's and may be smaller or larger than an engine's, and no multiple of it. So an
engine block completes none, one or several canonical blocks, and leaves a tail of tokens to the block after it.

What the engine hashes beside the tokens enters the chain too, because the engine shares no KV across it: LoRA name and
cache salt through the chain's root; anything else (multi-modal ids, digests of prompt embeddings) through the `extra`
of every canonical block that overlaps the engine block. `extra` is, for each such engine block, msgpack of
[first token of the engine block relative to the canonical block, keys].
"""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from kvstore.blocks import chain_root, extend_chain
from workers.kv_event_codec import BlockStored


class UndescribedBlocksError(Exception):
    """An event does not say enough of its blocks to name them."""


class ChainEnd(NamedTuple):
    """Where the chain stands after a block: the last canonical hash and what has come after it."""

    chain: int
    tail: "array[int] | None" = None
    carry: bytes = b""  # extra keys of the engine blocks that the tail comes from


# What one engine block is: the canonical blocks completed inside it, and where the chain stands after it.
Identity = tuple[tuple[int, ...], ChainEnd]


def identify(event: BlockStored, first: int, end: ChainEnd | None, block_size_tokens: int) -> list[Identity]:
    """The event's blocks from number `first` on, which follow `end`; None: they begin a prompt.

    `block_size_tokens` is the canonical one. Raises UndescribedBlocksError.
    """
    keys, size = event.extra_keys, event.block_size
    num_blocks = len(event.block_hashes)
    if keys is None or len(keys) != num_blocks or size < 1 or len(event.token_ids) != num_blocks * size:
        raise UndescribedBlocksError("tokens or extra keys are missing")
    try:
        tokens = array("I", event.token_ids[first * size :])
    except OverflowError as error:
        raise UndescribedBlocksError("a token id is not an unsigned 32-bit number") from error
    others = [_without_lora(event, keys[index]) for index in range(first, num_blocks)]
    if end is None:
        salt = next((key for key in others[0] if isinstance(key, str)), None)
        others[0] = tuple(key for key in others[0] if key is not salt)
        end = ChainEnd(chain_root(event.lora_name, salt))
    if not any(others) and not end.carry:
        return _plain_run(end, tokens, size, block_size_tokens)
    return _run_with_extras(end, tokens, others, block_size_tokens)


def _without_lora(event: BlockStored, keys: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """vLLM puts the LoRA's name first, on every block; the root carries it already."""
    if not keys:
        return ()
    return keys[1:] if event.lora_name is not None and keys[0] == event.lora_name else keys


def _plain_run(end: ChainEnd, tokens: "array[int]", size: int, block_size_tokens: int) -> list[Identity]:
    if size == block_size_tokens and end.tail is None:
        return [((block_hash,), ChainEnd(block_hash)) for block_hash in extend_chain(end.chain, tokens, size)]
    shift = 0
    if end.tail is not None:
        shift, tokens = len(end.tail), end.tail + tokens
    hashes = extend_chain(end.chain, tokens, block_size_tokens)
    identities: list[Identity] = []
    chain, done = end.chain, 0
    for position in range(shift + size, len(tokens) + 1, size):
        complete = position // block_size_tokens
        own = tuple(hashes[done:complete])
        chain, done = own[-1] if own else chain, complete
        tail = tokens[complete * block_size_tokens : position]
        identities.append((own, ChainEnd(chain, tail or None)))
    return identities


def _run_with_extras(
    end: ChainEnd, tokens: "array[int]", extras: Sequence[tuple[Any, ...]], block_size_tokens: int
) -> list[Identity]:
    size = len(tokens) // len(extras)
    shift = 0
    if end.tail is not None:
        shift, tokens = len(end.tail), end.tail + tokens
    identities: list[Identity] = []
    chain, carry, begin = end.chain, end.carry, 0  # `begin`: of the canonical block under way
    for index, keys in enumerate(extras):
        start, stop = shift + index * size, shift + (index + 1) * size
        own = []
        mixed = carry + _encode(start - begin, keys)
        while begin + block_size_tokens <= stop:
            (chain,) = extend_chain(chain, tokens[begin : begin + block_size_tokens], block_size_tokens, mixed)
            own.append(chain)
            begin += block_size_tokens
            mixed = _encode(start - begin, keys)
        carry = mixed if begin < stop else b""
        identities.append((tuple(own), ChainEnd(chain, tokens[begin:stop] or None, carry)))
    return identities


def _encode(offset_tokens: int, keys: tuple[Any, ...]) -> bytes:
    return msgspec.msgpack.encode([offset_tokens, keys]) if keys else b""
