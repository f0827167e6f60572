"""Prometheus metrics of expert placement: what the admin API's GET /metrics serves."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from controlplane.expert_placer import EngineStatus


class ExpertMetrics(Collector):
    """All series are `headrace_expert_*`, labelled by the workers of the fleet."""

    def __init__(self, status: Callable[[], Sequence[EngineStatus]]) -> None:
        self._status = status
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def exposition(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        mean = GaugeMetricFamily(
            "headrace_expert_balancedness",
            "Even load over the slowest rank's in the last window of load, mean over layers; 1 is perfect",
            labels=("worker",),
        )
        worst = GaugeMetricFamily(
            "headrace_expert_balancedness_worst_layer", "The same of the layer with the least", labels=("worker",)
        )
        window = GaugeMetricFamily("headrace_expert_window_seconds", "Length of that window", labels=("worker",))
        placements = CounterMetricFamily(
            "headrace_expert_placements", "Placements applied since the engine's start", labels=("worker",)
        )
        tokens = CounterMetricFamily(
            "headrace_expert_tokens",
            "Tokens routed to experts since the engine's start, each once for every expert, of all layers",
            labels=("worker",),
        )
        for engine in self._status():
            placements.add_metric([engine.worker], engine.placements)
            tokens.add_metric([engine.worker], engine.tokens)
            if engine.balancedness is not None:
                mean.add_metric([engine.worker], engine.balancedness.mean)
                worst.add_metric([engine.worker], engine.balancedness.worst)
                window.add_metric([engine.worker], engine.window_s)
        yield from (mean, worst, window, placements, tokens)
