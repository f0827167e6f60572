"""What the page is shown on: routers, fake engines, Redis and the admin API, in a thread beside the browser's.

Two admin APIs look at the same fleet: one with tokens, one that is closed; either can be stopped and started again.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from controlplane.config import Config
from kvstore.leases import open_leases
from router.admin_tokens import digest_of
from tests.admin_server import OPERATOR, served, tokens_file
from tests.builders import make_worker
from tests.fake_experts import FakeExperts
from tests.fleet import MODEL, Fleet, fleet
from tests.placement_cases import domains
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.lease_keeper import LeaseKeeper
from workers.ports import free_ports
from workers.types import Phase, RankState, Role, WorkerLoad

_T = TypeVar("_T")

SLO = {
    "classes": {
        "interactive": {"ttft_s": 30, "tpot_s": 5, "deadline_s": 60, "value": 4},
        "chat": {"ttft_s": 60, "tpot_s": 5, "deadline_s": 300, "value": 2},
        "batch": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 600},
    }
}
ACME, GLOBEX = "hr-acme", "hr-globex"
IDENTITY = {
    "poll_s": 0.1,
    "keys": {digest_of(ACME): {"tenant": "acme"}, digest_of(GLOBEX): {"tenant": "globex"}},
    "tenants": {
        "acme": {"budget_tokens": 100_000, "requests_per_min": 600, "class": "chat"},
        "globex": {"budget_tokens": 10, "budget_period": "day", "models": [MODEL]},
    },
}
TIMING = Timing(prefill_s_per_token=0.0002, decode_s_per_token=0.01)
POOLS = {Role.PREFILL: ("prefill-0", "prefill-1"), Role.DECODE: ("decode-0", "decode-1", "decode-2")}


class FleetPools:
    """Pools of fake engines: a resize really starts them, or lets them leave."""

    def __init__(self, of: Fleet) -> None:
        self._fleet = of
        self._names = {role: list(names) for role, names in POOLS.items()}

    async def sizes(self) -> Mapping[Role, int]:
        return {role: len(names) for role, names in self._names.items()}

    async def resize(self, role: Role, size: int) -> None:
        names = self._names[role]
        while len(names) < size:
            names.append(f"{role.value}-{len(names)}")
            await self._fleet.add(role, names[-1], Plan(timing=TIMING))
        while len(names) > size:
            self._fleet.leaving[names.pop()].set()


@dataclass
class Admin:
    """One admin API, on a port that stays."""

    config: Config
    redis_url: str
    pools: FleetPools
    port: int
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> None:
        await self._stack.enter_async_context(served(self.config, self.redis_url, self.pools, self.port))

    async def stop(self) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@dataclass
class Stage:
    """What a test drives, from its own thread."""

    fleet: Fleet
    admin: Admin
    closed: Admin
    loop: asyncio.AbstractEventLoop

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do it on the stage; its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    def complete(self, prompt: str, **headers: str) -> int:
        """The status of one streamed completion."""
        return self.call(complete(self.fleet, prompt, headers))

    def operate(self, method: str, path: str, body: Any = None) -> Any:
        """What the admin API answers to an operator."""
        return self.call(self._operate(method, path, body))

    async def _operate(self, method: str, path: str, body: Any) -> Any:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        async with self.fleet.session.request(method, self.admin.url + path, json=body, headers=headers) as response:
            return await response.json()


async def complete(on: Fleet, prompt: str, headers: Mapping[str, str], max_tokens: int = 16) -> int:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with on.session.post(f"{on.url}/v1/completions", json=body, headers=named) as response:
        await response.read()
        return response.status


@contextmanager
def stage(
    folder: Path, timing: Timing = TIMING, slo: Mapping[str, Any] = SLO, identity: Mapping[str, Any] = IDENTITY
) -> Iterator[Stage]:
    """Set up, with engines that are ready."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="stage")
    thread.start()
    stack = AsyncExitStack()
    try:
        scene = _set_up(folder, timing, {"slo": slo, "identity": identity})
        setting = asyncio.run_coroutine_threadsafe(stack.enter_async_context(scene), loop)
        made, admin, closed = setting.result(timeout=60)
        yield Stage(made, admin, closed, loop)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(timeout=60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=30)
        loop.close()


@asynccontextmanager
async def _set_up(folder: Path, timing: Timing, given: Mapping[str, Any]) -> AsyncIterator[tuple[Fleet, Admin, Admin]]:
    sections = {
        **given,
        "pools": {"prefill": 2, "decode": 3, "mixed": 0, "max_size": 4},
        "experts": {"mode": "observe", "interval_s": 0.5, "expert_bytes": 1e3},
        "admin": {"tokens_file": str(tokens_file(folder))},
    }
    async with fleet(folder, router={"hand_off": "always"}, **sections) as made, AsyncExitStack() as stack:
        for role, names in POOLS.items():
            for name in names:
                await made.add(role, name, Plan(timing=timing))
        await stack.enter_async_context(_expert_engine(made))
        ready = sorted(name for names in POOLS.values() for name in names)
        for _ in range(2):
            await made.start_router()
            await made.wait_for_workers([*ready, *(f"moe-0/{rank}" if rank else "moe-0" for rank in range(4))])
        admins = _admins(made)
        for admin in admins:
            await admin.start()
            stack.push_async_callback(admin.stop)
        yield made, *admins


def _admins(made: Fleet) -> tuple[Admin, Admin]:
    pools, ports = FleetPools(made), free_ports("127.0.0.1", 2)
    closed = made.config.model_copy(update={"admin": made.config.admin.model_copy(update={"tokens_file": None})})
    return Admin(made.config, made.redis_url, pools, ports[0]), Admin(closed, made.redis_url, pools, ports[1])


@asynccontextmanager
async def _expert_engine(made: Fleet) -> AsyncIterator[None]:
    """An engine of a model of its own, with ranks and experts, whose load keeps rising."""
    async with FakeExperts(3, 64, 8, 9).serving() as experts:
        worker = make_worker("moe-0", Role.MIXED, phase=Phase.READY, model="moe")
        loads: Sequence[tuple[int, int, int]] = ((12, 0, 41), (14, 0, 48), (11, 0, 39), (19, 3, 88))
        ranks = tuple(RankState(100, WorkerLoad(running, waiting, used)) for running, waiting, used in loads)
        total = WorkerLoad(56, 3, 216)
        worker = replace(worker, spec=replace(worker.spec, address=experts.address), load=total, ranks=ranks)
        worker = replace(worker, spec=replace(worker.spec, kv_blocks_total=400))
        async with open_leases(made.redis_url, made.config.redis.namespace, made.config.redis) as store:
            keeper = LeaseKeeper(store, made.config.redis, worker)
            tasks = [asyncio.create_task(keeper.run()), asyncio.create_task(_serve(experts))]
            try:
                yield
            finally:
                keeper.stop()
                tasks[1].cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(experts: FakeExperts) -> None:
    while True:
        experts.serve(domains()["chat"])
        await asyncio.sleep(0.5)
