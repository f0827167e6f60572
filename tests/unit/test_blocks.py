"""kvstore/blocks.py by example. The properties are in tests/property/test_blocks_properties.py."""

import numpy as np
import pytest

from kvstore.blocks import chain_blocks, chain_root, extend_chain


def test_hashes_stay_what_they_are() -> None:
    """Other routers and Redis hold them too: a change here is a change of format."""
    assert chain_root() == 0x3325230E1F285505
    assert chain_root("adapter", "salt") == 0x817DE4DA50F2D7BC
    assert chain_blocks([1, 2, 3, 4], 2, chain_root()) == [0x162608B87589D85D, 0xE66410D2B181FFCE]


def test_a_block_that_is_not_full_has_no_hash() -> None:
    root = chain_root()
    assert chain_blocks([], 4, root) == chain_blocks([1, 2, 3], 4, root) == []
    assert chain_blocks([1, 2, 3, 4, 5], 4, root) == chain_blocks([1, 2, 3, 4], 4, root)


def test_no_adapter_is_not_an_adapter_without_a_name_and_fields_do_not_run_together() -> None:
    roots = [chain_root(), chain_root(""), chain_root(None, ""), chain_root("ab", "c"), chain_root("a", "bc")]
    assert len(set(roots)) == len(roots)


def test_extra_keys_change_the_block_and_those_after_it() -> None:
    root = chain_root()
    plain, image = extend_chain(root, [1, 2], 2), extend_chain(root, [1, 2], 2, b"image")
    assert plain != image
    assert extend_chain(plain[0], [3, 4], 2) != extend_chain(image[0], [3, 4], 2)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_outside_u32_is_an_error_that_says_so(token: int) -> None:
    for tokens in ([1, token], (1, token), np.array([1, token], np.int64)):
        with pytest.raises(ValueError, match=r"outside 0\.\.2\*\*32-1"):
            chain_blocks(tokens, 2, chain_root())


def test_what_is_no_token_is_an_error() -> None:
    with pytest.raises(TypeError):
        chain_blocks([1.5, 2.5], 2, chain_root())  # type: ignore[list-item]


def test_bytes_are_ids_not_memory() -> None:
    assert chain_blocks(b"\1\2\3\4", 4, chain_root()) == chain_blocks([1, 2, 3, 4], 4, chain_root())
