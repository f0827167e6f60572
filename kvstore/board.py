"""The board of the router replicas: each writes a small record about itself again and again, and reads all others'.

Keys of one cluster (the braces are part of the names, see `kvstore/connection.py`):
    {namespace}:board:REPLICA_ID   the record, expiring unless written again (`kvstore/expiring_records.py`)
    {namespace}:board              set of replica ids
    {namespace}:classes:REPLICA_ID what it has had engines compute, by class of traffic, for the control plane
    {namespace}:classes            set of replica ids
    {namespace}:standing:REPLICA_ID  what operators want to know of it, for the control plane
    {namespace}:standing           set of replica ids
    {namespace}:using:REPLICA_ID   what tenants use at it now, for the other replicas
    {namespace}:using              set of replica ids
What a record says is the routers' business. Redis away: the others' last records are all there is to know.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvstore.connection import RedisLink
from kvstore.decision_records import DecisionRecords
from kvstore.expiring_records import ExpiringRecords
from kvstore.settings import RedisSettings


class Board:
    """The board of one namespace, and its decisions. Every method raises RedisUnavailableError and nothing else."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._records = ExpiringRecords(link, f"{{{namespace}}}:board", f"{{{namespace}}}:board")
        self.classes = ExpiringRecords(link, f"{{{namespace}}}:classes", f"{{{namespace}}}:classes")
        self.standings = ExpiringRecords(link, f"{{{namespace}}}:standing", f"{{{namespace}}}:standing")
        self.usage = ExpiringRecords(link, f"{{{namespace}}}:using", f"{{{namespace}}}:using")
        self.decisions = DecisionRecords(link, namespace)

    async def publish(self, replica_id: str, record: bytes, ttl_s: float) -> None:
        """Put up this replica's record for `ttl_s`, in place of its last one."""
        await self._records.put(replica_id, record, ttl_s)

    async def read_all(self) -> dict[str, bytes]:
        """Every replica's record that has not expired, one's own included."""
        return await self._records.read_all()

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()


@asynccontextmanager
async def open_board(url: str, namespace: str, redis: RedisSettings | None = None) -> AsyncIterator[Board]:
    """A board on a connection of its own, closed at the end. Nothing is connected before the first call."""
    board = Board(RedisLink(url, redis), namespace)
    try:
        yield board
    finally:
        await board.close()
