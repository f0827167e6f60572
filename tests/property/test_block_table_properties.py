"""BlockTable against a dict. Numbers: invariants of kvstore/block_table.py."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from kvstore.block_table import BlockTable, bucket_bytes, first_buckets_for

# Hashes as they are, and as they should not be: crowded into few buckets, few homes, or both.
uniform = st.integers(0, 2**64 - 1)
same_home = st.integers(0, 63).map(lambda number: number << 58)
same_bucket = st.integers(0, 63).map(lambda number: number << 34)
same_last_bucket = same_bucket.map(lambda block: 2**64 - 1 - block)
small = st.integers(0, 30)
hashes = st.one_of(uniform, same_home, same_bucket, same_last_bucket, small)
values = st.integers(1, 2**64 - 1)
OPS = ["put", "put", "put", "put without splits", "delete"]
changes = st.lists(st.tuples(st.sampled_from(OPS), hashes, values), max_size=120)


def store(table: BlockTable, block: int, value: int, may_split: bool = True) -> bool:
    """Put as the index does: splitting while that helps, else stretching."""
    while not table.put(block, value):
        if not may_split or not table.can_split(block):
            if not table.stretch(block):
                return False
            continue
        before, cost_bytes = table.bytes_used, table.split_bytes(block)
        table.split(block)
        assert table.bytes_used == before + cost_bytes  # invariant 4
    return True


def contents(table: BlockTable) -> dict[int, int]:
    found = [pair for bucket in range(table.num_buckets) for pair in table.entries(bucket)]
    assert len(dict(found)) == len(found)
    return dict(found)


# Stretched buckets all of whose hashes go to one side, some of them around the end.
UPPER = [("put", 2**64 - 1, 1), ("put", 2**64 - 1 - (1 << 34), 1), ("put without splits", 2**64 - 1 - (2 << 34), 1)]
LOWER = [("put", 6 << 34, 1), ("put", 7 << 34, 1), ("put without splits", 14 << 34, 1)]


@settings(max_examples=300)
@example([*UPPER, ("put", 1 << 63, 1)], 4, 1)
@example([*LOWER, ("put", 15 << 34, 1)], 4, 1)
@given(changes, st.sampled_from([4, 8, 16]), st.integers(1, 5))
def test_the_table_is_a_dict(history: list[tuple[str, int, int]], slots_per_bucket: int, first_buckets: int) -> None:
    table, twin = BlockTable(slots_per_bucket, first_buckets), dict[int, int]()
    for op, block, value in history:
        if op.startswith("put"):
            if store(table, block, value, may_split=op == "put"):
                twin[block] = value
            else:
                assert block not in twin  # only what is new can be refused
        else:
            table.delete(block)
            twin.pop(block, None)
        assert table.get(block) == twin.get(block, 0)
        assert table.num_blocks == len(twin)
    assert contents(table) == twin
    assert all(table.get(block) == twin.get(block, 0) for _, block, _ in history)
    assert all(len(table.entries(bucket)) < slots_per_bucket for bucket in range(table.num_buckets))  # invariant 2


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(0, 200))
def test_invariant_4_room_is_used_again(seed: int, num_blocks: int, num_kept: int) -> None:
    blocks = [xxh3_64_intdigest(number.to_bytes(4, "little"), seed) for number in range(num_blocks)]
    table = BlockTable(32, 3)  # of smaller buckets even uniform hashes crowd one, once in many thousand tables
    assert all(store(table, block, 1) for block in blocks)
    before = table.bytes_used
    for block in blocks[num_kept:]:
        table.delete(block)
    assert contents(table) == dict.fromkeys(blocks[:num_kept], 1)
    assert all(store(table, block, 2) for block in blocks)
    assert table.bytes_used == before


@given(st.lists(uniform, max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_put_new_stops_at_the_first_that_is_there_or_needs_a_split(blocks: list[int], start: int, stop: int) -> None:
    table, stop = BlockTable(8), min(stop, len(blocks))
    done = table.put_new(blocks, start, stop, 100) if start <= stop else 0
    stored = blocks[start : start + done]
    assert contents(table) == {block: 100 - at for at, block in enumerate(stored)}
    assert len(stored) == table.num_blocks
    if start <= stop and start + done < stop:
        assert table.get(blocks[start + done]) or not table.put(blocks[start + done], 1)


@given(st.lists(uniform, unique=True, max_size=60))
def test_put_many_stops_at_the_first_that_needs_a_split(blocks: list[int]) -> None:
    table = BlockTable(8)
    done = table.put_many(blocks, range(1, len(blocks) + 1))
    assert contents(table) == dict(zip(blocks[:done], range(1, done + 1), strict=True))
    assert done == len(blocks) or not table.put(blocks[done], 1)


@given(st.integers(200, 1 << 34), st.sampled_from([4, 64, 1024]))
def test_a_table_that_splits_all_its_buckets_again_and_again_nearly_fills_its_limit(limit: int, slots: int) -> None:
    num_buckets = first = first_buckets_for(limit, slots)
    if not first:
        assert limit < 2 * bucket_bytes(slots)
        return
    while num_buckets * 2 * (bucket_bytes(slots) + 4) <= limit:
        num_buckets *= 2
    assert first <= 31
    assert (
        num_buckets * (bucket_bytes(slots) + 4)
        <= limit
        < (num_buckets + max(1, num_buckets // 16) + 1) * (bucket_bytes(slots) + 4)
    )
