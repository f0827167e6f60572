"""What routers tell each other of tenants' use: a record on the board (`kvstore/board.py`). Pure."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from kvstore.usage_store import Used

_VERSION = 1


class TenantReport(Struct, frozen=True, array_like=True, gc=False):
    """What one router says of one tenant."""

    tenant: str
    period: str
    ended: Used  # in the period, at this router
    held_tokens: int  # of requests in flight, estimated
    minute: int
    requests: float
    requests_before: float
    tokens: float
    tokens_before: float


class _Record(Struct, frozen=True):
    version: int
    tenants: Sequence[TenantReport]


_DECODER = msgspec.json.Decoder(_Record)


def encode(reports: Sequence[TenantReport]) -> bytes:
    """Reports as they lie on the board."""
    return msgspec.json.encode(_Record(_VERSION, reports))


def decode(data: bytes) -> Sequence[TenantReport]:
    """The reports in `data`; empty where another version wrote it, or nobody of ours."""
    try:
        record = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return record.tenants if record.version == _VERSION else ()
