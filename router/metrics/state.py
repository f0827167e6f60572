"""Fleet, queue, index and parity as they are at a scrape."""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.core import RouterCore
from router.metrics.counted import counter, gauge
from router.metrics.workers import worker_families
from router.prompt_index import PromptIndex


class IndexFollowing(Protocol):
    """What metrics read of the one that follows the log of KV blocks."""

    lag_s: float
    num_malformed: int
    num_resyncs: int


class FollowingCollector(Collector):
    """How far the prefix index is behind what workers published."""

    def __init__(self, follower: IndexFollowing) -> None:
        self._follower = follower

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        follower = self._follower
        yield gauge(
            "headrace_index_lag_seconds",
            "From a worker's telling of blocks to their being in the index",
            follower.lag_s,
        )
        yield counter("headrace_index_malformed", "Records of the KV log that cannot be read", follower.num_malformed)
        yield counter("headrace_index_resyncs", "Snapshots that workers were asked for", follower.num_resyncs)


class StateCollector(Collector):
    """Fleet, queue, index and parity as they are at scrape time; a worker that left has no series."""

    def __init__(self, core: RouterCore, prompts: PromptIndex, redis_up: Callable[[], bool]) -> None:
        self._core = core
        self._prompts = prompts
        self._redis_up = redis_up

    def collect(self) -> Iterator[Metric]:
        """Everything now."""
        yield gauge("headrace_redis_up", "1 while Redis answers; at 0 routing goes on as known", self._redis_up())
        yield gauge("headrace_requests_waiting", "Admitted requests that wait in the router", self._core.num_waiting)
        yield from worker_families(self._core.fleet())
        yield from self._index()
        yield from self._parity()

    def _index(self) -> Iterator[Metric]:
        stats = self._prompts.index.stats()
        yield gauge("headrace_index_blocks", "Blocks in the prefix index", stats.blocks)
        yield gauge("headrace_index_bytes", "Memory of the prefix index", stats.bytes_used)
        yield gauge("headrace_index_held_blocks", "Blocks told that wait for others before them", stats.held_blocks)
        sources = GaugeMetricFamily(
            "headrace_index_sources", "Workers by how well they are followed", labels=("state",)
        )
        for state, count in stats.sources.items():
            sources.add_metric([state.value], count)
        yield sources
        yield gauge(
            "headrace_index_truncated_sources", "Workers whose blocks do not all fit (index.budget_bytes)",
            stats.truncated_sources,
        )  # fmt: skip
        yield counter("headrace_index_gaps", "Gaps found in workers' block events", stats.gaps)
        yield counter("headrace_index_snapshots", "Snapshots loaded, at the start or to repair a gap", stats.snapshots)
        yield counter("headrace_index_refused_blocks", "Blocks left out for want of memory", stats.refused_blocks)

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
