"""Tracing switched off: every span is nothing, and costs next to nothing."""

from collections.abc import Mapping
from types import MappingProxyType, TracebackType

from router.interfaces import RequestTrace, Span

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class _NoSpan:
    is_recorded = False

    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def headers(self) -> Mapping[str, str]:
        return _NO_HEADERS

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


class _NoTrace:
    is_recorded = False
    trace_id = ""

    def step(self, name: str) -> _NoSpan:
        return _NO_SPAN

    def event(self, name: str) -> None:
        return None

    def ended(self, status: int, tenant: str, **attributes: str | int | float | bool) -> None:
        return None

    def __enter__(self) -> RequestTrace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


_NO_SPAN = _NoSpan()
_NO_TRACE = _NoTrace()
NO_TRACE: RequestTrace = _NO_TRACE


class NoTracing:
    """The default: traces nothing, and passes the client's own trace context on."""

    def request(self, name: str, headers: Mapping[str, str]) -> _NoTrace:
        """A trace that is not recorded."""
        return _NO_TRACE
