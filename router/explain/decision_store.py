"""What the last explanations of one router are made of, bounded, findable by either id of a request. Pure.

Invariants
 1. There are never more than `max_records` records, nor more than `max_bytes` bytes of them, keys and bookkeeping
    included. To make room the oldest go first; a record that is larger than all of the room is not kept at all.
 2. A record is found under its request id and its public id. Clients may repeat a public id: it stands for the newest
    record that has it and is still here.
 3. `take` gives out each record at most once, oldest first, and only records that are still here.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence

from msgspec import Struct

from kvstore.types import RequestId
from router.events import Command, Event
from router.explain import explanation
from router.explain.explainer import Explainer
from router.explain.text import headers

# Of one record beside its bytes: two ids, entries in two tables and a queue. Measured: 380; tables grow by leaps.
RECORD_OVERHEAD_BYTES = 500


class _Record(Struct, frozen=True, gc=False):
    public_id: str
    data: bytes
    size_bytes: int


class DecisionStore:
    """Records of ended requests, oldest first."""

    def __init__(self, *, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        # In order of their ends. In a plain dict the oldest is behind the empty places of all that have gone before it.
        self._records: OrderedDict[RequestId, _Record] = OrderedDict()
        self._by_public_id: dict[str, list[RequestId]] = {}  # oldest first; a request id that is public is not in it
        self._untaken: deque[RequestId] = deque()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def num_bytes(self) -> int:
        """What the records take, by invariant 1's count."""
        return self._num_bytes

    def put(self, request_id: RequestId, public_id: str, data: bytes) -> None:
        """Keep a record, as the newest; one with the same request id is replaced."""
        if request_id in self._records:
            self._drop(request_id)
            self._untaken = deque(at for at in self._untaken if at != request_id)
        size_bytes = len(data) + RECORD_OVERHEAD_BYTES
        if size_bytes > self._max_bytes or self._max_records < 1:
            return
        while len(self._records) >= self._max_records or self._num_bytes + size_bytes > self._max_bytes:
            self._drop(next(iter(self._records)))
        self._records[request_id] = _Record(public_id, data, size_bytes)
        if public_id != request_id:
            self._by_public_id.setdefault(public_id, []).append(request_id)
        self._num_bytes += size_bytes
        self._untaken.append(request_id)

    def get(self, any_id: str) -> bytes | None:
        """The record of a request id or a public id."""
        record = self._records.get(RequestId(any_id))
        if record is None and any_id in self._by_public_id:
            record = self._records[self._by_public_id[any_id][-1]]
        return record.data if record is not None else None

    def take(self, limit: int) -> list[tuple[str, bytes]]:
        """Up to `limit` records not taken before, as (public id, record), for a store that outlives this process."""
        taken: list[tuple[str, bytes]] = []
        while self._untaken and len(taken) < limit:
            record = self._records[self._untaken.popleft()]
            taken.append((record.public_id, record.data))
        return taken

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert len(self._records) <= self._max_records, "invariant 1"
        sizes = [len(record.data) + RECORD_OVERHEAD_BYTES for record in self._records.values()]
        assert self._num_bytes == sum(sizes), "invariant 1"
        assert self._num_bytes <= self._max_bytes, "invariant 1"
        named = {(name, request_id) for name, ids in self._by_public_id.items() for request_id in ids}
        both = {(record.public_id, at) for at, record in self._records.items() if record.public_id != at}
        assert named == both, "invariant 2"
        assert all(self._by_public_id.values()), "invariant 2"
        assert list(self._untaken) == list(self._records)[len(self._records) - len(self._untaken) :], "invariant 3"

    def _drop(self, request_id: RequestId) -> None:
        record = self._records.pop(request_id)
        self._num_bytes -= record.size_bytes
        if record.public_id != request_id:
            same = self._by_public_id[record.public_id]
            same.remove(request_id)
            if not same:
                del self._by_public_id[record.public_id]
        if self._untaken and self._untaken[0] == request_id:  # the oldest record is nowhere else in it
            self._untaken.popleft()


class DecisionHistory:
    """What a router can say about its requests: those that live, and the last that ended."""

    def __init__(self, explainer: Explainer, store: DecisionStore) -> None:
        self._explainer = explainer
        self._store = store

    def announce(self, request_id: RequestId, public_id: str) -> None:
        """The id under which the client knows a request whose arrival is observed next."""
        self._explainer.announce(request_id, public_id)

    def observe(self, now_s: float, event: Event, commands: Sequence[Command]) -> None:
        """Take in one step of the core. Never raises, never waits."""
        for ended in self._explainer.observe(now_s, event, commands):
            self._store.put(ended.request_id, ended.public_id, ended.packed)

    def get(self, any_id: str) -> bytes | None:
        """An explanation as JSON, by request id or public id; of a request that lives, the story so far."""
        living = self._explainer.explanation(any_id)
        if living is None:
            ended = self._store.get(any_id)
            return None if ended is None else explanation.encode(self._explainer.tell(ended))
        return explanation.encode(living)

    def headers(self, request_id: RequestId) -> dict[str, str]:
        """`x-headrace-*` response headers of a request, dispatched or rejected; none for one that is not known."""
        living = self._explainer.explanation(request_id)
        if living is not None:
            return headers(living)
        ended = self._store.get(request_id)
        return headers(self._explainer.tell(ended)) if ended is not None else {}

    def take(self, limit: int) -> list[tuple[str, bytes]]:
        """Ended requests for a store that outlives this process: up to `limit`, each once, as (public id, JSON)."""
        taken = self._store.take(limit)
        return [(public_id, explanation.encode(self._explainer.tell(packed))) for public_id, packed in taken]
