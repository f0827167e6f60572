"""What the connections of one server have in common."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Protocol

from router.errors import ApiError
from router.http.message import HttpRequest
from router.http.reply import Reply
from router.http.settings import HttpSettings
from router.http.shedding import LoadShedder

Handler = Callable[[HttpRequest, Reply], Awaitable[None]]

# Over the limit there is room for some more: they are told why, and may ask how the router is. The rest is closed.
EXCESS_CONNECTIONS = 64


class Member(Protocol):
    """A connection, for its server."""

    deadline_s: float  # on the clock of `Shared.now_s`

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The handler at work."""
        ...

    def expire(self) -> None:
        """The deadline has passed."""
        ...

    def drain(self) -> None:
        """Take no more requests; close, if there is none."""
        ...

    def abort(self) -> None:
        """Break it."""
        ...


@dataclass(slots=True)
class Counters:
    """Since the start."""

    connections: int = 0
    requests: int = 0  # complete ones
    shed: int = 0  # answered 503 for the router's own sake
    refused: int = 0  # malformed, over a limit, or too slow
    stalled: int = 0  # clients cut off for taking nothing


@dataclass(slots=True)
class Shared:
    """Settings, the clock, and what counts for all connections together."""

    handler: Handler
    settings: HttpSettings
    max_body_bytes: int
    retry_after_s: float
    never_shed: frozenset[str]  # paths
    shedder: LoadShedder
    counters: Counters = field(default_factory=Counters)
    members: set[Member] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    num_buffered_bytes: int = 0  # of bodies that came in pieces
    is_strained: bool = False  # part of the requests is shed
    is_draining: bool = False
    is_empty: asyncio.Event = field(default_factory=asyncio.Event)  # nobody is left, and nobody comes any more
    now_s: float = field(default_factory=time.monotonic)  # moves with the turns that are watched, so 50 ms at a time
    date_line: str = ""  # RFC 9110 section 6.6.1, one second fine

    def __post_init__(self) -> None:
        self.tick(self.now_s)

    def tick(self, now_s: float) -> None:
        """Time goes on."""
        if not self.date_line or int(now_s) != int(self.now_s):
            self.date_line = f"date: {formatdate(usegmt=True)}\r\n"
        self.now_s = now_s

    def on_turn(self, now_s: float, turn_s: float) -> None:
        """A turn of the event loop took so long."""
        self.tick(now_s)
        self.shedder.on_turn(now_s, turn_s)
        self.is_strained = self.shedder.admitted < 1.0

    def has_room(self, num_opening: int) -> bool:
        """Whether one more connection is taken, if only to be told that there are too many."""
        if len(self.members) + num_opening < self.settings.max_connections + EXCESS_CONNECTIONS:
            return True
        self.counters.shed += 1
        return False

    def leave(self, member: Member) -> None:
        """A connection has ended."""
        self.members.discard(member)
        if self.is_draining and not self.members:
            self.is_empty.set()

    def why_shed(self, path: str, *, is_excess: bool) -> ApiError | None:
        """Whether a request is turned away for the router's own sake."""
        if path in self.never_shed:
            return None
        if is_excess:
            return self.shed(f"more than {self.settings.max_connections} connections (router.http.max_connections)")
        if self.shedder.admits():
            return None
        return self.shed("the router itself has more requests than it can handle; come back a little later")

    def shed(self, why: str) -> ApiError:
        """One more that is turned away."""
        self.counters.shed += 1
        return ApiError(503, "service_unavailable_error", "router_overloaded", why, None, self.retry_after_s)
