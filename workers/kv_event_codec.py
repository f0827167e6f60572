"""An engine's KV events, from bytes to typed values. Pure.

The authority is vLLM 0.32, vllm/distributed/kv_events.py. A payload is one msgpack batch, `[ts, [event, ...],
dp_rank]`; an event is a map with its class's name under `type`. Earlier releases sent an event as an array, the name
first and the fields in the order of the class: that is read as well.

Invariants
 1. `decode_batch` returns a batch or raises KvEventCodecError; no other exception leaves it.
 2. What is not known does not hide what is: an unknown kind of event and an unknown field are counted and left out.
 3. An event of a known kind whose fields do not fit is an error and never left out: it may have been a removal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

# vLLM's id of a block: 64 bits of its hash, or all of them under VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0.
EngineHash = int | bytes


class KvEventCodecError(Exception):
    """The bytes are no batch of KV events."""


class _Event(msgspec.Struct, tag=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """An event; its class's name is its `type`."""


class BlockStored(_Event, frozen=True, gc=False):
    """A run of blocks became findable in `medium`, after `parent_block_hash` (None: the run begins a prompt).

    `token_ids` has `block_size` tokens for each of `block_hashes`. `extra_keys`, one entry a block, is what the engine
    hashed beside the tokens: LoRA name, `[multi-modal id, offset]` pairs, cache salt (first block only), digests of
    prompt embeddings. None: not told, which is not the same as none.
    """

    block_hashes: tuple[EngineHash, ...]
    parent_block_hash: EngineHash | None
    token_ids: tuple[int, ...]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: tuple[tuple[Any, ...] | None, ...] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None


class BlockRemoved(_Event, frozen=True, gc=False):
    """Blocks are no longer findable in `medium`."""

    block_hashes: tuple[EngineHash, ...]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(_Event, frozen=True, gc=False):
    """The engine's prefix cache was reset. It does not say in which tiers."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True, slots=True)
class EventBatch:
    """One message's events. `ts_s` is the engine's wall clock; `unknown_*` count what was left out (invariant 2)."""

    ts_s: float
    events: Sequence[KvEvent]
    dp_rank: int | None = None
    unknown_events: int = 0
    unknown_fields: int = 0


class _Wire(msgspec.Struct, array_like=True, frozen=True, gc=False):
    ts: float
    events: tuple[KvEvent, ...]
    data_parallel_rank: int | None = None


_KINDS: Mapping[str, type[KvEvent]] = {kind.__name__: kind for kind in (BlockStored, BlockRemoved, AllBlocksCleared)}
_DECODER = msgspec.msgpack.Decoder(_Wire)
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_batch(payload: bytes) -> EventBatch:
    """The batch in `payload`; raises KvEventCodecError."""
    try:
        wire = _DECODER.decode(payload)
    except msgspec.ValidationError:
        return _decode_leniently(payload)
    except _MALFORMED as error:
        raise KvEventCodecError(f"not msgpack: {error}") from error
    return EventBatch(wire.ts, wire.events, wire.data_parallel_rank)


def _decode_leniently(payload: bytes) -> EventBatch:
    """Event by event: something in the batch is not as this version knows it."""
    try:
        parts = msgspec.msgpack.decode(payload)
    except _MALFORMED as error:
        raise KvEventCodecError(f"not msgpack: {error}") from error
    if not isinstance(parts, list) or len(parts) < 2 or not isinstance(parts[1], list):
        raise KvEventCodecError("not a batch: [timestamp, [event, ...], rank]")
    events, unknown_events, unknown_fields = [], 0, 0
    for raw in parts[1]:
        kind, fields, num_unknown = _known_part(raw)
        unknown_fields += num_unknown
        if kind is None:
            unknown_events += 1
        else:
            events.append(_convert(fields, kind))
    rank = parts[2] if len(parts) > 2 else None
    return EventBatch(
        _convert(parts[0], float), tuple(events), _convert(rank, int | None), unknown_events, unknown_fields
    )


def _known_part(raw: object) -> tuple[type[KvEvent] | None, dict[str, Any], int]:
    """An event's class (None: unknown), the fields that the class has, and the number of those it has not."""
    if isinstance(raw, dict):
        kind = _KINDS.get(str(raw.get("type")))
        names = kind.__struct_fields__ if kind is not None else ()
        fields = {name: raw[name] for name in names if name in raw}
        return kind, fields, len(raw) - 1 - len(fields) if kind is not None else 0
    if isinstance(raw, list) and raw and isinstance(raw[0], str):
        kind = _KINDS.get(raw[0])
        names = kind.__struct_fields__ if kind is not None else ()
        return kind, dict(zip(names, raw[1:], strict=False)), max(0, len(raw) - 1 - len(names)) if kind else 0
    raise KvEventCodecError("an event is neither a map nor an array with its kind first")


def _convert(value: object, wanted: Any) -> Any:
    if isinstance(value, dict) and isinstance(wanted, type):
        value = {"type": wanted.__name__, **value}
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as error:
        raise KvEventCodecError(f"an event's fields do not fit: {error}") from error
