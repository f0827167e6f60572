"""The HTTP/1.1 server: sockets, clocks, certificates, and the end.

Invariants
 1. One timer ends what takes too long, whatever the number of connections.
 2. New certificates are for new connections; the old ones go on as they began.
 3. `stop` returns with every connection closed and every handler ended.
"""

import asyncio
import socket
from collections.abc import Callable

from router.http.acceptor import Acceptor
from router.http.connection import Connection
from router.http.lag import TurnWatch
from router.http.settings import HttpSettings
from router.http.shared import Counters, Handler, Shared
from router.http.shedding import LoadShedder
from router.tls import Certificates

_SWEEP_S = 0.25


class HttpServer:
    """Serves one socket with one handler."""

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        *,
        max_body_bytes: int,
        drain_s: float = 10.0,
        retry_after_s: float = 1.0,
        never_shed: frozenset[str] = frozenset(),
    ) -> None:
        """`never_shed`: paths that are served however late the server is. Raises TlsError."""
        self._settings = settings
        self._drain_s = drain_s
        self._shared = Shared(
            handler=handler,
            settings=settings,
            max_body_bytes=max_body_bytes,
            retry_after_s=retry_after_s,
            never_shed=never_shed,
            shedder=LoadShedder(target_s=settings.shed_lag_s, window_s=settings.shed_window_s),
        )
        self._certificates = Certificates(settings.tls, "router.http.tls") if settings.tls is not None else None
        self._acceptor: Acceptor | None = None
        self._watch: TurnWatch | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._swept_at_s = 0.0
        self._observe_turn: Callable[[float], None] = lambda _: None

    @property
    def counters(self) -> Counters:
        """What has happened since the start."""
        return self._shared.counters

    @property
    def num_connections(self) -> int:
        """Open now."""
        return len(self._shared.members)

    @property
    def num_buffered_bytes(self) -> int:
        """Of request bodies that came in pieces, held now."""
        return self._shared.num_buffered_bytes

    @property
    def admitted(self) -> float:
        """Share of requests that are let in; under 1 the server is overloaded."""
        return self._shared.shedder.admitted

    def watch_turns(self, observe: Callable[[float], None]) -> None:
        """From now on tell how many seconds turns of the event loop take: one every 50 ms."""
        self._observe_turn = observe

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket from now on; the socket is the server's."""
        shared, certificates = self._shared, self._certificates
        has_tls = certificates is not None
        self._watch = TurnWatch(self._on_turn)
        self._acceptor = Acceptor(
            sock,
            lambda: Connection(shared, has_tls=has_tls),
            shared.has_room,
            context=certificates.context if certificates is not None else None,
            handshake_timeout_s=self._settings.head_timeout_s,
            shutdown_timeout_s=max(0.1, self._settings.linger_s),
        )
        if certificates is not None:
            self._reloading = asyncio.create_task(self._follow_files())

    async def stop(self) -> None:
        """Stop accepting, close idle connections, let answers finish for `drain_s`, then cut them."""
        shared = self._shared
        shared.is_draining = True
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait((self._reloading,))
        if self._acceptor is not None:
            await self._acceptor.stop()
        for member in tuple(shared.members):
            member.drain()
        if not shared.members:
            shared.is_empty.set()
        await asyncio.wait((asyncio.create_task(shared.is_empty.wait()),), timeout=self._drain_s)
        tasks = [member.task for member in shared.members if member.task is not None]
        for member in tuple(shared.members):
            member.abort()
        await shared.is_empty.wait()
        if tasks:
            await asyncio.wait(tasks)
        if self._watch is not None:
            self._watch.stop()

    async def reload_certificates(self, *, if_changed: bool = False) -> bool:
        """Read the files again; new connections use what they hold. False: nothing new, or nothing usable."""
        if self._certificates is None or self._acceptor is None:
            return False
        context = await asyncio.to_thread(self._certificates.reload, if_changed=if_changed)
        if context is None:
            return False
        self._acceptor.context = context
        return True

    async def _follow_files(self) -> None:
        tls = self._settings.tls
        assert tls is not None
        while True:
            await asyncio.sleep(tls.reload_check_s)
            await self.reload_certificates(if_changed=True)

    def _on_turn(self, now_s: float, turn_s: float) -> None:
        shared = self._shared
        shared.on_turn(now_s, turn_s)
        self._observe_turn(turn_s)
        if now_s - self._swept_at_s >= _SWEEP_S:
            self._swept_at_s = now_s
            for member in [member for member in shared.members if member.deadline_s <= now_s]:
                member.expire()
