"""Block hashes: what a block is called by everyone who speaks of it, computed from token ids alone.

    root = xxh3_64(lora name, cache salt), each with a marker and its length, so that no two pairs look alike
    h_0  = xxh3_64(tokens of block 0 [+ extra], seed=root)
    h_i  = xxh3_64(tokens of block i [+ extra], seed=h_(i-1))

Tokens are hashed as little-endian u32. `extra` stands for what else the block's KV depends on (an image, say). The
parent is the seed rather than the first eight bytes because that needs no copy: 80 ns a block of 16 tokens, not 143. A
hash names its whole prefix, so equal hashes mean equal prompts up to there, but for chance (64 bits). Engines hash in
their own ways and seeds; their hashes never get here. xxh3 is no cryptographic hash: who can choose tokens can make two
prompts look alike to routing, which costs a wrong guess of a cache hit and nothing else.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Tokens = Sequence[int] | array[int] | NDArray[np.integer[Any]]


def chain_root(lora_name: str | None = None, cache_salt: str | None = None) -> int:
    """The parent of every first block under this LoRA adapter and cache salt (None: without), a u64."""
    return xxh3_64_intdigest(_field(lora_name) + _field(cache_salt))


def chain_blocks(tokens: "Tokens", block_size_tokens: int, root: int) -> list[int]:
    """The hashes of a prompt's full blocks, in order; a last block that is not full has none.

    `tokens`: ids in u32, as a list, `array("I")` or numpy array; of u32, an array is hashed where it lies.
    Raises ValueError for an id outside u32 and TypeError for one that is no integer.
    """
    return extend_chain(root, tokens, block_size_tokens)


def extend_chain(parent: int, tokens: "Tokens", block_size_tokens: int, extra: bytes = b"") -> list[int]:
    """The hashes of the full blocks of `tokens`, which follow the block `parent`; `extra` is mixed into each of them.

    Tokens and errors as for `chain_blocks`.
    """
    packed = _packed(tokens)
    block_bytes = 4 * block_size_tokens
    full_bytes = len(packed) - len(packed) % block_bytes
    blocks: Iterable[tuple[bytes]] = struct.iter_unpack(f"{block_bytes}s", packed[:full_bytes])
    if extra:
        return [parent := xxh3_64_intdigest(block + extra, parent) for (block,) in blocks]
    return [parent := xxh3_64_intdigest(block, parent) for (block,) in blocks]


def _packed(tokens: "Tokens") -> memoryview:
    """Token ids as the bytes of little-endian u32."""
    view = None if isinstance(tokens, list) else _u32_view(tokens)
    if view is None or sys.byteorder == "big":
        try:
            # `iter`: given bytes, an array would take them for its memory instead of for ids.
            ids = array("I", tokens if isinstance(tokens, list) else iter(tokens))
        except OverflowError as error:
            raise ValueError(f"a token id is outside 0..2**32-1: {error}") from error
        if sys.byteorder == "big":
            ids.byteswap()
        view = memoryview(ids)
    return view.cast("B")


def _u32_view(tokens: object) -> memoryview | None:
    """Its memory, if that is a row of u32 already."""
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]  # whether it has any is the question
    except TypeError:
        return None
    return view if view.format in ("I", "L") and view.itemsize == 4 and view.ndim == 1 and view.contiguous else None


def _field(text: str | None) -> bytes:
    if text is None:
        return b"\0"
    encoded = text.encode()
    return b"\1" + len(encoded).to_bytes(8, "little") + encoded
