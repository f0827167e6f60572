"""Prometheus metrics of one router process."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from workers.types import WorkerState

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class RouterMetrics:
    """All series are `headrace_*`. Labels are bounded: routes and outcomes of ours, workers of the fleet."""

    def __init__(self, fleet: Callable[[], Iterable[WorkerState]], redis_up: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "headrace_requests", "Requests by route and status the client got", ("route", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.cancelled = Counter(
            "headrace_requests_cancelled", "Requests whose client went away or ran out of time", registry=self.registry
        )
        self.attempts = Counter(
            "headrace_attempts", "Attempts by kind (hand_off, local)", ("kind",), registry=self.registry
        )
        self.failed_attempts = Counter(
            "headrace_failed_attempts", "Attempts that a worker failed", ("worker",), registry=self.registry
        )
        self.in_flight = Gauge("headrace_requests_in_flight", "Requests not yet ended", registry=self.registry)
        self.ttft = Histogram(
            "headrace_ttft_seconds",
            "Arrival to the first byte of the answer, streamed requests",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.e2e = Histogram(
            "headrace_e2e_seconds", "Arrival to the end of the answer", buckets=_SECONDS, registry=self.registry
        )
        self.registry.register(_FleetCollector(fleet, redis_up))

    def exposition(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)


class _FleetCollector(Collector):
    """The fleet as it is at scrape time; a worker that left has no series."""

    def __init__(self, fleet: Callable[[], Iterable[WorkerState]], redis_up: Callable[[], bool]) -> None:
        self._fleet = fleet
        self._redis_up = redis_up

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Fleet gauges now."""
        redis_up = GaugeMetricFamily("headrace_redis_up", "1 while Redis answers; at 0 routing goes on as known")
        redis_up.add_metric([], float(self._redis_up()))
        workers = GaugeMetricFamily("headrace_worker_up", "1 while the worker is ready", labels=("worker", "role"))
        running = GaugeMetricFamily("headrace_worker_running_seqs", "Running sequences", labels=("worker", "role"))
        blocks = GaugeMetricFamily("headrace_worker_kv_blocks_used", "KV blocks used", labels=("worker", "role"))
        for worker in self._fleet():
            labels = [worker.spec.id, worker.spec.role.value]
            workers.add_metric(labels, float(worker.phase == "ready"))
            running.add_metric(labels, worker.load.running_seqs)
            blocks.add_metric(labels, worker.load.kv_blocks_used)
        yield from (redis_up, workers, running, blocks)
