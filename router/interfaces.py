"""The seams of the router: what is injected into it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from router.cost import Costs
from router.view import View


class Pick(NamedTuple):
    """Positions in the sides of a view. `prefill` is None where the decode worker does its own prefill."""

    prefill: int | None
    decode: int
    num_near_equal: int = 1  # ways among which it was drawn


class RoutingPolicy(Protocol):
    """Pure choice among workers that are all eligible."""

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """The best way to serve `view.request`; None: nobody can. Reserves nothing.

        A policy may remember what it picked (round robin, session hash); it may not look at anything but its
        arguments, and draws only from a seeded generator of its own: decisions have to be repeatable.
        """
        ...


class ResponseSink(Protocol):
    """Where the answer goes: an HTTP response or a gRPC stream."""

    @property
    def started(self) -> bool:
        """The client has been told a status; from here on a failure can only break the stream."""
        ...

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers. Called once, before the first `write`."""
        ...

    async def write(self, chunk: bytes) -> None:
        """Pass the engine's bytes on; returns when the client can take more."""
        ...


class Span(Protocol):
    """One timed step of a request."""

    def set(self, **attributes: str | int | float | bool) -> None:
        """Add attributes."""
        ...

    def headers(self) -> Mapping[str, str]:
        """W3C trace headers that make a callee's spans children of this one; empty when tracing is off."""
        ...


class RequestTrace(Protocol):
    """The trace of one request."""

    def step(self, name: str) -> AbstractContextManager[Span]:
        """Time a step; an exception inside marks it as failed."""
        ...

    def event(self, name: str) -> None:
        """Mark an instant, such as the first token."""
        ...


class Tracing(Protocol):
    """Where traces come from."""

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestTrace]:
        """Open the root span of a request, continuing the W3C context in `headers` if there is one."""
        ...
