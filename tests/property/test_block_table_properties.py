"""BlockTable against a dict. Numbers: invariants of kvstore/block_table.py."""

from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvstore.block_table import BlockTable

# Hashes as they are, and as they should not be: crowded into few buckets, few homes, or both.
uniform = st.integers(0, 2**64 - 1)
same_home = st.integers(0, 63).map(lambda number: number << 34)
same_bucket = st.integers(0, 15).map(lambda number: number << 54 | number)
small = st.integers(0, 30)
hashes = st.one_of(uniform, same_home, same_bucket, small)
values = st.integers(1, 2**64 - 1)
changes = st.lists(st.tuples(st.sampled_from(["put", "put", "put", "delete"]), hashes, values), max_size=120)


def store(table: BlockTable, block: int, value: int) -> bool:
    """Put as the index does: splitting while that helps."""
    while not table.put(block, value):
        if not table.can_split(block):
            return False
        before, cost_bytes = table.bytes_used, table.split_bytes(block)
        table.split(block)
        assert table.bytes_used == before + cost_bytes  # invariant 3
    return True


def contents(table: BlockTable) -> dict[int, int]:
    found = [pair for bucket in range(table.num_buckets) for pair in table.entries(bucket)]
    assert len(dict(found)) == len(found)
    return dict(found)


@settings(max_examples=300)
@given(changes, st.sampled_from([4, 8, 16]))
def test_the_table_is_a_dict(history: list[tuple[str, int, int]], slots_per_bucket: int) -> None:
    table, twin = BlockTable(slots_per_bucket), dict[int, int]()
    for op, block, value in history:
        if op == "put":
            if store(table, block, value):
                twin[block] = value
            else:
                assert block not in twin  # only what is new can be refused
        else:
            table.delete(block)
            twin.pop(block, None)
        assert table.get(block) == twin.get(block, 0)
        assert table.num_blocks == len(twin)
    assert contents(table) == twin
    assert table.get_many([block for _, block, _ in history]) == [twin.get(block, 0) for _, block, _ in history]
    assert all(len(table.entries(bucket)) <= table.bucket_blocks for bucket in range(table.num_buckets))  # invariant 2


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(0, 200))
def test_invariant_3_room_is_used_again(seed: int, num_blocks: int, num_kept: int) -> None:
    blocks = [xxh3_64_intdigest(number.to_bytes(4, "little"), seed) for number in range(num_blocks)]
    table = BlockTable(8)
    assert all(store(table, block, 1) for block in blocks)
    before = table.bytes_used
    for block in blocks[num_kept:]:
        table.delete(block)
    assert contents(table) == dict.fromkeys(blocks[:num_kept], 1)
    assert all(store(table, block, 2) for block in blocks)
    assert table.bytes_used == before


@given(st.lists(uniform, unique=True, max_size=60))
def test_put_many_stops_at_the_first_that_needs_a_split(blocks: list[int]) -> None:
    table = BlockTable(8)
    done = table.put_many(blocks, range(1, len(blocks) + 1))
    assert contents(table) == dict(zip(blocks[:done], range(1, done + 1), strict=True))
    assert done == len(blocks) or not table.put(blocks[done], 1)
