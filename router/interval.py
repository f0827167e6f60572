"""The pause between two rounds of whatever tells or looks again and again."""

import asyncio


async def wait_at_most(event: asyncio.Event, most_s: float) -> None:
    """Until `event` is set, or so long."""
    try:
        async with asyncio.timeout(most_s):
            await event.wait()
    except TimeoutError:
        pass
