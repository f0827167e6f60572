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
        share = GaugeMetricFamily(
            "headrace_expert_class_share",
            "Part of a class of traffic in the tokens of that window, as routers counted them",
            labels=("worker", "class"),
        )
        alone = GaugeMetricFamily(
            "headrace_expert_class_balancedness",
            "Balancedness if this class came alone, by its estimated profile, mean over layers",
            labels=("worker", "class"),
        )
        known = GaugeMetricFamily(
            "headrace_expert_class_confidence",
            "How well that profile is known: 0 is no better than that of all traffic, 1 as well",
            labels=("worker", "class"),
        )
        for engine in self._status():
            placements.add_metric([engine.worker], engine.placements)
            tokens.add_metric([engine.worker], engine.tokens)
            if engine.balancedness is not None:
                mean.add_metric([engine.worker], engine.balancedness.mean)
                worst.add_metric([engine.worker], engine.balancedness.worst)
                window.add_metric([engine.worker], engine.window_s)
            for item in engine.classes:
                labels = [engine.worker, item.name]
                share.add_metric(labels, item.share)
                alone.add_metric(labels, item.balancedness)
                known.add_metric(labels, item.confidence)
        yield from (mean, worst, window, placements, tokens, share, alone, known)
