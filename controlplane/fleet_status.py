"""The fleet as operators see it: what `/status` serves and `headrace status` prints."""

from dataclasses import dataclass

from kvstore.leases import LeaseStore
from workers import lease_record
from workers.lease_record import LeaseRecordError


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's row."""

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


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """All rows, ordered by role and id."""

    workers: tuple[WorkerStatus, ...]


async def read_fleet(store: LeaseStore) -> FleetStatus:
    """Look at the leases now; raises RedisUnavailableError. Records of other versions are left out."""
    raw = await store.read_all()
    remaining_s = await store.remaining_s(raw)
    rows = []
    for worker_id, data in raw.items():
        try:
            state = lease_record.decode(data).state
        except LeaseRecordError:
            continue
        rows.append(
            WorkerStatus(
                id=worker_id,
                role=state.spec.role.value,
                phase=state.phase.value,
                model=state.spec.model,
                address=state.spec.address,
                epoch=state.spec.epoch,
                running_seqs=state.load.running_seqs,
                waiting_seqs=state.load.waiting_seqs,
                kv_blocks_used=state.load.kv_blocks_used,
                kv_blocks_total=state.spec.kv_blocks_total,
                block_size_tokens=state.spec.block_size_tokens,
                lease_s=round(remaining_s.get(worker_id, 0.0), 1),
            )
        )
    return FleetStatus(tuple(sorted(rows, key=lambda row: (row.role, row.id))))
