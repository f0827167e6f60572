"""Fake engines in the test's own process, and a client of them."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from workers.fake import FakeEngine, FakeSettings
from workers.fake.plan import Action, Fault, Match, Plan

PROMPT = "Tell me about water wheels. " * 10
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Fakes:
    """Running fakes and a client."""

    engines: list[FakeEngine]
    session: aiohttp.ClientSession

    async def complete(self, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
        """The answer to a completion request, with its HTTP `status` added."""
        body = {"model": engine.settings.model, "prompt": PROMPT, "max_tokens": 8, **fields}
        async with self.session.post(engine.address + COMPLETIONS, json=body) as response:
            answer: dict[str, Any] = await response.json()
            return {**answer, "status": response.status}

    async def events(self, engine: FakeEngine, **fields: Any) -> AsyncGenerator[bytes, None]:
        """The events of a streamed completion."""
        body = {"prompt": PROMPT, "max_tokens": 8, "stream": True, **fields}
        async with self.session.post(engine.address + COMPLETIONS, json=body) as response:
            assert response.status == 200
            async for line in response.content:
                if line.strip():
                    yield line


@asynccontextmanager
async def running_fakes(*settings: FakeSettings) -> AsyncIterator[Fakes]:
    """One fake for each of `settings`."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        engines = [await stack.enter_async_context(FakeEngine(one).serving()) for one in settings]
        yield Fakes(engines, session)


def run_with_fakes(test: Callable[[Fakes], Awaitable[None]], *settings: FakeSettings) -> None:
    """Run `test` with one fake for each of `settings`, by default one plain fake."""

    async def run() -> None:
        async with running_fakes(*(settings or (FakeSettings(),))) as fakes:
            await test(fakes)

    asyncio.run(run())


async def wait_until(condition: Callable[[], bool]) -> None:
    """Look until `condition` holds, ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def failing(action: Action, match: Match | None = None, **fields: Any) -> FakeSettings:
    """A fake with one fault, by default at the first generation request."""
    fault = Fault(match=match or Match(nth=1), action=action, **fields)
    return FakeSettings(plan=Plan(faults=(fault,)))
