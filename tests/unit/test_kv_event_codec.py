"""KV events from bytes. Numbers: invariants of workers/kv_event_codec.py."""

from typing import Any

import msgspec
import pytest

from workers.fake import blocks as fake
from workers.kv_event_codec import AllBlocksCleared, BlockRemoved, BlockStored, KvEventCodecError, decode_batch

STORED: dict[str, Any] = {
    "type": "BlockStored",
    "block_hashes": [7, 2**64 - 1],
    "parent_block_hash": 5,
    "token_ids": [1, 2, 3, 4],
    "block_size": 2,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [["pepper"], None],
    "group_idx": 0,
    "kv_cache_spec_kind": "full_attention",
}


def batch(*events: object, rank: object = 0) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), rank])


def test_what_vllm_sends_is_read_whole() -> None:
    events: list[fake.BlockStored | fake.BlockRemoved | fake.AllBlocksCleared] = [
        fake.BlockStored([7, 8], None, [1, 2, 3, 4], 2, None, "GPU", "adapter", extra_keys=[("adapter", "salt"), None]),
        fake.BlockRemoved([7], "GPU", group_idx=0),
        fake.AllBlocksCleared(),
    ]
    found = decode_batch(msgspec.msgpack.encode(fake.EventBatch(1.5, events, 3)))
    assert (found.ts_s, found.dp_rank, found.unknown_events, found.unknown_fields) == (1.5, 3, 0, 0)
    stored, removed, cleared = found.events
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.parent_block_hash, stored.token_ids) == ((7, 8), None, (1, 2, 3, 4))
    assert (stored.block_size, stored.lora_name, stored.extra_keys) == (2, "adapter", (("adapter", "salt"), None))
    assert removed == BlockRemoved((7,), medium="GPU", group_idx=0)
    assert cleared == AllBlocksCleared()


def test_a_batch_without_a_rank_is_read() -> None:
    assert decode_batch(msgspec.msgpack.encode([1.0, []])).dp_rank is None


def test_raw_hashes_are_read() -> None:
    whole = {**STORED, "block_hashes": [b"\1" * 32, b"\2" * 32], "parent_block_hash": b"\0" * 32}
    (event,) = decode_batch(batch(whole)).events
    assert isinstance(event, BlockStored)
    assert (event.block_hashes, event.parent_block_hash) == ((b"\1" * 32, b"\2" * 32), b"\0" * 32)


def test_invariant_2_what_is_unknown_is_counted_and_hides_nothing() -> None:
    found = decode_batch(batch({**STORED, "colour": 1, "mood": 2}, {"type": "BlockPainted"}, ["Other", 1], STORED))
    assert (found.unknown_events, found.unknown_fields) == (2, 2)
    assert found.events == decode_batch(batch(STORED, STORED)).events


def test_events_as_arrays_are_read_like_maps() -> None:
    fields = list(STORED.values())
    found = decode_batch(batch(fields, ["BlockRemoved", [7], "GPU"], ["AllBlocksCleared"]))
    assert found.events == (decode_batch(batch(STORED)).events[0], BlockRemoved((7,), "GPU"), AllBlocksCleared())
    assert decode_batch(batch(["BlockRemoved", [7], "GPU", 0, None, None, "news"])).unknown_fields == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91",
        batch(STORED)[:-1],
        msgspec.msgpack.encode({"ts": 1}),
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode(["now", []]),
        batch(3),
        batch([]),
        batch([1, 2]),
        batch(STORED, rank="first"),
        batch({**STORED, "token_ids": "abc"}),
        batch({key: value for key, value in STORED.items() if key != "block_size"}),
        batch({"type": "BlockRemoved"}),
        batch(["BlockRemoved"]),
        batch({"type": "BlockPainted"}, {"type": "BlockRemoved", "block_hashes": 7}),
        b"\x91" * 100_000,
    ],
)
def test_invariants_1_and_3_what_does_not_fit_is_one_error(payload: bytes) -> None:
    with pytest.raises(KvEventCodecError):
        decode_batch(payload)
