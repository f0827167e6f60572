"""Every worker as its lease describes it: what engines report, under the ids and roles that Headrace gives them.

Each router tells the same of a worker: take `max by (worker)`, never a sum over routers. A worker that has left has no
series.
"""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from workers.types import WorkerState

_LABELS = ("worker", "role")
# Fields of a worker's load.
_GAUGES = {
    "running_seqs": "Running sequences",
    "waiting_seqs": "Sequences that wait in the engine",
    "kv_blocks_used": "KV blocks used",
}
_COUNTERS = {
    "prefix_query_tokens": "Prompt tokens that the engine looked up in its prefix cache",
    "prefix_hit_tokens": "Prompt tokens that it found there",
    "nixl_bytes": "Bytes of KV blocks that it pulled from other engines",
    "nixl_failed_transfers": "Pulls that failed: the prompt was computed again",
    "nixl_expired": "Requests whose blocks were given up before they were pulled",
}


def worker_families(fleet: Iterable[WorkerState]) -> Iterator[Metric]:
    """All families, of all workers."""
    workers = tuple(fleet)
    up = GaugeMetricFamily("headrace_worker_up", "1 while the worker is ready", labels=_LABELS)
    epoch = GaugeMetricFamily("headrace_worker_epoch", "Starts of its engine under this id", labels=_LABELS)
    blocks = GaugeMetricFamily("headrace_worker_kv_blocks", "KV blocks that it has", labels=_LABELS)
    for worker in workers:
        up.add_metric(_labels(worker), float(worker.phase == "ready"))
        epoch.add_metric(_labels(worker), worker.spec.epoch)
        blocks.add_metric(_labels(worker), worker.spec.kv_blocks_total)
    yield from (up, epoch, blocks, _phases(workers), _info(workers), _prompt_tokens(workers))
    for kind, fields in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for name, text in fields.items():
            family = kind(f"headrace_worker_{name}", text, labels=_LABELS)
            for worker in workers:
                family.add_metric(_labels(worker), float(getattr(worker.load, name)))
            yield family


def _phases(workers: Iterable[WorkerState]) -> Metric:
    phases = GaugeMetricFamily("headrace_worker_phase", "1 for the phase it is in", labels=(*_LABELS, "phase"))
    for worker in workers:
        phases.add_metric([*_labels(worker), worker.phase.value], 1.0)
    return phases


def _info(workers: Iterable[WorkerState]) -> Metric:
    """Joins an engine's own series, which have its address, with the worker that it is."""
    info = GaugeMetricFamily("headrace_worker_info", "Always 1", labels=(*_LABELS, "model", "address"))
    for worker in workers:
        if not worker.spec.rank:  # one for each engine
            address = worker.spec.address.partition("://")[2]
            info.add_metric([*_labels(worker), worker.spec.model, address], 1.0)
    return info


def _prompt_tokens(workers: Iterable[WorkerState]) -> Metric:
    tokens = CounterMetricFamily(
        "headrace_worker_prompt_tokens",
        "Prompt tokens by where their KV came from: computed, cache (its own), transfer (other engine or tier)",
        labels=(*_LABELS, "source"),
    )
    for worker in workers:
        load = worker.load
        by_source = (
            ("computed", load.computed_prompt_tokens),
            ("cache", load.cached_prompt_tokens),
            ("transfer", load.transferred_prompt_tokens),
        )
        for source, number in by_source:
            tokens.add_metric([*_labels(worker), source], float(number))
    return tokens


def _labels(worker: WorkerState) -> list[str]:
    return [worker.spec.id, worker.spec.role.value]
