"""A request that ended, as bytes: what its explanation is made of, before it is put in words. Pure.

Bytes, because ten thousand of them are kept: as objects they would be looked through by every full garbage collection.
Of one process only: the form may change with every version.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from router.events import Abort, FirstToken, PrefillDone, Reject, RequestCancelled, RequestDone, RequestFailed
from router.explain.explanation import Arrival, Outcome
from router.explain.steps import Asked, Decided, Note, Wait


class About(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All but the steps."""

    request_id: str
    public_id: str
    arrived_at_s: float  # by the core's clock
    outcome: Outcome
    arrival: Arrival
    asked: Asked


_KINDS: tuple[type[Any], ...] = (
    Decided, FirstToken, RequestDone, PrefillDone, Wait, Reject, Abort, RequestFailed, RequestCancelled,
)  # fmt: skip
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_NOTE_DECODERS = tuple(msgspec.msgpack.Decoder(kind) for kind in _KINDS)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(tuple[About, list[tuple[float, int, msgspec.Raw]]])


def pack(about: About, notes: Iterable[tuple[float, Note]]) -> bytes:
    """Everything in bytes."""
    return _ENCODER.encode((about, [(at_s, _NUMBERS[type(note)], note) for at_s, note in notes]))


def unpack(packed: bytes) -> tuple[About, list[tuple[float, Note]]]:
    """What was packed."""
    about, notes = _DECODER.decode(packed)
    return about, [(at_s, _NOTE_DECODERS[number].decode(note)) for at_s, number, note in notes]
