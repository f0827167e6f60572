"""Tracing switched off: every span is nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from router.interfaces import RequestTrace, Span


class _NoSpan:
    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def headers(self) -> Mapping[str, str]:
        return {}


class _NoTrace:
    @contextmanager
    def step(self, name: str) -> Iterator[Span]:
        yield _NO_SPAN

    def event(self, name: str) -> None:
        return None


_NO_SPAN = _NoSpan()
_NO_TRACE = _NoTrace()


class NoTracing:
    """The default: traces nothing, and passes the client's own trace context on."""

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[RequestTrace]:
        """A trace that is not recorded."""
        yield _NO_TRACE
