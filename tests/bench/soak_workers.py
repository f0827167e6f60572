"""Workers that come and go: fake engines that join, drain, die and misbehave, in front of which a router stays up."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random

from controlplane.config import Config
from kvstore.types import WorkerId
from tests.fleet import MODEL
from workers.fake import FakeEngine, FakeSettings, Plan
from workers.fake.plan import Action, Fault, Match, Timing
from workers.ports import free_ports
from workers.types import Role
from workers.worker import new_spec, run_joined

_TIMING = Timing(prefill_s_per_token=0.00002, decode_s_per_token=0.002)
_HEALTHY = Plan(timing=_TIMING)
_FAULTS = (
    Action.STATUS,
    Action.DISCONNECT_BEFORE_HEADERS,
    Action.DISCONNECT_AFTER_CHUNKS,
    Action.SSE_ERROR_FIRST,
)
_MOST = 6
_DRAIN_S = 5.0


@dataclass
class _Member:
    engine: FakeEngine
    stack: AsyncExitStack
    stop: asyncio.Event
    joined: "asyncio.Task[None]"


@dataclass
class Workers:
    """The fleet. One mixed worker, a prefill and a decode worker stay; others come and go."""

    config: Config
    redis_url: str
    rng: Random
    seen: Counter[str] = field(default_factory=Counter)
    _members: dict[str, _Member] = field(default_factory=dict)
    _made: int = 0

    async def start(self) -> None:
        """The three that stay."""
        for role in (Role.MIXED, Role.PREFILL, Role.DECODE):
            await self._add(role, f"stays-{role.value}")

    async def churn(self, stop: asyncio.Event, pause_s: float) -> None:
        """One change after the other until `stop`."""
        while not stop.is_set():
            try:
                async with asyncio.timeout(pause_s):
                    await stop.wait()
            except TimeoutError:
                await self._change()

    async def close(self) -> None:
        """Everybody leaves."""
        for name in list(self._members):
            await self._leave(name, drain_s=0.0)

    async def _change(self) -> None:
        guests = [name for name in self._members if not name.startswith("stays")]
        if len(self._members) < _MOST and (not guests or self.rng.random() < 0.5):
            self._made += 1
            await self._add(self.rng.choice((Role.MIXED, Role.MIXED, Role.PREFILL, Role.DECODE)), f"w{self._made}")
            self.seen["joined"] += 1
            return
        what, name = self.rng.choice(("drained", "died", "misbehaved", "restarted")), self.rng.choice(guests)
        self.seen[what] += 1
        if what == "misbehaved":
            fault = Fault(match=Match(every=3), action=self.rng.choice(_FAULTS))
            self._members[name].engine.set_plan(Plan(timing=_TIMING, faults=(fault,)))
        elif what == "drained":
            await self._leave(name, drain_s=_DRAIN_S)
        else:  # its lease goes on for a while: nobody tells the router
            self._members[name].engine.die()
            await asyncio.sleep(self.rng.uniform(0.0, 2.0))
            await self._leave(name, drain_s=0.0)
            if what == "restarted":
                await self._add(Role.MIXED, name)

    async def _add(self, role: Role, name: str) -> None:
        stack = AsyncExitStack()
        events, replay = free_ports("127.0.0.1", 2)
        settings = FakeSettings(
            model=MODEL,
            plan=_HEALTHY,
            engine_id=f"engine-{name}",
            kv_events_endpoint=f"tcp://127.0.0.1:{events}",
            kv_replay_endpoint=f"tcp://127.0.0.1:{replay}",
            remembered_requests=1,
        )
        engine = await stack.enter_async_context(FakeEngine(settings).serving())
        stop, config = asyncio.Event(), self.config
        spec = new_spec(WorkerId(name), role, MODEL)
        joined = asyncio.create_task(
            run_joined(
                engine.address,
                spec,
                config.engine,
                self.redis_url,
                config.redis,
                stop,
                index=config.index,
                kv_events=config.kv_events,
            )
        )
        self._members[name] = _Member(engine, stack, stop, joined)

    async def _leave(self, name: str, *, drain_s: float) -> None:
        """Give the lease back, let requests finish, end."""
        member = self._members.pop(name)
        member.stop.set()
        await asyncio.gather(member.joined, return_exceptions=True)  # an engine that died at once never joined
        for _ in range(int(drain_s / 0.05)):
            if not member.engine.running_seqs and not member.engine.num_leases:
                break
            await asyncio.sleep(0.05)
        await member.stack.aclose()
