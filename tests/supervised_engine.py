"""A real engine under the real supervisor, for synchronous tests."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from controlplane.embedded_redis import embedded_redis
from kvstore.leases import open_leases
from kvstore.settings import RedisSettings
from kvstore.types import WorkerId
from tests.engine_counters import wait_until
from tests.stack import describe
from workers.lease_keeper import LeaseKeeper
from workers.settings import EngineSettings
from workers.supervisor import EngineSupervisor
from workers.types import NO_LOAD, Phase, Role, WorkerState
from workers.worker import WorkerPlan, new_spec, vllm_command

_WORKER = WorkerId("supervised")
_REDIS = RedisSettings()
_REPOSITORY = str(Path(__file__).parents[1])


class SupervisedEngine:
    """What a test sees of it."""

    def __init__(self, folder: Path, plan: WorkerPlan) -> None:
        self._folder = folder
        self.plan = plan
        self._keeper: LeaseKeeper | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self.lines: list[str] = []

    @property
    def state(self) -> WorkerState:
        """As routers see it."""
        assert self._keeper is not None
        return self._keeper.state

    def wait_until_ready(self, timeout_s: float, *, after_epoch: int = 0) -> WorkerState:
        """Wait for READY of a later epoch."""
        wait_until(
            lambda: (
                self._keeper is not None and self.state.phase is Phase.READY and self.state.spec.epoch > after_epoch
            ),
            f"the engine is ready; its log is in {self._folder}",
            timeout_s,
        )
        return self.state

    def processes(self, title: str) -> list[psutil.Process]:
        """The engine's processes whose command line begins like that."""
        family = psutil.Process().children(recursive=True)
        return [process for process in family if " ".join(process.cmdline()).startswith(title)]

    def run(self) -> None:
        """The thread's work: supervise until told to stop."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._supervise())
        self._loop.close()

    def stop(self) -> None:
        """From another thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _supervise(self) -> None:
        log = (self._folder / "engine.log").open("a")

        def log_line(line: str) -> None:
            self.lines.append(line)
            print(line, file=log, flush=True)

        async with embedded_redis(self._folder) as url, open_leases(url, _REDIS.namespace) as store:
            spec = new_spec(_WORKER, self.plan.role, self.plan.model_name)
            self._keeper = LeaseKeeper(store, _REDIS, WorkerState(spec, Phase.STARTING, NO_LOAD))
            keeping = asyncio.create_task(self._keeper.run())
            supervisor = EngineSupervisor(
                self._keeper,
                self.plan.engine,
                lambda ports: vllm_command(self.plan, ports),
                load_interval_s=1.0,
                log_line=log_line,
            )
            try:
                await supervisor.run(self._stop)
            finally:
                self._keeper.stop()
                await keeping
                log.close()


@contextmanager
def supervised_engine(folder: Path, model: Path, settings: EngineSettings) -> Iterator[SupervisedEngine]:
    """Supervise a vLLM that serves `model` as "m"; nothing of it is left at the end."""
    settings = settings.model_copy(update={"env": {**settings.env, "PYTHONPATH": _REPOSITORY}})
    plan = WorkerPlan(_WORKER, Role.MIXED, "m", str(model), settings, "", _REDIS, str(folder))
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    engine = SupervisedEngine(folder, plan)
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        yield engine
    finally:
        engine.stop()
        thread.join(timeout=60)
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    assert not left, f"processes left behind: {[describe(process) for process in left]}"
