"""The fake engine's /metrics: the families of vLLM 0.32 that a control plane reads. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.fake.settings import FakeSettings


@dataclass(slots=True)
class Counters:
    """Totals since the engine's start."""

    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    generation_tokens: int = 0
    gaps: int = 0  # between two tokens of a sequence
    gaps_s: float = 0.0  # their sum
    steps: float = 0.0  # a token made beside n - 1 others is an n-th of a step: the sequences here do not march in step
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
    for name, count, total in (
        ("nixl_bytes_transferred", counters.transfers, counters.transferred_bytes),
        ("inter_token_latency_seconds", counters.gaps, counters.gaps_s),
        ("iteration_tokens_total", int(counters.steps), counters.computed_prompt_tokens + counters.generation_tokens),
    ):
        yield from _histogram(settings, name, count, total)
    yield "# TYPE vllm:prompt_tokens_by_source_total counter"
    for source, tokens in (
        ("local_compute", counters.computed_prompt_tokens),
        ("local_cache_hit", counters.prefix_hits_tokens),
        ("external_kv_transfer", counters.external_hits_tokens),
    ):
        labels = {"engine": 0, "model_name": settings.model, "source": source}
        yield f"vllm:prompt_tokens_by_source_total{_labels(labels)} {float(tokens)}"
    yield "# TYPE vllm:request_success_total counter"
    for reason, count in counters.finished.items():
        labels = {"engine": 0, "finished_reason": reason, "model_name": settings.model}
        yield f"vllm:request_success_total{_labels(labels)} {float(count)}"


def _family(settings: FakeSettings, name: str, kind: str, value: float) -> Iterator[str]:
    yield f"# TYPE vllm:{name} {kind}"
    yield f"vllm:{name}{_labels({'engine': 0, 'model_name': settings.model})} {float(value)}"


def _histogram(settings: FakeSettings, name: str, count: int, total: float) -> Iterator[str]:
    base = {"engine": 0, "model_name": settings.model}
    yield f"# TYPE vllm:{name} histogram"
    yield f"vllm:{name}_bucket{_labels({**base, 'le': '+Inf'})} {float(count)}"
    yield f"vllm:{name}_count{_labels(base)} {float(count)}"
    yield f"vllm:{name}_sum{_labels(base)} {float(total)}"


def _labels(labels: dict[str, object]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
