"""Prometheus metrics of one router process."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from router.core import RouterCore
from router.prompt_index import PromptIndex

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TPOT_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)


class Distribution:
    """A histogram of seconds, counted here and shown to Prometheus at a scrape: one look-up for each observation."""

    def __init__(self, name: str, text: str, bounds_s: tuple[float, ...]) -> None:
        self._name = name
        self._text = text
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, value_s: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds_s, value_s)] += 1
        self._sum_s += value_s

    def collect(self) -> Metric:
        """As it is now."""
        edges = [*map(floatToGoString, self._bounds_s), "+Inf"]
        buckets = list(zip(edges, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum_s)


class Count:
    """Counters by labels, of plain integers for the same reason."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._values: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def inc(self, *labels: str) -> None:
        """Count one, under the values of its labels."""
        self._values[labels] = self._values.get(labels, 0) + 1

    def collect(self) -> Metric:
        """As they are now."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, float(value))
        return family


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


class RouterMetrics(Collector):
    """All series are `headrace_*`. Labels are bounded: routes, classes and outcomes of ours, workers of the fleet."""

    def __init__(
        self, core: RouterCore, prompts: PromptIndex, redis_up: Callable[[], bool], num_in_flight: Callable[[], int]
    ) -> None:
        self.requests = Count("headrace_requests", "Requests by route and status the client got", ("route", "status"))
        self.cancelled = Count("headrace_requests_cancelled", "Requests whose client went away or ran out of time")
        self.attempts = Count("headrace_attempts", "Attempts by kind (hand_off, local)", ("kind",))
        self.failed_attempts = Count("headrace_failed_attempts", "Attempts that a worker failed", ("worker",))
        self.ttft = Distribution(
            "headrace_ttft_seconds", "Arrival to the first byte of the answer, streamed requests", _SECONDS
        )
        self.e2e = Distribution("headrace_e2e_seconds", "Arrival to the end of the answer", _SECONDS)
        self.tpot = Distribution(
            "headrace_tpot_seconds", "Mean gap between tokens after the first, streamed requests", _TPOT_SECONDS
        )
        self.rejected = Count(
            "headrace_rejected", "Requests turned away, by class and reason", ("service_class", "reason")
        )
        self.slo = Count(
            "headrace_slo_requests",
            "Streamed requests that ended, by class, whether their targets were promised, and whether both were met",
            ("service_class", "promised", "met"),
        )
        self._num_in_flight = num_in_flight
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.registry.register(_StateCollector(core, prompts, redis_up))

    def watch_listener(self, listener: Listener) -> None:
        """Show what an HTTP listener has to do with."""
        self.registry.register(_ListenerCollector(listener))

    def observe_slo(self, service_class: str, promised: bool, met: bool, tpot_s: float) -> None:
        """A streamed request has ended well."""
        self.tpot.observe(tpot_s)
        self.slo.inc(service_class, _yes_no(promised), _yes_no(met))

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What has been counted."""
        for count in (self.requests, self.cancelled, self.attempts, self.failed_attempts, self.rejected, self.slo):
            yield count.collect()
        for distribution in (self.ttft, self.e2e, self.tpot):
            yield distribution.collect()
        yield _gauge("headrace_requests_in_flight", "Requests not yet ended", self._num_in_flight())


class _ListenerCollector(Collector):
    """Connections, and what never became a request to an engine."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        listener, counters = self._listener, self._listener.counters
        yield _gauge("headrace_http_open_connections", "Clients' connections", listener.num_connections)
        yield _gauge("headrace_http_buffered_bytes", "Bodies that came in pieces", listener.num_buffered_bytes)
        yield _gauge("headrace_http_admitted", "Share of requests let in; under 1: overloaded", listener.admitted)
        yield _counter("headrace_http_connections", "Connections accepted", counters.connections)
        yield _counter("headrace_http_requests", "Requests read", counters.requests)
        yield _counter("headrace_http_shed", "Requests answered 503 for the router's own sake", counters.shed)
        yield _counter("headrace_http_refused", "Requests malformed, over a limit, or too slow", counters.refused)
        yield _counter("headrace_http_stalled", "Clients cut off for taking nothing", counters.stalled)


class _StateCollector(Collector):
    """Fleet, queue, index and parity as they are at scrape time; a worker that left has no series."""

    def __init__(self, core: RouterCore, prompts: PromptIndex, redis_up: Callable[[], bool]) -> None:
        self._core = core
        self._prompts = prompts
        self._redis_up = redis_up

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        yield _gauge("headrace_redis_up", "1 while Redis answers; at 0 routing goes on as known", self._redis_up())
        yield _gauge("headrace_requests_waiting", "Admitted requests that wait in the router", self._core.num_waiting)
        yield from self._fleet()
        yield from self._index()
        yield from self._parity()

    def _fleet(self) -> Iterator[Metric]:
        workers = GaugeMetricFamily("headrace_worker_up", "1 while the worker is ready", labels=("worker", "role"))
        running = GaugeMetricFamily("headrace_worker_running_seqs", "Running sequences", labels=("worker", "role"))
        blocks = GaugeMetricFamily("headrace_worker_kv_blocks_used", "KV blocks used", labels=("worker", "role"))
        for worker in self._core.fleet():
            labels = [worker.spec.id, worker.spec.role.value]
            workers.add_metric(labels, float(worker.phase == "ready"))
            running.add_metric(labels, worker.load.running_seqs)
            blocks.add_metric(labels, worker.load.kv_blocks_used)
        yield from (workers, running, blocks)

    def _index(self) -> Iterator[Metric]:
        stats = self._prompts.index.stats()
        yield _gauge("headrace_index_blocks", "Blocks in the prefix index", stats.blocks)
        yield _gauge("headrace_index_bytes", "Memory of the prefix index", stats.bytes_used)
        sources = GaugeMetricFamily(
            "headrace_index_sources", "Workers by how well they are followed", labels=("state",)
        )
        for state, count in stats.sources.items():
            sources.add_metric([state.value], count)
        yield sources
        yield _gauge(
            "headrace_index_truncated_sources", "Workers whose blocks do not all fit (index.budget_bytes)",
            stats.truncated_sources,
        )  # fmt: skip
        yield _counter("headrace_index_gaps", "Gaps found in workers' block events", stats.gaps)
        yield _counter("headrace_index_snapshots", "Snapshots loaded, at the start or to repair a gap", stats.snapshots)
        yield _counter("headrace_index_refused_blocks", "Blocks left out for want of memory", stats.refused_blocks)

    def _parity(self) -> Iterator[Metric]:
        error = GaugeMetricFamily(
            "headrace_parity_error", "Predicted against reported cached tokens, 0 right to 1 wrong", labels=("model",)
        )
        trusted = GaugeMetricFamily(
            "headrace_parity_trusted", "0 while a model is routed by load alone for its drift", labels=("model",)
        )
        for model, parity in self._prompts.parity.models().items():
            error.add_metric([model], parity.error)
            trusted.add_metric([model], float(parity.is_trusted))
        untokenised = CounterMetricFamily(
            "headrace_prompts_not_tokenised", "Prompts routed by load alone, and why", labels=("model", "reason")
        )
        for (model, reason), count in self._prompts.not_tokenised.items():
            untokenised.add_metric([model, reason], count)
        yield from (error, trusted, untokenised)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=float(value))


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
