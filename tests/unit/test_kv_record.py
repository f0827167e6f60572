"""The wire form of KV deltas and snapshots."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import KvRecordError
from kvstore.kv_record import (
    SNAPSHOT_HEAD_BYTES,
    decode_deltas,
    decode_snapshot,
    decode_snapshot_head,
    encode_deltas,
    encode_snapshot,
    size_bytes,
)
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.types import WorkerId

U64 = st.integers(0, 2**64 - 1)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
sources = st.builds(SourceId, names.map(WorkerId), st.integers(0, 1000))
hashes = st.lists(U64, max_size=20).map(tuple)
changes = st.one_of(
    st.builds(KvChange, st.sampled_from([Op.STORE, Op.REMOVE]), st.sampled_from(Tier), hashes),
    st.builds(KvChange, st.just(Op.CLEAR), st.sampled_from(Tier), st.just(())),
)
deltas = st.builds(KvDelta, sources, U64, st.integers(1, 2**64 - 1), st.lists(changes, max_size=5).map(tuple))
snapshots = st.builds(KvSnapshot, sources, U64, U64, st.dictionaries(st.sampled_from(Tier), hashes))

DELTAS = encode_deltas([KvDelta(SourceId(WorkerId("w")), 5, 6, (KvChange(Op.STORE, Tier.HOST, (7, 8)),))])
SNAPSHOT = encode_snapshot(KvSnapshot(SourceId(WorkerId("w")), 5, 6, {Tier.DEVICE: (7, 8)}))


@given(st.lists(deltas, max_size=5))
def test_deltas_are_read_as_they_were_written(written: list[KvDelta]) -> None:
    assert decode_deltas(encode_deltas(written)) == tuple(written)


@given(snapshots)
def test_a_snapshot_is_read_as_it_was_written(written: KvSnapshot) -> None:
    data = encode_snapshot(written)
    found = decode_snapshot(data)
    held = {tier: tuple(hashes) for tier, hashes in found.held.items()}
    assert KvSnapshot(found.source, found.epoch, found.seq, held) == written
    assert decode_snapshot_head(data[:SNAPSHOT_HEAD_BYTES]) == (written.epoch, written.seq)


@given(deltas)
def test_the_size_is_not_underestimated_by_much(delta: KvDelta) -> None:
    size = len(encode_deltas([delta]))
    assert size <= size_bytes(delta) + 4 * len(delta.source.worker_id)
    assert size_bytes(delta) <= size + 64 + 8 * len(delta.changes)


def test_a_block_takes_eight_bytes() -> None:
    large = KvDelta(SourceId(WorkerId("w")), 1, 1, (KvChange(Op.STORE, Tier.DEVICE, tuple(range(10_000))),))
    assert len(encode_deltas([large])) < 80_050
    assert len(encode_snapshot(KvSnapshot(large.source, 1, 1, {Tier.DEVICE: range(10_000)}))) < 80_050


@given(st.binary(max_size=200))
def test_random_bytes_are_one_error(data: bytes) -> None:
    for decode, mark in ((decode_deltas, DELTAS[:4]), (decode_snapshot, SNAPSHOT[:4])):
        for offered in (data, mark + data):
            try:
                decode(offered)
            except KvRecordError:
                pass


@given(st.sampled_from([DELTAS, SNAPSHOT]), st.integers(0, 200), st.binary(max_size=3), st.integers(0, 8))
def test_damaged_records_are_one_error_or_another_record(record: bytes, at: int, new: bytes, cut: int) -> None:
    damaged = record[:at] + new + record[at + cut :]
    for decode in (decode_deltas, decode_snapshot, decode_snapshot_head):
        try:
            decode(damaged)
        except KvRecordError:
            pass


def body(record: bytes, head_bytes: int) -> list[object]:
    found: list[object] = msgspec.msgpack.decode(record[head_bytes:])
    return found


def changed(record: bytes, head_bytes: int, value: object) -> bytes:
    return record[:head_bytes] + msgspec.msgpack.encode(value)


HASHES = b"\x07" + bytes(7)
GARBAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not begin"),
    "a lease": (b'{"version":1}', "does not begin"),
    "mark alone": (b"KVD", "does not begin"),
    "next version": (b"KVD\x02" + DELTAS[4:], "version 2; this Headrace reads 1"),
    "half": (DELTAS[:-1], "not a record of KV deltas"),
    "more after it": (DELTAS + b"\x00", "not a record of KV deltas"),
    "half a hash": (changed(DELTAS, 4, [["w", 0, 5, 6, [[0, 0, HASHES[:-1]]]]]), "multiple of 8"),
    "no worker": (changed(DELTAS, 4, [["", 0, 5, 6, []]]), "not a record of KV deltas"),
    "rank below 0": (changed(DELTAS, 4, [["w", -1, 5, 6, []]]), "not a record of KV deltas"),
    "seq 0": (changed(DELTAS, 4, [["w", 0, 5, 0, []]]), "not a record of KV deltas"),
    "no such op": (changed(DELTAS, 4, [["w", 0, 5, 6, [[9, 0, b""]]]]), "not a record of KV deltas"),
    "no such tier": (changed(DELTAS, 4, [["w", 0, 5, 6, [[0, 9, b""]]]]), "not a record of KV deltas"),
    "clear with blocks": (changed(DELTAS, 4, [["w", 0, 5, 6, [[2, 0, HASHES]]]]), "CLEAR lists blocks"),
    "invalid UTF-8": (DELTAS.replace(b"\xa1w", b"\xa1\xff"), "not a record of KV deltas"),
    "deep": (b"KVD\x01" + b"\x91" * 100_000, "not a record of KV deltas"),
}
SNAPSHOT_GARBAGE: dict[str, tuple[bytes, str]] = {
    "deltas": (DELTAS, "does not begin"),
    "next version": (b"KVS\x02" + SNAPSHOT[4:], "version 2; this Headrace reads 1"),
    "head alone": (SNAPSHOT[:SNAPSHOT_HEAD_BYTES], "not a KV snapshot"),
    "half a head": (SNAPSHOT[: SNAPSHOT_HEAD_BYTES - 1], "ends in its head"),
    "half": (SNAPSHOT[:-1], "not a KV snapshot"),
    "half a hash": (changed(SNAPSHOT, 20, ["w", 0, [[0, HASHES[:-1]]]]), "multiple of 8"),
    "a tier twice": (changed(SNAPSHOT, 20, ["w", 0, [[0, HASHES], [0, HASHES]]]), "a tier twice"),
    "no such tier": (changed(SNAPSHOT, 20, ["w", 0, [[3, HASHES]]]), "not a KV snapshot"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_record_of_deltas(what: str) -> None:
    data, said = GARBAGE[what]
    with pytest.raises(KvRecordError, match=said):
        decode_deltas(data)


@pytest.mark.parametrize("what", SNAPSHOT_GARBAGE)
def test_what_is_no_snapshot(what: str) -> None:
    data, said = SNAPSHOT_GARBAGE[what]
    with pytest.raises(KvRecordError, match=said):
        decode_snapshot(data)


def test_fields_that_a_later_headrace_adds_are_ignored() -> None:
    assert decode_deltas(changed(DELTAS, 4, [[*body(DELTAS, 4)[0], "later"]])) == decode_deltas(DELTAS)  # type: ignore[misc]
