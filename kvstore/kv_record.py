"""The wire form of what workers say about their KV blocks: compact, versioned. Pure.

A mark and a version in four bytes, then msgpack with the hashes as packed little-endian u64. A snapshot has its epoch
and its sequence number in front, at fixed places, so that they are read without reading the rest.

    deltas     "KVD" version   msgpack [[worker_id, dp_rank, epoch, seq, [[op, tier, hashes], ...]], ...]
    snapshot   "KVS" version   epoch u64, seq u64   msgpack [worker_id, dp_rank, [[tier, hashes], ...]]
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from kvstore.errors import KvRecordError
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.types import WorkerId

KV_RECORD_VERSION = 1
SNAPSHOT_HEAD_BYTES = 20

_DELTAS_MARK = b"KVD"
_SNAPSHOT_MARK = b"KVS"
_MARK_BYTES = 4
_HASH_BYTES = 8
_HEAD = struct.Struct("<QQ")

_Text = Annotated[str, Meta(min_length=1)]
_Count = Annotated[int, Meta(ge=0)]
_FromOne = Annotated[int, Meta(ge=1)]


class _Change(Struct, array_like=True, frozen=True):
    op: Op
    tier: Tier
    hashes: bytes


class _Delta(Struct, array_like=True, frozen=True):
    worker_id: _Text
    dp_rank: _Count
    epoch: _Count
    seq: _FromOne
    changes: tuple[_Change, ...]


class _Held(Struct, array_like=True, frozen=True):
    tier: Tier
    hashes: bytes


class _Snapshot(Struct, array_like=True, frozen=True):
    worker_id: _Text
    dp_rank: _Count
    held: tuple[_Held, ...]


_decode_deltas = msgspec.msgpack.Decoder(tuple[_Delta, ...]).decode
_decode_snapshot = msgspec.msgpack.Decoder(_Snapshot).decode


def encode_deltas(deltas: Sequence[KvDelta]) -> bytes:
    """Several deltas, of any sources, as one record."""
    body = [
        _Delta(
            delta.source.worker_id,
            delta.source.dp_rank,
            delta.epoch,
            delta.seq,
            tuple(_Change(change.op, change.tier, _pack(change.hashes)) for change in delta.changes),
        )
        for delta in deltas
    ]
    return _DELTAS_MARK + bytes([KV_RECORD_VERSION]) + msgspec.msgpack.encode(body)


def decode_deltas(data: bytes) -> tuple[KvDelta, ...]:
    """The deltas in `data`; raises KvRecordError on anything else, an unknown version included."""
    _check_mark(data, _DELTAS_MARK)
    try:
        return tuple(_delta(found) for found in _decode_deltas(memoryview(data)[_MARK_BYTES:]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KvRecordError(f"not a record of KV deltas: {error}") from error


def size_bytes(delta: KvDelta) -> int:
    """About how many bytes it takes in a record."""
    return 64 + sum(8 + _HASH_BYTES * len(change.hashes) for change in delta.changes)


def encode_snapshot(snapshot: KvSnapshot) -> bytes:
    """The snapshot as one record."""
    held = tuple(_Held(tier, _pack(hashes)) for tier, hashes in sorted(snapshot.held.items()))
    body = _Snapshot(snapshot.source.worker_id, snapshot.source.dp_rank, held)
    head = _SNAPSHOT_MARK + bytes([KV_RECORD_VERSION]) + _HEAD.pack(snapshot.epoch, snapshot.seq)
    return head + msgspec.msgpack.encode(body)


def decode_snapshot_head(data: bytes) -> tuple[int, int]:
    """(epoch, seq) of the snapshot of which `data` is the first SNAPSHOT_HEAD_BYTES; raises KvRecordError."""
    _check_mark(data, _SNAPSHOT_MARK)
    if len(data) < SNAPSHOT_HEAD_BYTES:
        raise KvRecordError("a KV snapshot that ends in its head")
    epoch, seq = _HEAD.unpack_from(data, _MARK_BYTES)
    return epoch, seq


def decode_snapshot(data: bytes) -> KvSnapshot:
    """The snapshot in `data`; raises KvRecordError on anything else, an unknown version included."""
    epoch, seq = decode_snapshot_head(data)
    try:
        body = _decode_snapshot(memoryview(data)[SNAPSHOT_HEAD_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KvRecordError(f"not a KV snapshot: {error}") from error
    held = {part.tier: _unpack(part.hashes) for part in body.held}
    if len(held) != len(body.held):
        raise KvRecordError("a KV snapshot that lists a tier twice")
    return KvSnapshot(SourceId(WorkerId(body.worker_id), body.dp_rank), epoch, seq, held)


def _delta(found: _Delta) -> KvDelta:
    changes = tuple(_change(change) for change in found.changes)
    return KvDelta(SourceId(WorkerId(found.worker_id), found.dp_rank), found.epoch, found.seq, changes)


def _change(found: _Change) -> KvChange:
    if found.op is Op.CLEAR and found.hashes:
        raise KvRecordError("a KV delta whose CLEAR lists blocks")
    return KvChange(found.op, found.tier, tuple(_unpack(found.hashes)))


def _check_mark(data: bytes, mark: bytes) -> None:
    if data[: len(mark)] != mark or len(data) < _MARK_BYTES:
        raise KvRecordError(f"a record that does not begin with {mark.decode()}")
    version = data[len(mark)]
    if version != KV_RECORD_VERSION:
        raise KvRecordError(f"a {mark.decode()} record of version {version}; this Headrace reads {KV_RECORD_VERSION}")


def _pack(hashes: Sequence[int]) -> bytes:
    packed = array("Q", hashes)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(data: bytes) -> "array[int]":
    if len(data) % _HASH_BYTES:
        raise KvRecordError(f"{len(data)} bytes of block hashes are no multiple of {_HASH_BYTES}")
    hashes = array("Q")
    hashes.frombytes(data)
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes
