"""Takes new connections off a listening socket.

uvloop's own server (libuv 1.49 and later) takes one in a turn of the event loop. In overload, when turns are long, that
is ten a second: clients, and probes for health above all, would wait for a minute to be told that they have to wait.

Invariants
 1. Everything that waits is taken in one turn, up to `_BATCH`.
 2. Where there is no room, or no descriptor, a connection is closed unread, or left waiting for a moment.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable

_log = logging.getLogger(__name__)
_BATCH = 256
_BACKLOG = 4096  # as far as net.core.somaxconn allows
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.1


class Acceptor:
    """Makes a protocol of each connection, after the TLS handshake if `context` is set."""

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        has_room: Callable[[int], bool],
        *,
        context: ssl.SSLContext | None,
        handshake_timeout_s: float,
        shutdown_timeout_s: float,
    ) -> None:
        """`has_room` is asked with the number of connections that are not protocols yet. `sock` is bound."""
        self.context = context  # for connections from now on
        self._sock = sock
        self._make = make
        self._has_room = has_room
        self._handshake_timeout_s = handshake_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.listen(_BACKLOG)
        self._loop.add_reader(sock, self._accept)

    async def stop(self) -> None:
        """Accept no more; those that wait are refused."""
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        for opening in self._opening:
            opening.cancel()
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self) -> None:
        """Invariant 1."""
        for _ in range(_BATCH):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_DESCRIPTOR:
                    raise
                _log.warning("no connection can be accepted: %s", error)
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._sock, self._accept)
                return
            if not self._has_room(len(self._opening)):
                sock.close()
                continue
            sock.setblocking(False)
            opening = self._loop.create_task(self._open(sock))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket) -> None:
        context = self.context
        with contextlib.suppress(OSError, TimeoutError):  # a client that went away, or speaks no TLS
            await self._loop.connect_accepted_socket(
                self._make,
                sock,
                ssl=context,
                ssl_handshake_timeout=self._handshake_timeout_s if context is not None else None,
                ssl_shutdown_timeout=self._shutdown_timeout_s if context is not None else None,
            )
