"""What an HTTP listener has to do with, and how the process that runs it is."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from router.metrics.counted import Distribution, counter, gauge

_TURN_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class ListenerCounters(Protocol):
    """Of an HTTP listener, since its start."""

    connections: int
    requests: int
    shed: int
    refused: int
    stalled: int


class Listener(Protocol):
    """What metrics read of an HTTP listener."""

    @property
    def counters(self) -> ListenerCounters:
        """Since the start."""
        ...

    @property
    def num_connections(self) -> int:
        """Open now."""
        ...

    @property
    def num_buffered_bytes(self) -> int:
        """Of incomplete request bodies, and of those that came in pieces."""
        ...

    @property
    def admitted(self) -> float:
        """Share of requests that are not turned away for the router's own lateness."""
        ...

    def watch_turns(self, observe: Callable[[float], None]) -> None:
        """From now on tell how many seconds turns of the event loop take: one every 50 ms."""
        ...


class ListenerCollector(Collector):
    """Connections, and what never became a request to an engine."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._turns = Distribution(
            "headrace_loop_turn_seconds",
            "One turn of the event loop: what a request that is ready waits",
            _TURN_SECONDS,
        )
        listener.watch_turns(self._turns.observe)

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        listener, counters = self._listener, self._listener.counters
        yield gauge("headrace_http_open_connections", "Clients' connections", listener.num_connections)
        yield gauge("headrace_http_buffered_bytes", "Bodies that came in pieces", listener.num_buffered_bytes)
        yield gauge("headrace_http_admitted", "Share of requests let in; under 1: overloaded", listener.admitted)
        yield counter("headrace_http_connections", "Connections accepted", counters.connections)
        yield counter("headrace_http_requests", "Requests read", counters.requests)
        yield counter("headrace_http_shed", "Requests answered 503 for the router's own sake", counters.shed)
        yield counter("headrace_http_refused", "Requests malformed, over a limit, or too slow", counters.refused)
        yield counter("headrace_http_stalled", "Clients cut off for taking nothing", counters.stalled)
        yield self._turns.collect()
        # Scraped in the loop's own thread, which is what a router can have of a machine: 1 core.
        yield counter("headrace_loop_cpu_seconds", "CPU of the event loop's thread", time.thread_time())
