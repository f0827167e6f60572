"""The fleet as operators see it: what `/fleet` serves, and what `headrace status` and `top` print."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvstore.board import Board
from kvstore.intents import Intents
from kvstore.leases import LeaseStore
from kvstore.types import WorkerId
from router import standing
from router.drains import laid_over
from router.standing import Standing
from workers import lease_record
from workers.lease_record import LeaseRecordError
from workers.types import WorkerState


@dataclass(frozen=True, slots=True)
class RankStatus:
    """One data-parallel rank of an engine that has several."""

    running_seqs: int
    waiting_seqs: int
    kv_blocks_used: int
    kv_blocks_total: int


@dataclass(frozen=True, slots=True)
class DrainStatus:
    """An operator wants this worker to get nothing new."""

    by: str
    at_s: float  # Unix time
    reason: str
    routers_told: int  # routers that give it nothing new
    is_done: bool  # all routers, and neither they nor the engine have anything of it left


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's row. Its phase is `draining` too where an operator wants it to be."""

    id: str
    role: str
    phase: str
    model: str
    address: str
    epoch: int
    running_seqs: int
    waiting_seqs: int
    kv_blocks_used: int
    kv_blocks_total: int
    block_size_tokens: int
    lease_s: float  # how long the lease still runs
    lease_age_s: float = 0.0  # since it was written
    routed_seqs: int = 0  # requests that routers have there
    prefix_query_tokens: int = 0  # since the engine's start: looked up in its cache
    prefix_hit_tokens: int = 0  # of these, found
    adapters: tuple[str, ...] = ()
    ranks: tuple[RankStatus, ...] = ()
    drain: DrainStatus | None = None


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """One router."""

    id: str
    in_flight: int
    waiting: int
    waiting_by_class: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PauseStatus:
    """A class that takes no new requests."""

    class_name: str
    by: str
    at_s: float  # Unix time
    reason: str
    retry_after_s: float
    routers_told: int


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """Workers ordered by role and id; routers; what operators want."""

    workers: tuple[WorkerStatus, ...]
    routers: tuple[RouterStatus, ...] = ()
    paused: tuple[PauseStatus, ...] = ()
    absent_drains: tuple[str, ...] = ()  # to drain, and not in the fleet


@dataclass(frozen=True, slots=True)
class FleetReader:
    """Reads what there is in Redis, now. Every method raises RedisUnavailableError."""

    leases: LeaseStore
    board: Board
    lease_s: float  # `redis.lease_s`

    async def read(self, intents: Intents) -> FleetStatus:
        """The fleet."""
        return await read_fleet(self.leases, intents, await self.standings(), self.lease_s)

    async def standings(self) -> dict[str, Standing]:
        """What each router says of itself."""
        records = await self.board.standings.read_all()
        found = {replica_id: standing.decode(data) for replica_id, data in sorted(records.items())}
        return {replica_id: known for replica_id, known in found.items() if known is not None}


async def read_fleet(
    leases: LeaseStore,
    intents: Intents | None = None,
    standings: Mapping[str, Standing] | None = None,
    lease_s: float = 0.0,
) -> FleetStatus:
    """Look at the leases now; raises RedisUnavailableError. Records of other versions are left out."""
    intents, standings = intents or Intents(), standings or {}
    raw = await leases.read_all()
    remaining_s = await leases.remaining_s(raw)
    rows = []
    for worker_id, data in raw.items():
        try:
            state = lease_record.decode(data).state
        except LeaseRecordError:
            continue
        rows.append(_row(worker_id, state, intents, standings, remaining_s.get(worker_id, 0.0), lease_s))
    return FleetStatus(
        workers=tuple(sorted(rows, key=lambda row: (row.role, row.id))),
        routers=tuple(
            RouterStatus(name, one.in_flight, one.waiting, one.waiting_by_class) for name, one in standings.items()
        ),
        paused=_paused(intents, standings),
        absent_drains=tuple(sorted(set(intents.drained) - {row.id for row in rows})),
    )


def _row(
    worker_id: WorkerId,
    state: WorkerState,
    intents: Intents,
    standings: Mapping[str, Standing],
    remaining_s: float,
    lease_s: float,
) -> WorkerStatus:
    spec, load = state.spec, state.load
    return WorkerStatus(
        id=worker_id,
        role=spec.role.value,
        phase=laid_over(state, is_drained=worker_id in intents.drained).phase.value,
        model=spec.model,
        address=spec.address,
        epoch=spec.epoch,
        running_seqs=load.running_seqs,
        waiting_seqs=load.waiting_seqs,
        kv_blocks_used=load.kv_blocks_used,
        kv_blocks_total=spec.kv_blocks_total,
        block_size_tokens=spec.block_size_tokens,
        lease_s=round(remaining_s, 1),
        lease_age_s=round(max(0.0, lease_s - remaining_s), 1),
        routed_seqs=sum(one.seqs.get(worker_id, 0) for one in standings.values()),
        prefix_query_tokens=load.prefix_query_tokens,
        prefix_hit_tokens=load.prefix_hit_tokens,
        adapters=spec.adapters,
        ranks=tuple(
            RankStatus(rank.load.running_seqs, rank.load.waiting_seqs, rank.load.kv_blocks_used, rank.kv_blocks_total)
            for rank in state.ranks
        ),
        drain=_drain(worker_id, state, intents, standings),
    )


def _drain(
    worker_id: WorkerId, state: WorkerState, intents: Intents, standings: Mapping[str, Standing]
) -> DrainStatus | None:
    intent = intents.drained.get(worker_id)
    if intent is None:
        return None
    told = sum(worker_id in one.drained for one in standings.values())
    routed = sum(one.seqs.get(worker_id, 0) for one in standings.values())
    is_idle = routed == 0 and state.load.running_seqs == 0 and state.load.waiting_seqs == 0
    return DrainStatus(intent.by, intent.at_s, intent.reason, told, is_done=told == len(standings) and is_idle)


def _paused(intents: Intents, standings: Mapping[str, Standing]) -> tuple[PauseStatus, ...]:
    return tuple(
        PauseStatus(
            name,
            intent.by,
            intent.at_s,
            intent.reason,
            intent.retry_after_s,
            sum(name in one.paused for one in standings.values()),
        )
        for name, intent in intents.paused.items()
    )
