"""Connections to engines, kept between requests.

Invariants
 1. An idle connection that is handed out is open on both sides, as far as this process has been told.
 2. At most `max_idle` connections to one address are idle, none for longer than `idle_s` and one look at the clock.
 3. Whoever asks for a connection gets one that nobody else has.
"""

import asyncio
import ssl
from urllib.parse import SplitResult, urlsplit

from workers.engine_http.connection import Connection, ExchangeError
from workers.engine_http.settings import EngineHttpSettings
from workers.ranks import RANK_HEADER

_MOST_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS = 8  # in the shortest of the limits, so that each is kept to an eighth


class AddressPool:
    """The connections to one address."""

    def __init__(self, url: SplitResult, settings: EngineHttpSettings, tls: ssl.SSLContext | None) -> None:
        """`url` has a host; its path goes before every route. Raises ValueError where its port is none."""
        self._host = url.hostname or ""
        self._port = url.port or (443 if tls else 80)
        self._tls = tls
        self._settings = settings
        self._base_path = url.path.rstrip("/")
        self._authority = url.netloc.rpartition("@")[2]
        self._starts: dict[tuple[str, int | None], str] = {}
        self._idle: list[Connection] = []  # the one used last is last
        self._all: set[Connection] = set()
        self._num_connecting = 0

    @property
    def num_open(self) -> int:
        """Connections, in use or idle."""
        return len(self._all)

    @property
    def is_empty(self) -> bool:
        """It holds nothing, and nothing is on its way."""
        return not self._all and not self._num_connecting

    def start(self, route: str, rank: int | None) -> str:
        """What every request to a route of one rank begins with."""
        start = self._starts.get((route, rank))
        if start is None:
            start = f"POST {self._base_path}{route} HTTP/1.1\r\nhost: {self._authority}\r\n"
            if rank is not None:
                start += f"{RANK_HEADER}: {rank}\r\n"
            self._starts[route, rank] = start
        return start

    def take(self) -> Connection | None:
        """The idle connection that was used last, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def connect(self) -> Connection:
        """A new connection; raises OSError, TimeoutError and UnicodeError."""
        loop = asyncio.get_running_loop()
        self._num_connecting += 1
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._on_idle, self._on_closed), self._host, self._port, ssl=self._tls
                )
        finally:
            self._num_connecting -= 1
        self._all.add(connection)
        return connection

    def look(self, now_s: float) -> None:
        """End what has been idle or silent for too long."""
        settings = self._settings
        for connection in tuple(self._all):
            exchange = connection.exchange
            if not connection.is_silent:
                connection.silent_since_s = now_s
            elif exchange is None:
                if now_s - connection.silent_since_s >= settings.idle_s:
                    connection.close()
            else:
                limit_s = settings.silence_timeout_s if exchange.reader.has_head else settings.first_byte_timeout_s
                if now_s - connection.silent_since_s >= limit_s:
                    exchange.fail(ExchangeError(f"nothing came for {limit_s:g} s"))

    def close(self) -> None:
        """End all connections."""
        for connection in tuple(self._all):
            connection.close()

    def _on_idle(self, connection: Connection) -> None:
        if len(self._idle) < self._settings.max_idle:
            self._idle.append(connection)
        else:
            connection.close()

    def _on_closed(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Pools:
    """The pools of all addresses, and the one timer that looks after them."""

    def __init__(self, settings: EngineHttpSettings, tls: ssl.SSLContext | None) -> None:
        """`tls`: for https:// addresses; None: certificates are verified against the system's authorities."""
        self._settings = settings
        self._tls = tls
        self._pools: dict[str, AddressPool] = {}
        self._timer: asyncio.TimerHandle | None = None
        shortest_s = min(settings.first_byte_timeout_s, settings.silence_timeout_s, settings.idle_s)
        self._look_every_s = min(_MOST_SECONDS_BETWEEN_LOOKS, shortest_s / _LOOKS)

    @property
    def num_open(self) -> int:
        """Connections, in use or idle."""
        return sum(pool.num_open for pool in self._pools.values())

    def get(self, address: str) -> AddressPool:
        """The pool of an address; raises ValueError where it is none."""
        pool = self._pools.get(address)
        if pool is None:
            url = urlsplit(address)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError(f"{address!r} is no http:// or https:// address")
            if url.scheme == "https" and self._tls is None:
                self._tls = ssl.create_default_context()
            tls = self._tls if url.scheme == "https" else None
            pool = self._pools[address] = AddressPool(url, self._settings, tls)
            if self._timer is None:
                self._look_later()
        return pool

    def close(self) -> None:
        """End all connections."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_every_s, self._look)

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for address, pool in tuple(self._pools.items()):
            pool.look(now_s)
            if pool.is_empty:
                del self._pools[address]
        self._timer = None
        if self._pools:
            self._look_later()
