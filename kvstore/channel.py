"""A channel on which writers say "look now": what followers of small records listen to between two polls."""

import asyncio
from collections.abc import AsyncGenerator

from kvstore.connection import RedisLink
from kvstore.errors import RedisUnavailableError


class Channel:
    """One channel by name. A message that is lost costs a follower one poll, never more."""

    def __init__(self, link: RedisLink, name: str) -> None:
        self._link = link
        self._name = name

    async def announce(self) -> None:
        """Tell followers to look now. Raises RedisUnavailableError."""
        with self._link.translated():
            await self._link.client.publish(self._name, b"")

    async def changes(self, poll_s: float) -> AsyncGenerator[None, None]:
        """Yield whenever it is time to look again: after an announcement, else every `poll_s`. Survives outages."""
        while True:
            try:
                with self._link.translated():
                    async with self._link.client.pubsub(ignore_subscribe_messages=True) as pubsub:
                        await pubsub.subscribe(self._name)
                        while True:
                            await pubsub.get_message(timeout=poll_s)
                            yield
            except RedisUnavailableError:
                yield
                await asyncio.sleep(poll_s)
