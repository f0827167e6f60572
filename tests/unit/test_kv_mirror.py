"""The mirror, one situation at a time. Numbers: invariants of workers/kv_mirror.py."""

from dataclasses import replace
from typing import Any

import pytest

from kvstore.blocks import chain_blocks, chain_root
from kvstore.kv_types import KvChange, Op, Tier
from tests.kv_twin import Prompt, removed
from workers.kv_block_tree import ALL_TIERS, Block, BlockTree
from workers.kv_event_codec import AllBlocksCleared
from workers.kv_identity import ChainEnd
from workers.kv_mirror import KvMirror

SIZE = 4
PROMPT = Prompt(tuple(range(16)))
KEYS = PROMPT.keys(SIZE)
CHAIN = tuple(chain_blocks(list(PROMPT.tokens), SIZE, chain_root()))


@pytest.fixture
def mirror() -> KvMirror:
    return KvMirror(SIZE, max_blocks=1000)


def device(mirror: KvMirror) -> tuple[int, ...]:
    return tuple(mirror.snapshot()[Tier.DEVICE])


def test_a_stored_run_is_reachable_under_its_canonical_hashes(mirror: KvMirror) -> None:
    assert mirror.apply([PROMPT.stored(SIZE, 0, 2)]) == [KvChange(Op.STORE, Tier.DEVICE, CHAIN[:2])]
    assert mirror.apply([PROMPT.stored(SIZE, 2, 4)]) == [KvChange(Op.STORE, Tier.DEVICE, CHAIN[2:])]
    assert mirror.apply([PROMPT.stored(SIZE, 0, 4)]) == [], "told again"
    assert device(mirror) == CHAIN


def test_without_a_block_in_the_middle_what_follows_is_out_of_reach_until_it_is_back(mirror: KvMirror) -> None:
    mirror.apply([PROMPT.stored(SIZE, 0, 4)])
    assert mirror.apply([removed([KEYS[1]])]) == [KvChange(Op.REMOVE, Tier.DEVICE, (CHAIN[3], CHAIN[2], CHAIN[1]))]
    assert mirror.apply([removed([KEYS[3]])]) == [], "it was out of reach already"
    assert mirror.apply([PROMPT.stored(SIZE, 1, 2)]) == [KvChange(Op.STORE, Tier.DEVICE, CHAIN[1:3])]


def test_lora_salt_and_other_keys_separate_chains(mirror: KvMirror) -> None:
    lora = replace(PROMPT, lora_name="adapter")
    salted = replace(lora, salt="adapter")
    image = replace(PROMPT, extras=((), ("image", 2)))
    mirror.apply([prompt.stored(SIZE, 0, 4) for prompt in (PROMPT, lora, salted, image)])
    roots = [chain_root(), chain_root("adapter"), chain_root("adapter", "adapter")]
    chains = [chain_blocks(list(PROMPT.tokens), SIZE, root) for root in roots]
    with_image = image.canonical(SIZE, 4, SIZE)
    assert with_image[0] == CHAIN[0]
    assert set(with_image[1:]).isdisjoint(CHAIN)
    assert set(device(mirror)) == {block for chain in [*chains, with_image] for block in chain}


@pytest.mark.parametrize("size_tokens", [2, 3, 5, 8, 16, 17])
def test_the_canonical_size_may_be_any(size_tokens: int) -> None:
    mirror = KvMirror(size_tokens, max_blocks=1000)
    for index in range(4):
        mirror.apply([PROMPT.stored(SIZE, index, index + 1)])
    assert device(mirror) == tuple(chain_blocks(list(PROMPT.tokens), size_tokens, chain_root()))


def test_a_canonical_block_completed_by_two_engine_blocks_stays_until_both_are_gone() -> None:
    mirror = KvMirror(2, max_blocks=1000)
    one, other = Prompt((1, 2, 3, 4)), Prompt((1, 2, 5, 6))
    (shared, own) = chain_blocks([1, 2, 3, 4], 2, chain_root())
    mirror.apply([one.stored(4, 0, 1), other.stored(4, 0, 1)])
    assert mirror.apply([removed(one.keys(4))]) == [KvChange(Op.REMOVE, Tier.DEVICE, (own,))]
    assert mirror.apply([removed(other.keys(4))])[0].hashes[-1] == shared


def test_a_lower_tier_is_silent_until_used_and_then_repeats_what_is_above_it(mirror: KvMirror) -> None:
    mirror.apply([PROMPT.stored(SIZE, 0, 2)])
    assert set(mirror.snapshot()) == {Tier.DEVICE}
    assert mirror.apply([PROMPT.stored(SIZE, 1, 3, Tier.HOST)]) == [KvChange(Op.STORE, Tier.HOST, CHAIN[:3])]
    assert mirror.apply([removed([KEYS[1]])]) == [KvChange(Op.REMOVE, Tier.DEVICE, (CHAIN[1],))]
    assert mirror.apply([removed([KEYS[0]])]) == [
        KvChange(Op.REMOVE, Tier.DEVICE, (CHAIN[0],)),
        KvChange(Op.REMOVE, Tier.HOST, (CHAIN[2], CHAIN[1], CHAIN[0])),
    ]


def test_invariant_1_a_block_that_is_not_fully_described_is_left_out_unless_it_is_known(mirror: KvMirror) -> None:
    """As the offloading connectors send them: without extra keys, or without tokens."""
    on_host = replace_event(PROMPT.stored(SIZE, 0, 2, Tier.HOST), extra_keys=None)
    assert mirror.apply([on_host]) == []
    assert mirror.apply([replace_event(PROMPT.stored(SIZE, 0, 2), token_ids=())]) == []
    assert mirror.counters.undescribed == 4
    mirror.apply([PROMPT.stored(SIZE, 0, 2)])
    assert mirror.apply([on_host]) == [KvChange(Op.STORE, Tier.HOST, CHAIN[:2])]


def test_invariant_1_other_places_are_no_tier_of_this_worker(mirror: KvMirror) -> None:
    stored = PROMPT.stored(SIZE, 0, 1)
    others: list[dict[str, Any]] = [{"medium": "MOON"}, {"medium": None}, {"medium": "STORAGE", "locality": "REMOTE"}]
    assert mirror.apply([replace_event(stored, **other) for other in others]) == []
    assert mirror.counters.elsewhere == 3
    mirror.apply([stored])
    assert mirror.apply([replace_event(removed(KEYS[:1]), medium="MOON")]) == []
    assert len(mirror.apply([replace_event(removed(KEYS[:1]), medium=None)])) == 1, "to be safe: everywhere"


def test_invariant_3_a_store_proves_what_is_before_it(mirror: KvMirror) -> None:
    """Two copies of a block were held, the end of one was told; a third request builds on the other."""
    mirror.apply([PROMPT.stored(SIZE, 0, 2), PROMPT.stored(SIZE, 1, 2), removed(KEYS[:2])])
    assert device(mirror) == ()
    assert mirror.apply([PROMPT.stored(SIZE, 2, 3)]) == [KvChange(Op.STORE, Tier.DEVICE, CHAIN[:3])]
    mirror.apply([removed(KEYS[:3])])
    assert mirror.apply([PROMPT.stored(SIZE, 2, 3, Tier.HOST)]) == [], "the host's copy proves nothing"


def test_after_lost_events_nothing_is_believed_until_it_is_proved_again(mirror: KvMirror) -> None:
    mirror.apply([PROMPT.stored(SIZE, 0, 3)])
    assert mirror.distrust().op is Op.CLEAR
    assert device(mirror) == ()
    assert mirror.apply([PROMPT.stored(SIZE, 3, 4)]) == [KvChange(Op.STORE, Tier.DEVICE, CHAIN)]


def test_invariant_4_a_block_under_an_unknown_parent_is_left_out(mirror: KvMirror) -> None:
    assert mirror.apply([PROMPT.stored(SIZE, 1, 4)]) == []
    assert mirror.counters.orphans == 3
    mirror.apply([PROMPT.stored(SIZE, 0, 1)])
    assert device(mirror) == CHAIN[:1]


def test_invariant_5_there_is_an_end_to_what_is_known() -> None:
    mirror = KvMirror(SIZE, max_blocks=2)
    mirror.apply([PROMPT.stored(SIZE, 0, 4)])
    assert device(mirror) == CHAIN[:2]
    assert mirror.overflowed
    assert mirror.counters.overflowed == 2
    mirror.distrust()
    assert not mirror.overflowed
    other = Prompt((9, 9, 9, 9))
    mirror.apply([other.stored(SIZE, 0, 1)])
    assert device(mirror) == tuple(chain_blocks([9] * 4, SIZE, chain_root())), "what is only remembered makes room"


@pytest.mark.parametrize("fields", [{"group_idx": 1}, {"kv_cache_spec_kind": "sliding_window"}])
def test_invariant_6_with_several_groups_nothing_is_reported(mirror: KvMirror, fields: dict[str, Any]) -> None:
    mirror.apply([PROMPT.stored(SIZE, 0, 2)])
    (change,) = mirror.apply([replace_event(PROMPT.stored(SIZE, 0, 2), **fields)])
    assert change.op is Op.CLEAR
    assert mirror.dark
    assert mirror.apply([PROMPT.stored(SIZE, 0, 2)]) == []
    mirror.clear()
    assert not mirror.dark, "another life of the engine"


def test_invariant_7_a_reset_clears_every_tier(mirror: KvMirror) -> None:
    mirror.apply([PROMPT.stored(SIZE, 0, 2), PROMPT.stored(SIZE, 0, 2, Tier.HOST)])
    changes = mirror.apply([AllBlocksCleared(), PROMPT.stored(SIZE, 0, 1)])
    assert [change.op for change in changes] == [Op.CLEAR, Op.STORE]
    assert mirror.snapshot() == {Tier.DEVICE: [CHAIN[0]]}
    assert mirror.apply([PROMPT.stored(SIZE, 1, 2), AllBlocksCleared()]) == [KvChange(Op.CLEAR, Tier.DEVICE, ())]


def ghost(tree: BlockTree, key: int, parent: Block | None = None) -> Block:
    block = tree.add(key, parent, ((), ChainEnd(0)))
    assert block is not None
    tree.hold(block, Tier.HOST)
    tree.release(block, ALL_TIERS)
    return block


def test_a_parent_whose_last_other_child_makes_room_is_not_forgotten_with_it() -> None:
    """Invariant 3 of workers/kv_block_tree.py."""
    tree = BlockTree(max_blocks=2)
    parent = ghost(tree, 1)
    ghost(tree, 2, parent)
    child = tree.add(3, parent, ((), ChainEnd(0)))
    assert child is not None
    assert tree.get(2) is None
    tree.hold(child, Tier.HOST)
    assert tree.add(4, None, ((), ChainEnd(0))) is None, "a held block and its parent stay"
    assert tree.get(1) is parent


def test_a_parent_without_room_for_a_child_can_still_make_room_itself() -> None:
    tree = BlockTree(max_blocks=1)
    parent = ghost(tree, 1)
    assert tree.add(2, parent, ((), ChainEnd(0))) is None
    assert tree.add(3, None, ((), ChainEnd(0))) is not None
    assert tree.get(1) is None


def test_ghosts_are_a_bounded_share() -> None:
    mirror = KvMirror(SIZE, max_blocks=160)
    for number in range(100):
        prompt = Prompt((number, *range(15)))
        mirror.apply([prompt.stored(SIZE, 0, 4), removed(reversed(prompt.keys(SIZE)))])
    assert len(mirror) == 0
    assert mirror.num_known == 10


def replace_event(event: Any, **fields: Any) -> Any:
    return type(event)(**{name: getattr(event, name) for name in event.__struct_fields__} | fields)
