"""Prometheus metrics of one router process. `RouterMetrics` is what the rest of the router knows of it."""

from router.metrics.counted import Count, Distribution
from router.metrics.listener import Listener, ListenerCounters
from router.metrics.router_metrics import RouterMetrics

__all__ = ["Count", "Distribution", "Listener", "ListenerCounters", "RouterMetrics"]
