"""The fake engine's /metrics: the families of vLLM 0.32 that a control plane reads. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.fake.settings import FakeSettings


@dataclass(slots=True)
class Counters:
    """Totals since the engine's start."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    external_queries_tokens: int = 0
    external_hits_tokens: int = 0
    transfers: int = 0
    transferred_bytes: int = 0
    failed_transfers: int = 0
    expired_leases: int = 0
    finished: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
    )


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine now."""

    running_seqs: int
    waiting_seqs: int
    kv_blocks_used: int


def render_metrics(settings: FakeSettings, counters: Counters, gauges: Gauges) -> str:
    """The page in Prometheus' text format."""
    return "\n".join((*_gauge_lines(settings, gauges), *_counter_lines(settings, counters), ""))


def _gauge_lines(settings: FakeSettings, gauges: Gauges) -> Iterator[str]:
    usage = min(1.0, gauges.kv_blocks_used / settings.kv_blocks)
    yield from _family(settings, "num_requests_running", "gauge", gauges.running_seqs)
    yield from _family(settings, "num_requests_waiting", "gauge", gauges.waiting_seqs)
    yield from _family(settings, "kv_cache_usage_perc", "gauge", usage)
    cache = {
        "block_size": settings.block_size_tokens,
        "cache_dtype": "auto",
        "enable_prefix_caching": True,
        "engine": 0,
        "kv_cache_size_tokens": settings.kv_blocks * settings.block_size_tokens,
        "num_gpu_blocks": settings.kv_blocks,
    }
    yield "# TYPE vllm:cache_config_info gauge"
    yield f"vllm:cache_config_info{_labels(cache)} 1.0"


def _counter_lines(settings: FakeSettings, counters: Counters) -> Iterator[str]:
    for name, value in (
        ("prompt_tokens_total", counters.prompt_tokens),
        ("generation_tokens_total", counters.generation_tokens),
        ("prefix_cache_queries_total", counters.prefix_queries_tokens),
        ("prefix_cache_hits_total", counters.prefix_hits_tokens),
        ("external_prefix_cache_queries_total", counters.external_queries_tokens),
        ("external_prefix_cache_hits_total", counters.external_hits_tokens),
        ("nixl_num_failed_transfers_total", counters.failed_transfers),
        ("nixl_num_kv_expired_reqs_total", counters.expired_leases),
    ):
        yield from _family(settings, name, "counter", value)
    base = {"engine": 0, "model_name": settings.model}
    yield "# TYPE vllm:nixl_bytes_transferred histogram"
    yield f"vllm:nixl_bytes_transferred_bucket{_labels({**base, 'le': '+Inf'})} {float(counters.transfers)}"
    yield f"vllm:nixl_bytes_transferred_count{_labels(base)} {float(counters.transfers)}"
    yield f"vllm:nixl_bytes_transferred_sum{_labels(base)} {float(counters.transferred_bytes)}"
    yield "# TYPE vllm:request_success_total counter"
    for reason, count in counters.finished.items():
        labels = {"engine": 0, "finished_reason": reason, "model_name": settings.model}
        yield f"vllm:request_success_total{_labels(labels)} {float(count)}"


def _family(settings: FakeSettings, name: str, kind: str, value: float) -> Iterator[str]:
    yield f"# TYPE vllm:{name} {kind}"
    yield f"vllm:{name}{_labels({'engine': 0, 'model_name': settings.model})} {float(value)}"


def _labels(labels: dict[str, object]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
