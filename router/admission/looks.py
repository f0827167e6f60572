"""What was seen when a waiting request was last looked at, and whether that can be otherwise by now. Pure.

A look costs a whole decision, the queue is served again at every event, and most events change nothing for those that
wait. A request was left waiting because its cheapest worker has prompts enough for now, or because no decode batch took
it. Until something else is known it need not be looked at again before

    that worker takes work again;
    an event frees a worker that takes work, which may be the cheapest now;
    for want of room: a sequence ends;
    `LOOK_AGAIN_S` have passed, for all that changes little by little: batches, coefficients, reports.

Invariants
 1. What is remembered of a request is forgotten when it leaves the queue, and of all when the fleet or the other
    replicas change.
 2. A model's queue rests only if all that would be looked at was, and none of it left.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from kvstore.types import RequestId
from router.fleet.table import FleetTable

LOOK_AGAIN_S = 0.05


class Look(Struct, frozen=True):
    """Why a request was left waiting."""

    row: int  # of the worker that has prompts enough for now; -1: no room in a decode batch
    work_s: float  # that it would be there
    again_at_s: float


class News(Struct, frozen=True):
    """What an event may have changed for those that wait."""

    freed_row: int = -1  # of a worker with one prompt less before it
    is_room_freed: bool = False  # a sequence has ended


NO_NEWS = News()


class Looks:
    """Of all models. Only the core writes it."""

    def __init__(self, table: FleetTable, dispatch_ahead_s: float) -> None:
        self._table = table
        self._dispatch_ahead_s = dispatch_ahead_s
        self._last: dict[RequestId, Look] = {}
        self._rests: dict[str, tuple[Look, ...]] = {}  # one for each row, the first to be looked at again

    def is_open(self, row: int, now_s: float) -> bool:
        """Its worker takes work."""
        return self._table.backlog_at(row, now_s) <= self._dispatch_ahead_s

    def last(self, request_id: RequestId, now_s: float, news: News) -> Look | None:
        """What was seen, if it is so still."""
        look = self._last.get(request_id)
        return None if look is None or self._may_differ(look, now_s, news) else look

    def is_resting(self, model: str, now_s: float, news: News) -> bool:
        """Nobody in a model's queue can move."""
        rest = self._rests.get(model)
        return rest is not None and not any(self._may_differ(look, now_s, news) for look in rest)

    def saw(self, request_id: RequestId, row: int, work_s: float, now_s: float) -> Look:
        """A request was left waiting for the worker of a row, or for room (-1)."""
        look = self._last[request_id] = Look(row, work_s, now_s + LOOK_AGAIN_S)
        return look

    def rest(self, model: str, looks: Iterable[Look]) -> None:
        """All of a model's queue that is looked at was left waiting."""
        first: dict[int, Look] = {}
        for look in looks:
            known = first.get(look.row)
            if known is None or look.again_at_s < known.again_at_s:
                first[look.row] = look
        self._rests[model] = tuple(first.values())

    def stir(self, model: str) -> None:
        """Somebody has come into a model's queue."""
        self._rests.pop(model, None)

    def forget(self, request_id: RequestId) -> None:
        """It does not wait any more."""
        self._rests.clear()
        self._last.pop(request_id, None)

    def clear(self) -> None:
        """Everything may be otherwise."""
        self._rests.clear()
        self._last.clear()

    def __iter__(self) -> Iterator[RequestId]:
        return iter(self._last)

    def _may_differ(self, look: Look, now_s: float, news: News) -> bool:
        if now_s >= look.again_at_s:
            return True
        if look.row < 0:
            return news.is_room_freed
        if self.is_open(look.row, now_s):
            return True
        return news.freed_row >= 0 and self.is_open(news.freed_row, now_s)
