"""Keeps one engine running: start, prove it works, watch it, restart it with backoff, stop it without orphans.

Invariants
 1. READY is published only after the engine has made a real token, and with experts divided over ranks one on each
    data-parallel rank; every start is a new epoch.
 2. At most one engine process tree of this worker exists; it is dead before the next one starts.
 3. When the worker stops, routers are told (DRAINING) before the engine refuses its first request.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import aiohttp

from workers.child_process import ChildProcess
from workers.engine_command import KV_TOPIC, EngineCommand, EnginePorts
from workers.engine_probe import EngineNotAnsweringError, EngineProbe, engine_session
from workers.errors import EngineStartError
from workers.kv_endpoints import KvEndpoints, engine_binds
from workers.kv_feed import KvFeeds
from workers.lease_keeper import LeaseKeeper
from workers.ports import free_port_runs
from workers.settings import EngineSettings
from workers.types import NO_LOAD, Phase, WorkerState

_log = logging.getLogger(__name__)
_POLL_S = 0.25
_STOP_GRACE_S = 10.0  # from SIGTERM to SIGKILL, after the drain


class EngineSupervisor:
    """Runs the engine of the worker whose lease `keeper` keeps; `feeds`, if any, tell routers what it has cached."""

    def __init__(
        self,
        keeper: LeaseKeeper,
        settings: EngineSettings,
        build_command: Callable[[EnginePorts], EngineCommand],
        *,
        load_interval_s: float,
        log_line: Callable[[str], None],
        feeds: KvFeeds | None = None,
    ) -> None:
        self._keeper = keeper
        self._settings = settings
        self._build_command = build_command
        self._load_interval_s = load_interval_s
        self._log_line = log_line
        self._feeds = feeds
        self.restarts = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the engine running until `stop` is set, then drain and stop it."""
        backoff_s = 1.0
        async with engine_session(self._settings) as session:
            while not stop.is_set():
                started_at_s = time.monotonic()
                try:
                    await self._run_once(session, stop)
                except (EngineStartError, EngineNotAnsweringError) as error:
                    if time.monotonic() - started_at_s > 2 * self._settings.max_backoff_s:
                        backoff_s = 1.0
                    self.restarts += 1
                    self._say(f"engine failed, next start in {backoff_s:g} s: {error}")
                    self._publish(Phase.STARTING)
                    await _wait_for(stop, backoff_s)
                    backoff_s = min(2 * backoff_s, self._settings.max_backoff_s)

    async def _run_once(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        """One life of the engine, from start to its end by `stop` (returns) or by failure (raises)."""
        host = self._settings.host
        data_ranks = self._settings.experts.data_parallel if self._settings.experts else 1
        http, *others = free_port_runs(host, (1, data_ranks, data_ranks, data_ranks))
        ports = EnginePorts(self._settings.http_port or http, *others)
        is_tls = self._settings.tls is not None and self._settings.tls.serves
        address = f"{'https' if is_tls else 'http'}://{host}:{ports.http}"
        self._new_epoch(address)
        if self._feeds is not None:  # before the engine: it connects to our socket, and drops what nobody hears
            endpoints = {rank: _kv_endpoints(host, ports, rank) for rank in range(data_ranks)}
            await self._feeds.follow(self._keeper.state.spec.epoch, endpoints, engine_is_up=False)
        command = self._build_command(ports)
        child = await ChildProcess.start(command.argv, command.env, grace_s=_STOP_GRACE_S, log=self._log_line)
        graceful = False
        try:
            probe = EngineProbe(session, address, self._settings)
            await self._until_ready(child, probe, stop)
            if not stop.is_set():
                await self._watch(child, probe, stop)
            await self._drain(probe)
            graceful = True
        finally:
            # Shielded: a cancelled supervisor still has to leave no process behind.
            await asyncio.shield(child.stop() if graceful else child.kill())

    async def _until_ready(self, child: ChildProcess, probe: EngineProbe, stop: asyncio.Event) -> None:
        deadline_s = time.monotonic() + self._settings.start_timeout_s
        while not await probe.is_healthy():
            if child.returncode is not None:
                raise EngineStartError(f"exited with status {child.returncode}; its last lines:\n{child.tail()}")
            if time.monotonic() > deadline_s:
                raise EngineStartError(
                    f"not up after engine.start_timeout_s={self._settings.start_timeout_s:g}; its last lines:\n"
                    + child.tail()
                )
            if await _wait_for(stop, _POLL_S):
                return
        identity = await probe.identity()
        await probe.check_alive(identity.model, identity.routes)
        if self._settings.experts is not None:
            await probe.check_experts(identity.model, self._settings.experts.data_parallel)
        spec = replace(
            self._keeper.state.spec,
            kv_blocks_total=identity.metrics.kv_blocks_total,
            block_size_tokens=identity.metrics.block_size_tokens,
            max_model_len_tokens=identity.max_model_len_tokens,
            routes=identity.routes,
            adapters=identity.adapters,
        )
        self._keeper.update(WorkerState(spec, Phase.READY, identity.metrics.load, identity.metrics.ranks))
        self._say(f"engine ready at {spec.address}")
        if self._feeds is not None:
            self._feeds.limit(spec.kv_blocks_total)
            await self._feeds.follow(spec.epoch, await probe.kv_event_sources())  # further ranks, if it has any

    async def _watch(self, child: ChildProcess, probe: EngineProbe, stop: asyncio.Event) -> None:
        spec = self._keeper.state.spec
        load_task = asyncio.create_task(self._report_load(probe))
        exit_task = asyncio.create_task(child.wait())
        try:
            while not await _wait_for(stop, self._settings.probe_interval_s, exit_task):
                await probe.check_alive(spec.model, dict(spec.routes))
                self._update_adapters(await probe.adapters())
            if not stop.is_set():
                raise EngineNotAnsweringError(f"exited with status {child.returncode}; its last lines:\n{child.tail()}")
        finally:
            load_task.cancel()
            exit_task.cancel()
            await asyncio.gather(load_task, exit_task, return_exceptions=True)

    async def _report_load(self, probe: EngineProbe) -> None:
        while True:
            await asyncio.sleep(self._load_interval_s)
            try:
                metrics = await probe.metrics()
            except EngineNotAnsweringError:
                continue  # the liveness check decides whether that matters
            self._keeper.update(replace(self._keeper.state, load=metrics.load, ranks=metrics.ranks))

    def _update_adapters(self, adapters: tuple[str, ...]) -> None:
        state = self._keeper.state
        if adapters != state.spec.adapters:
            self._say(f"adapters: {', '.join(adapters) or 'none'}")
            self._keeper.update(replace(state, spec=replace(state.spec, adapters=adapters)))

    async def _drain(self, probe: EngineProbe) -> None:
        """Tell routers to stop, then give running requests `shutdown_timeout_s` to finish."""
        self._publish(Phase.DRAINING)
        deadline_s = time.monotonic() + self._settings.shutdown_timeout_s
        await asyncio.sleep(min(2 * _POLL_S, self._settings.shutdown_timeout_s))
        while time.monotonic() < deadline_s:
            try:
                load = (await probe.metrics()).load
            except EngineNotAnsweringError:
                return
            if load.running_seqs + load.waiting_seqs == 0:
                return
            await asyncio.sleep(_POLL_S)

    def _new_epoch(self, address: str) -> None:
        # Wall-clock milliseconds: larger than any earlier epoch of this id, also after a restart of the supervisor.
        epoch = max(self._keeper.state.spec.epoch + 1, time.time_ns() // 1_000_000)
        spec = replace(self._keeper.state.spec, address=address, epoch=epoch)
        self._keeper.update(WorkerState(spec, Phase.STARTING, NO_LOAD))

    def _publish(self, phase: Phase) -> None:
        self._keeper.update(replace(self._keeper.state, phase=phase))

    def _say(self, message: str) -> None:
        _log.info("worker %s: %s", self._keeper.state.spec.id, message)
        self._log_line(f"supervisor: {message}")


def _kv_endpoints(host: str, ports: EnginePorts, rank: int) -> KvEndpoints:
    """Of a data-parallel rank, as workers/engine_command.py tells the engine."""
    events, replay = f"tcp://{host}:{ports.kv_events + rank}", f"tcp://{host}:{ports.kv_replay + rank}"
    return KvEndpoints(events, binds=not engine_binds(events), replay=replay, topic=KV_TOPIC)


async def _wait_for(stop: asyncio.Event, timeout_s: float, other: "asyncio.Task[int] | None" = None) -> bool:
    """Wait for `stop` or the other task, at most `timeout_s`; True if either came."""
    stop_task = asyncio.create_task(stop.wait())
    try:
        tasks = {stop_task, other} if other is not None else {stop_task}
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        stop_task.cancel()
        await asyncio.gather(stop_task, return_exceptions=True)
