"""Block hashes against their definition, written down naively. `kvstore/blocks.py` has it in words."""

from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvstore.blocks import chain_blocks, chain_root, extend_chain

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=70)
sizes = st.integers(1, 20)
parents = st.integers(0, 2**64 - 1)
names = st.one_of(st.none(), st.text(max_size=5))


def naive(ids: list[int], size: int, parent: int, extra: bytes = b"") -> list[int]:
    hashes = []
    for end in range(size, len(ids) + 1, size):
        packed = b"".join(token.to_bytes(4, "little") for token in ids[end - size : end])
        parent = xxh3_64_intdigest(packed + extra, seed=parent)
        hashes.append(parent)
    return hashes


@given(tokens, sizes, parents, st.binary(max_size=9))
def test_hashes_are_as_defined(ids: list[int], size: int, parent: int, extra: bytes) -> None:
    assert chain_blocks(ids, size, parent) == naive(ids, size, parent)
    assert extend_chain(parent, ids, size, extra) == naive(ids, size, parent, extra)


@given(tokens, sizes, parents)
def test_it_does_not_matter_how_tokens_are_held(ids: list[int], size: int, parent: int) -> None:
    hashes = chain_blocks(ids, size, parent)
    for held in (tuple(ids), array("I", ids), array("Q", ids), np.array(ids, np.uint32), np.array(ids, np.int64)):
        assert chain_blocks(held, size, parent) == hashes
    backwards = np.array(ids[::-1], np.uint32)[::-1]  # a view that is not contiguous
    assert chain_blocks(backwards, size, parent) == hashes


@given(tokens, sizes, parents, st.integers(0, 70))
def test_a_chain_can_be_extended_from_any_block(ids: list[int], size: int, parent: int, at: int) -> None:
    whole = chain_blocks(ids, size, parent)
    num_blocks = min(at, len(whole))
    begin = whole[:num_blocks]
    assert begin + extend_chain([parent, *begin][-1], ids[num_blocks * size :], size) == whole


@given(tokens, sizes, parents, st.data())
def test_another_token_changes_its_block_and_all_after_it(
    ids: list[int], size: int, parent: int, data: st.DataObject
) -> None:
    whole = chain_blocks(ids, size, parent)
    if not whole:
        return
    at = data.draw(st.integers(0, len(whole) * size - 1))
    changed = chain_blocks([*ids[:at], (ids[at] + 1) % 2**32, *ids[at + 1 :]], size, parent)
    same = [one == other for one, other in zip(whole, changed, strict=True)]
    assert same == [block < at // size for block in range(len(whole))]


@given(names, names, names, names)
def test_roots_differ_where_adapters_or_salts_do(
    lora: str | None, salt: str | None, other_lora: str | None, other_salt: str | None
) -> None:
    assert (chain_root(lora, salt) == chain_root(other_lora, other_salt)) == ((lora, salt) == (other_lora, other_salt))
