"""What router replicas tell each other, so that limits hold for all of them together and no worker is everybody's pick.

Each replica writes what it has promised to a board in Redis and reads what the others wrote, a few times a second and
never on the request path. What engines computed of each class goes the same way, to the control plane. Redis away: the
others' promises fade from memory as their work gets done, the number of replicas stays what it was, and each keeps to
its share of the capacity.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from kvstore.board import Board
from kvstore.errors import RedisUnavailableError
from kvstore.settings import BoardSettings
from router.class_tokens import EngineTokens
from router.class_tokens import encode as encode_class_tokens
from router.events import ReplicasReported
from router.explain.decision_store import DecisionHistory
from router.interval import wait_at_most
from router.types import ReplicaReport

_log = logging.getLogger(__name__)
_VERSION = 1
_DECISIONS_AT_ONCE = 256
_DECISIONS_WITHOUT_PAUSE = 8  # putting one in words takes some 50 microseconds, in which requests wait
_MISSED_REPORTS = 8  # after as many a replica has gone


@dataclass(frozen=True, slots=True)
class _Record:
    version: int
    report: ReplicaReport


def encode(report: ReplicaReport) -> bytes:
    """A report as it lies on the board. An inf is written as null."""
    return msgspec.json.encode(_Record(_VERSION, report))


def decode(data: bytes) -> ReplicaReport | None:
    """The report in `data`; None where another version wrote it, or nobody of ours."""
    try:
        record = msgspec.json.decode(data, type=_Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record.report if record.version == _VERSION else None


class ReplicaExchange:
    """One replica's side of the board. Run `run()` as a task, end it with `stop()`."""

    def __init__(
        self,
        board: Board,
        replica_id: str,
        settings: BoardSettings,
        *,
        history: DecisionHistory,
        own_report: Callable[[str], ReplicaReport],
        class_tokens: Callable[[], EngineTokens],
        on_reports: Callable[[ReplicasReported], None],
    ) -> None:
        self._board = board
        self._replica_id = replica_id
        self._interval_s = settings.report_interval_s
        self._decision_ttl_s = settings.decision_ttl_s
        self._history = history
        self._own_report = own_report
        self._class_tokens = class_tokens
        self._on_reports = on_reports
        self._num_replicas = 1
        self._reachable = True
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Exchange every interval until `stop`."""
        while not self._stopping.is_set():
            await self.exchange()
            await wait_at_most(self._stopping, self._interval_s)

    def stop(self) -> None:
        """Let `run` end after the exchange under way."""
        self._stopping.set()

    async def exchange(self) -> None:
        """Write our report and the decisions made since the last one, read the others', tell the core."""
        try:
            await self._board.decisions.put(await self._take_decisions(), self._decision_ttl_s)
            report = encode(self._own_report(self._replica_id))
            ttl_s = _MISSED_REPORTS * self._interval_s
            await self._board.publish(self._replica_id, report, ttl_s)
            classes = encode_class_tokens(self._class_tokens())
            await self._board.classes.put(self._replica_id, classes, ttl_s)
            records = await self._board.read_all()
        except RedisUnavailableError as error:
            if self._reachable:
                _log.warning("other routers' promises are not known: %s; keeping to 1/%d", error, self._num_replicas)
                self._on_reports(ReplicasReported((), self._num_replicas))
            self._reachable = False
            return
        if not self._reachable:
            _log.warning("other routers' promises are known again")
        self._reachable = True
        decoded = [decode(data) for replica_id, data in sorted(records.items()) if replica_id != self._replica_id]
        reports = tuple(report for report in decoded if report is not None)
        self._num_replicas = len(reports) + 1
        self._on_reports(ReplicasReported(reports, self._num_replicas))

    async def _take_decisions(self) -> list[tuple[str, bytes]]:
        """Those made since the last time, in small lots."""
        taken: list[tuple[str, bytes]] = []
        while len(taken) < _DECISIONS_AT_ONCE:
            lot = self._history.take(_DECISIONS_WITHOUT_PAUSE)
            taken += lot
            if len(lot) < _DECISIONS_WITHOUT_PAUSE:
                break
            await asyncio.sleep(0)
        return taken
