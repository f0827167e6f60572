"""The wire form of a worker's lease: JSON, versioned, readable in redis-cli.

`beat` rises with every renewal. A follower believes in a worker because its beat rises, not because a key is
there: the two differ when Redis is restored from an old snapshot.
"""

from dataclasses import dataclass

import msgspec

from workers.types import WorkerState

LEASE_VERSION = 1


class LeaseRecordError(Exception):
    """The bytes are no lease record that this version understands."""


@dataclass(frozen=True, slots=True)
class _Header:
    version: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One renewal of one worker's lease."""

    version: int
    beat: int
    state: WorkerState


def encode(state: WorkerState, beat: int) -> bytes:
    """The record as JSON bytes."""
    return msgspec.json.encode(LeaseRecord(version=LEASE_VERSION, beat=beat, state=state))


def decode(data: bytes) -> LeaseRecord:
    """The record in `data`; raises LeaseRecordError on anything else, an unknown version included."""
    try:
        # The version first: a record of another version may have any other shape.
        version = msgspec.json.decode(data, type=_Header).version
        if version != LEASE_VERSION:
            raise LeaseRecordError(f"lease record of version {version}; this Headrace reads {LEASE_VERSION}")
        return msgspec.json.decode(data, type=LeaseRecord)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LeaseRecordError(f"not a lease record: {error}") from error
