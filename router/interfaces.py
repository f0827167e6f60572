"""The seams of the router: what is injected into it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from router.types import Candidate, Choice, Request


class RoutingPolicy(Protocol):
    """Pure choice among candidates that are all eligible."""

    def choose(self, request: Request, prefill: Sequence[Candidate], decode: Sequence[Candidate]) -> Choice | None:
        """The best choice; None: nobody can decode. Reserves nothing and remembers nothing of the request."""
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
