"""Counters and histograms of plain numbers, shown to Prometheus at a scrape: one look-up for each observation."""

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString


class _Buckets:
    """What one histogram series has seen."""

    __slots__ = ("counts", "exemplars", "sum_s")

    def __init__(self, num_bounds: int) -> None:
        self.counts = [0] * (num_bounds + 1)
        self.sum_s = 0.0
        self.exemplars: dict[int, Exemplar] = {}  # by bucket, the last one


class Distribution:
    """Histograms of seconds by the values of labels; without labels there is one from the start."""

    def __init__(self, name: str, text: str, bounds_s: tuple[float, ...], labels: tuple[str, ...] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds_s = bounds_s
        self._series: dict[tuple[str, ...], _Buckets] = {} if labels else {(): _Buckets(len(bounds_s))}

    def observe(self, value_s: float, *labels: str) -> None:
        """Count one, under the values of its labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Buckets(len(self._bounds_s))
        series.counts[bisect_left(self._bounds_s, value_s)] += 1
        series.sum_s += value_s

    def mark(self, value_s: float, trace_id: str, *labels: str) -> None:
        """Show this trace beside the bucket of a value that was observed. OpenMetrics calls it an exemplar."""
        at = bisect_left(self._bounds_s, value_s)
        self._series[labels].exemplars[at] = Exemplar({"trace_id": trace_id}, value_s, time.time())

    def collect(self) -> Metric:
        """As it is now."""
        edges = [*map(floatToGoString, self._bounds_s), "+Inf"]
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for labels, series in self._series.items():
            sums = enumerate(zip(edges, map(float, accumulate(series.counts)), strict=True))
            marks = series.exemplars
            buckets = [(*bucket, marks[at]) if at in marks else bucket for at, bucket in sums]
            family.add_metric(labels, buckets, series.sum_s)
        return family


class Count:
    """Counters by labels."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...] = ()) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._values: dict[tuple[str, ...], int] = {} if labels else {(): 0}

    def inc(self, *labels: str) -> None:
        """Count one, under the values of its labels."""
        self._values[labels] = self._values.get(labels, 0) + 1

    def add(self, number: int, *labels: str) -> None:
        """Count so many, under the values of their labels."""
        self._values[labels] = self._values.get(labels, 0) + number

    def items(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Values of the labels, and how many."""
        return iter(self._values.items())

    def collect(self) -> CounterMetricFamily:
        """As they are now."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, float(value))
        return family


def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    """One gauge without labels."""
    return GaugeMetricFamily(name, text, value=float(value))


def counter(name: str, text: str, value: float) -> CounterMetricFamily:
    """One counter without labels."""
    return CounterMetricFamily(name, text, value=float(value))
