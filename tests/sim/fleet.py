"""The workers of a simulation, as the routers know them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from kvstore.types import WorkerId
from router.openai import CHAT_ROUTE
from tests.builders import MODEL
from tests.sim.engine import At, Engine
from tests.sim.hardware import Hardware
from workers.types import Phase, Role, WorkerLoad, WorkerSpec, WorkerState

H100 = Hardware()


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers and routers of a simulation."""

    mixed: int = 0
    prefill: int = 0
    decode: int = 0
    hardware: Hardware = H100
    speeds: Sequence[float] = (1.0,)  # of the workers, in turn
    num_routers: int = 1
    exchange_s: float = 1.0  # between two exchanges of the routers' promises; inf: none
    heartbeat_s: float = 1.0  # between two load reports of a worker
    index_delay_s: float = 0.02  # from a block's computation to the routers' index


@dataclass(slots=True, eq=False)
class SimWorker:
    """An engine, what is said of it, and its slot in the prefix index."""

    spec: WorkerSpec
    engine: Engine
    slot: int
    dispatches: list[float] = field(default_factory=list)  # when a prompt was sent here

    def state(self) -> WorkerState:
        """Its next load report."""
        engine = self.engine
        load = WorkerLoad(
            running_seqs=engine.running_seqs,
            waiting_seqs=engine.waiting_seqs,
            kv_blocks_used=engine.cache.used_blocks,
            kv_tokens_used=engine.cache.used_blocks * self.spec.block_size_tokens,
            itl_sum_s=engine.itl_sum_s,
            itl_count=engine.itl_count,
            engine_steps=engine.num_steps,
            computed_prompt_tokens=engine.computed_prompt_tokens,
            prefix_query_tokens=engine.prefix_query_tokens,
            prefix_hit_tokens=engine.prefix_hit_tokens,
        )
        return WorkerState(self.spec, Phase.READY, load)


def build_workers(fleet: Fleet, at: At, open_slot: Callable[[], int], rng: Random) -> list[SimWorker]:
    """Engines on the clock `at`, idle."""
    roles = [Role.MIXED] * fleet.mixed + [Role.PREFILL] * fleet.prefill + [Role.DECODE] * fleet.decode
    workers = []
    for i, role in enumerate(roles):
        speed = fleet.speeds[i % len(fleet.speeds)]
        engine = Engine(fleet.hardware, at, Random(rng.getrandbits(64)), speed=speed)
        workers.append(SimWorker(_spec(f"{role}-{i:03}", role, fleet.hardware), engine, open_slot()))
    return workers


def _spec(worker_id: str, role: Role, hardware: Hardware) -> WorkerSpec:
    return WorkerSpec(
        id=WorkerId(worker_id),
        role=role,
        model=MODEL,
        address=f"http://{worker_id}:80",
        epoch=1,
        kv_blocks_total=hardware.kv_tokens // hardware.block_size_tokens,
        block_size_tokens=hardware.block_size_tokens,
        max_model_len_tokens=131_072,
        routes={CHAT_ROUTE: ("messages", "model")},
    )
