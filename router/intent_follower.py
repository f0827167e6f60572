"""Follows operators' intents in Redis into local memory; nobody waits for it."""

import logging
from collections.abc import Callable

from kvstore.errors import RedisUnavailableError
from kvstore.intents import Intents, IntentStore

_log = logging.getLogger(__name__)


class IntentFollower:
    """Run `run()` as a task; `on_intents` is called with all of them whenever one changes."""

    def __init__(self, store: IntentStore, poll_s: float, on_intents: Callable[[Intents], None]) -> None:
        self._store = store
        self._poll_s = poll_s
        self._on_intents = on_intents
        self._stopping = False
        self.known = Intents()

    async def run(self) -> None:
        """Look whenever there is news, at the latest every `poll_s`, until `stop` and a cancellation."""
        await self.look()
        async for _ in self._store.changes(self._poll_s):
            if self._stopping:
                return
            await self.look()

    def stop(self) -> None:
        """Let `run` end at its next step, also when redis-py swallows the cancellation that was to end it now."""
        self._stopping = True

    async def look(self) -> None:
        """One look. Redis away, or back without what it held: what is known stays."""
        try:
            found = await self._store.read_all()
            if not found.is_kept and len(self.known):
                _log.warning("Redis has lost the operators' %d intents: writing them again", len(self.known))
                await self._store.restore(self.known)
                found = await self._store.read_all()
        except RedisUnavailableError:
            return  # the lease follower says so
        if found == self.known:
            return
        _log.info("operators drain %s, pause %s", sorted(found.drained) or "none", sorted(found.paused) or "none")
        self.known = found
        self._on_intents(found)
