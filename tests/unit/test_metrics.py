"""Counting without prometheus_client's locks shows what prometheus_client itself would have shown."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from router.metrics import Count, Distribution

BOUNDS_S = (0.005, 0.1, 1.0, 30.0)


class Only(Collector):
    """One family."""

    def __init__(self, counted: Count | Distribution) -> None:
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        """Now."""
        yield self._counted.collect()


def lines(registry: CollectorRegistry) -> list[str]:
    """Everything but the times at which series began, which we do not keep."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def shown(counted: Count | Distribution) -> list[str]:
    registry = CollectorRegistry()
    registry.register(Only(counted))
    return lines(registry)


@given(st.lists(st.one_of(st.sampled_from(BOUNDS_S), st.floats(0.0, 100.0)), max_size=30))
def test_a_distribution_is_a_histogram(values_s: list[float]) -> None:
    registry = CollectorRegistry()
    theirs, ours = (
        Histogram("x_seconds", "An x", buckets=BOUNDS_S, registry=registry),
        Distribution("x_seconds", "An x", BOUNDS_S),
    )
    for value_s in values_s:
        theirs.observe(value_s)
        ours.observe(value_s)
    assert shown(ours) == lines(registry)


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.booleans()), max_size=20))
def test_a_bucket_shows_the_last_traced_value_in_it_and_to_openmetrics_only(seen: list[tuple[float, bool]]) -> None:
    counted = Distribution("x_seconds", "An x", BOUNDS_S)
    last: dict[str, tuple[float, str]] = {}
    for number, (value_s, is_traced) in enumerate(seen):
        counted.observe(value_s)
        if is_traced:
            counted.mark(value_s, f"{number:032x}")
            edge = next((bound_s for bound_s in BOUNDS_S if value_s <= bound_s), float("inf"))
            last[floatToGoString(edge)] = value_s, f"{number:032x}"
    registry = CollectorRegistry()
    registry.register(Only(counted))
    (family,) = text_string_to_metric_families(openmetrics(registry).decode())
    shown_now = {
        sample.labels["le"]: (sample.exemplar.value, sample.exemplar.labels["trace_id"])
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert shown_now == last
    assert "trace_id" not in generate_latest(registry).decode()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["200", '4"9'])), max_size=20))
def test_counts_by_labels_are_counters(seen: list[tuple[str, str]]) -> None:
    registry = CollectorRegistry()
    theirs, ours = Counter("x", "An x", ("one", "two"), registry=registry), Count("x", "An x", ("one", "two"))
    for labels in seen:
        theirs.labels(*labels).inc()
        ours.inc(*labels)
    assert shown(ours) == lines(registry)


def test_a_count_without_labels_is_there_before_the_first() -> None:
    registry = CollectorRegistry()
    Counter("x", "An x", registry=registry)
    assert shown(Count("x", "An x")) == lines(registry)
