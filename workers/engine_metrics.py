"""What Headrace reads from an engine's /metrics and /openapi.json. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from workers.types import NO_LOAD, RankState, WorkerLoad

# Routes of the engine that are passed on where it has them. Everything else (scaling, sleep, LoRA loading, profiling,
# collective_rpc, ...) is an operator's business and never reachable through Headrace. Audio is missing: its bodies are
# multipart, and of a body the router reads JSON.
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
        "/pooling",
        "/classify",
        "/tokenize",
        "/detokenize",
    }
)

_CACHE = "vllm:cache_config_info"
_CACHE_USAGE = "vllm:kv_cache_usage_perc"
_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_PROMPT_TOKENS = "vllm:prompt_tokens_total"
_GENERATION_TOKENS = "vllm:generation_tokens_total"
_PROMPT_TOKENS_BY_SOURCE = "vllm:prompt_tokens_by_source_total"
# Values of its label `source`.
_COMPUTED, _CACHED, _TRANSFERRED = "local_compute", "local_cache_hit", "external_kv_transfer"
_ITL_SUM = "vllm:inter_token_latency_seconds_sum"
_ITL_COUNT = "vllm:inter_token_latency_seconds_count"
_STEPS = "vllm:iteration_tokens_total_count"  # of a histogram with one entry an iteration
_PREFIX_QUERIES = "vllm:prefix_cache_queries_total"
_PREFIX_HITS = "vllm:prefix_cache_hits_total"
_SPEC_DRAFTS = "vllm:spec_decode_num_drafts_total"
_SPEC_DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
_SPEC_ACCEPTED_TOKENS = "vllm:spec_decode_num_accepted_tokens_total"
_NIXL_BYTES = "vllm:nixl_bytes_transferred_sum"
_NIXL_FAILED = "vllm:nixl_num_failed_transfers_total"
_NIXL_EXPIRED = "vllm:nixl_num_kv_expired_reqs_total"

_READ = (
    _CACHE,
    _CACHE_USAGE,
    _RUNNING,
    _WAITING,
    _PROMPT_TOKENS,
    _GENERATION_TOKENS,
    _PROMPT_TOKENS_BY_SOURCE,
    _ITL_SUM,
    _ITL_COUNT,
    _STEPS,
    _PREFIX_QUERIES,
    _PREFIX_HITS,
    _SPEC_DRAFTS,
    _SPEC_DRAFT_TOKENS,
    _SPEC_ACCEPTED_TOKENS,
    _NIXL_BYTES,
    _NIXL_FAILED,
    _NIXL_EXPIRED,
)
_LINE_STARTS = tuple(name + "{" for name in _READ)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """One look at an engine's counters, summed over its data-parallel ranks, and of each if there are several."""

    kv_blocks_total: int  # 0 while the engine has not reported its cache
    block_size_tokens: int
    load: WorkerLoad
    tokens_done: tuple[float, ...]  # prompt and generated tokens of each rank since the start: rises while it works
    ranks: tuple[RankState, ...] = ()  # empty: there is one


@dataclass(slots=True)
class _Samples:
    """The samples of interest of one data-parallel rank."""

    totals: dict[str, float] = field(default_factory=dict)  # by name
    used_share: float = 0.0
    blocks: int = 0
    block_size_tokens: int = 0

    def add(self, sample: Sample) -> None:
        if not math.isfinite(sample.value):
            raise ValueError(f"{sample.name} is {sample.value}")
        if sample.name == _CACHE_USAGE:
            self.used_share = sample.value
        elif sample.name == _CACHE:
            self.blocks = _to_int(sample.labels.get("num_gpu_blocks"))
            self.block_size_tokens = _to_int(sample.labels.get("block_size"))
        else:
            name = sample.labels.get("source", "") if sample.name == _PROMPT_TOKENS_BY_SOURCE else sample.name
            self.totals[name] = self.totals.get(name, 0.0) + sample.value

    @property
    def tokens_done(self) -> float:
        return self.totals.get(_PROMPT_TOKENS, 0.0) + self.totals.get(_GENERATION_TOKENS, 0.0)

    def count(self, name: str) -> int:
        return int(self.totals.get(name, 0.0))


def parse_metrics(text: str) -> EngineMetrics:
    """What Headrace reads from `/metrics`. Lines of other families are skipped before parsing: there are thousands.

    Raises ValueError where the text is not in Prometheus' format or a value is no number.
    """
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_LINE_STARTS)) + "\n"
    by_rank: dict[str, _Samples] = {}
    for metric in text_string_to_metric_families(wanted):
        for sample in metric.samples:
            by_rank.setdefault(sample.labels.get("engine", ""), _Samples()).add(sample)
    in_order = [by_rank[name] for name in sorted(by_rank, key=_to_int)]
    ranks = tuple(RankState(samples.blocks, _load(samples)) for samples in in_order)
    return EngineMetrics(
        kv_blocks_total=sum(rank.kv_blocks_total for rank in ranks),
        block_size_tokens=max((samples.block_size_tokens for samples in in_order), default=0),
        load=_sum(rank.load for rank in ranks),
        tokens_done=tuple(samples.tokens_done for samples in in_order),
        ranks=ranks if len(ranks) > 1 else (),
    )


def _sum(loads: Iterable[WorkerLoad]) -> WorkerLoad:
    """Of all ranks. They step beside each other, so that of their steps the mean counts."""
    columns = list(zip(*(astuple(load) for load in loads), strict=True))
    if not columns:
        return NO_LOAD
    total = WorkerLoad(*(sum(column) for column in columns))
    return replace(total, engine_steps=total.engine_steps // len(columns[0]))


def _load(samples: _Samples) -> WorkerLoad:
    used = round(samples.used_share * samples.blocks)
    return WorkerLoad(
        running_seqs=samples.count(_RUNNING),
        waiting_seqs=samples.count(_WAITING),
        kv_blocks_used=used,
        kv_tokens_used=used * samples.block_size_tokens,
        itl_sum_s=samples.totals.get(_ITL_SUM, 0.0),
        itl_count=samples.count(_ITL_COUNT),
        engine_steps=samples.count(_STEPS),
        computed_prompt_tokens=samples.count(_COMPUTED),
        prefix_query_tokens=samples.count(_PREFIX_QUERIES),
        prefix_hit_tokens=samples.count(_PREFIX_HITS),
        spec_drafts=samples.count(_SPEC_DRAFTS),
        spec_draft_tokens=samples.count(_SPEC_DRAFT_TOKENS),
        spec_accepted_tokens=samples.count(_SPEC_ACCEPTED_TOKENS),
        cached_prompt_tokens=samples.count(_CACHED),
        transferred_prompt_tokens=samples.count(_TRANSFERRED),
        nixl_bytes=samples.count(_NIXL_BYTES),
        nixl_failed_transfers=samples.count(_NIXL_FAILED),
        nixl_expired=samples.count(_NIXL_EXPIRED),
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
