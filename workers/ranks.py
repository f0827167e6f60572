"""A worker is one KV cache and one queue: of an engine with several data-parallel ranks, each rank is one. Pure.

Rank 0 has the engine's id, rank r above it `ENGINE/r`. The engine is asked for a rank by a header; without one it would
choose by itself.
"""

from dataclasses import replace

from kvstore.types import WorkerId
from workers.types import WorkerState

RANK_HEADER = "X-data-parallel-rank"  # vllm/entrypoints/generate/base/serving.py
_MARK = "/"


def rank_id(engine_id: WorkerId, rank: int) -> WorkerId:
    """The worker that a rank is."""
    return engine_id if rank == 0 else WorkerId(f"{engine_id}{_MARK}{rank}")


def engine_of(worker_id: WorkerId) -> WorkerId:
    """The engine that a worker is a rank of: its ranks live and die together."""
    return WorkerId(worker_id.partition(_MARK)[0])


def by_rank(engine: WorkerState) -> tuple[WorkerState, ...]:
    """The workers that an engine is: itself, unless it reports several ranks."""
    if not engine.ranks:
        return (engine,)
    return tuple(
        WorkerState(
            replace(engine.spec, id=rank_id(engine.spec.id, rank), rank=rank, kv_blocks_total=found.kv_blocks_total),
            engine.phase,
            found.load,
        )
        for rank, found in enumerate(engine.ranks)
    )
