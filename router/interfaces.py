"""The seams of the router: what is injected into it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol


class Flow(Protocol):
    """Something that can be told to stop producing for a while."""

    def pause(self) -> None:
        """Produce nothing until `resume`; told in the middle of a `write` too."""
        ...

    def resume(self) -> None:
        """Go on."""
        ...


class ResponseSink(Protocol):
    """Where the answer goes: an HTTP response or a gRPC stream. Nothing here waits."""

    @property
    def started(self) -> bool:
        """The client has been told a status; from here on a failure can only break the stream."""
        ...

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers. Called once, before the first `write`."""
        ...

    def write(self, chunk: bytes) -> None:
        """Pass the engine's bytes on. Never waits: what the client does not take at once is kept."""
        ...

    def attach_flow(self, flow: Flow | None) -> None:
        """Whom to pause while the client takes no more; None: nobody any more."""
        ...


class Span(Protocol):
    """One timed step of a request."""

    @property
    def is_recorded(self) -> bool:
        """False where attributes would go nowhere: then they need not be made."""
        ...

    def set(self, **attributes: str | int | float | bool) -> None:
        """Add attributes."""
        ...

    def headers(self) -> Mapping[str, str]:
        """W3C trace headers that make a callee's spans children of this one; empty when tracing is off."""
        ...


class RequestTrace(Protocol):
    """The trace of one request."""

    @property
    def is_recorded(self) -> bool:
        """False where nothing of it is kept: then what it would be told need not be made."""
        ...

    @property
    def trace_id(self) -> str:
        """Hexadecimal; empty unless recorded."""
        ...

    def step(self, name: str) -> AbstractContextManager[Span]:
        """Time a step; an exception inside marks it as failed."""
        ...

    def event(self, name: str) -> None:
        """Mark an instant, such as the first token."""
        ...

    def ended(self, status: int, tenant: str, **attributes: str | int | float | bool) -> None:
        """What became of it, on the root span: what a tail sampler asks for. `status`: the client's, 499 if it left."""
        ...


class Tracing(Protocol):
    """Where traces come from."""

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestTrace]:
        """Open the root span of a request, continuing the W3C context in `headers` if there is one."""
        ...
