"""What Headrace reads from an engine's /metrics and /openapi.json. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from workers.types import WorkerLoad

# Routes of the engine that are passed on where it has them. Everything else (scaling, sleep, LoRA loading, profiling,
# collective_rpc, ...) is an operator's business and never reachable through Headrace.
FORWARDED_ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
    }
)

_FAMILIES = (
    "vllm:cache_config_info{",
    "vllm:num_requests_running{",
    "vllm:num_requests_waiting{",
    "vllm:kv_cache_usage_perc{",
    "vllm:prompt_tokens_total{",
    "vllm:generation_tokens_total{",
)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One look at an engine's counters, summed over its data-parallel ranks."""

    kv_blocks_total: int  # 0 while the engine has not reported its cache
    block_size_tokens: int
    load: WorkerLoad
    tokens_done: float  # prompt and generated tokens since the start: rises while the engine works


def parse_metrics(text: str) -> EngineMetrics:
    """What Headrace reads from `/metrics`. Lines of other families are skipped before parsing: there are thousands.

    Raises ValueError where the text is not in Prometheus' format.
    """
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_FAMILIES)) + "\n"
    totals: dict[str, float] = {}
    used_share: dict[str, float] = {}  # by data-parallel rank, as is `blocks`
    blocks: dict[str, int] = {}
    block_size_tokens = 0
    for metric in text_string_to_metric_families(wanted):
        for sample in metric.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            rank = sample.labels.get("engine", "")
            if sample.name == "vllm:kv_cache_usage_perc":
                used_share[rank] = sample.value
            elif sample.name == "vllm:cache_config_info":
                blocks[rank] = _to_int(sample.labels.get("num_gpu_blocks"))
                block_size_tokens = _to_int(sample.labels.get("block_size"))
    return EngineMetrics(
        kv_blocks_total=sum(blocks.values()),
        block_size_tokens=block_size_tokens,
        load=WorkerLoad(
            running_seqs=int(totals.get("vllm:num_requests_running", 0)),
            waiting_seqs=int(totals.get("vllm:num_requests_waiting", 0)),
            kv_blocks_used=sum(round(share * blocks.get(rank, 0)) for rank, share in used_share.items()),
        ),
        tokens_done=totals.get("vllm:prompt_tokens_total", 0.0) + totals.get("vllm:generation_tokens_total", 0.0),
    )


def parse_routes(openapi: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The engine's forwarded POST routes, each with the fields its JSON request knows (empty: no schema)."""
    schemas = openapi.get("components", {}).get("schemas", {})
    routes = {}
    for path, methods in openapi.get("paths", {}).items():
        if path in FORWARDED_ROUTES and "post" in methods:
            content = methods["post"].get("requestBody", {}).get("content", {}).get("application/json", {})
            reference = content.get("schema", {}).get("$ref", "")
            properties = schemas.get(reference.rpartition("/")[2], {}).get("properties", {})
            routes[path] = tuple(sorted(properties))
    return routes


def _to_int(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
