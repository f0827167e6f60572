"""Reading /metrics and /openapi.json of vLLM 0.32. The texts are from a real engine, cut to what matters."""

import json

import pytest

from workers.engine_metrics import FORWARDED_ROUTES, parse_metrics, parse_routes
from workers.fake.metrics import Counters, Gauges, render_metrics
from workers.fake.settings import FakeSettings
from workers.types import WorkerLoad

CACHE_INFO = (
    'vllm:cache_config_info{_block_size_resolved="True",block_size="32",cache_dtype="auto",'
    'enable_prefix_caching="True",engine="%d",kv_cache_dtype_skip_layers="[]",num_cpu_blocks="None",'
    'num_gpu_blocks="%s",num_gpu_blocks_override="None",sliding_window="None"} 1.0'
)
METRICS = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 8622.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 7.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0357142857142857
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.000274e+06
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7952386187069602e+09
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 5.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 214.0
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7952386187069602e+09
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 900.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7952386187069602e+09
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 640.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 77.0
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 640.0
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 40.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="m"} 51.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 51.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 219.0
# HELP vllm:inter_token_latency_seconds Histogram of inter-token latency in seconds.
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 3.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 204.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 204.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 5.1
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
"""
OPENAPI = json.loads("""
{
  "openapi": "3.1.0",
  "info": {"title": "FastAPI", "version": "0.1.0"},
  "paths": {
    "/load": {"get": {"responses": {}}},
    "/v1/models": {"get": {"responses": {}}},
    "/v1/chat/completions": {"post": {"requestBody": {"required": true, "content": {"application/json": {
      "schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}}}}},
    "/v1/completions": {"post": {"requestBody": {"required": true, "content": {"application/json": {
      "schema": {"$ref": "#/components/schemas/CompletionRequest"}}}}}},
    "/tokenize": {"post": {"requestBody": {"required": true, "content": {"application/json": {"schema": {
      "anyOf": [{"$ref": "#/components/schemas/TokenizeCompletionRequest"},
                {"$ref": "#/components/schemas/TokenizeChatRequest"}], "title": "Request"}}}}}},
    "/v1/embeddings": {"get": {"responses": {}}},
    "/v1/responses/{response_id}": {"get": {"responses": {}}},
    "/pooling": {"post": {"responses": {}}},
    "/invocations": {"post": {"responses": {}}},
    "/scale_elastic_ep": {"post": {"responses": {}}},
    "/collective_rpc": {"post": {"responses": {}}},
    "/v1/load_lora_adapter": {"post": {"responses": {}}}
  },
  "components": {"schemas": {
    "ChatCompletionRequest": {"properties": {"model": {}, "messages": {}, "top_k": {}}, "type": "object"},
    "CompletionRequest": {"properties": {"prompt": {}, "model": {}}, "type": "object"},
    "TokenizeChatRequest": {"properties": {"messages": {}}, "type": "object"}
  }}
}
""")


def test_metrics_of_an_engine() -> None:
    metrics = parse_metrics(METRICS + CACHE_INFO % (0, "728") + "\n")
    assert (metrics.kv_blocks_total, metrics.block_size_tokens) == (728, 32)
    assert metrics.load == WorkerLoad(
        running_seqs=3,
        waiting_seqs=2,
        kv_blocks_used=26,
        kv_tokens_used=26 * 32,
        itl_sum_s=5.1,
        itl_count=204,
        engine_steps=51,
        computed_prompt_tokens=5,
        prefix_query_tokens=900,
        prefix_hit_tokens=640,
        cached_prompt_tokens=640,
    )
    assert metrics.tokens_done == (1_000_274 + 214,)


def test_ranks_of_one_engine_are_summed() -> None:
    """Each data-parallel rank has its own cache: blocks used can never be more than blocks there are."""
    text = METRICS + "\n".join(
        (
            CACHE_INFO % (0, "728"),
            CACHE_INFO % (1, "500"),
            'vllm:num_requests_running{engine="1",model_name="m"} 4.0',
            'vllm:kv_cache_usage_perc{engine="1",model_name="m"} 1.0',
            'vllm:generation_tokens_total{engine="1",model_name="m"} 6.0',
            'vllm:inter_token_latency_seconds_count{engine="1",model_name="m"} 196.0',
            'vllm:inter_token_latency_seconds_sum{engine="1",model_name="m"} 4.9',
            'vllm:iteration_tokens_total_count{engine="1",model_name="m"} 49.0',
        )
    )
    metrics = parse_metrics(text)
    assert metrics.kv_blocks_total == 1228
    assert metrics.block_size_tokens == 32
    load = metrics.load
    assert (load.running_seqs, load.waiting_seqs, load.kv_blocks_used) == (7, 2, 26 + 500)
    assert load.kv_tokens_used == 32 * (26 + 500)
    assert load.itl_count == 400
    assert load.itl_sum_s == pytest.approx(10.0)
    assert load.engine_steps == 50  # ranks step beside each other: gaps / steps is the batch of all
    assert metrics.tokens_done == (1_000_274 + 214, 6)
    first, second = metrics.ranks
    assert (first.kv_blocks_total, second.kv_blocks_total) == (728, 500)
    assert (first.load.running_seqs, second.load.running_seqs) == (3, 4)
    assert (first.load.kv_blocks_used, second.load.kv_blocks_used) == (26, 500)
    assert (first.load.engine_steps, second.load.engine_steps) == (51, 49)


@pytest.mark.parametrize("blocks", ["None", "", "-1", "7.5"])
def test_an_engine_that_does_not_know_its_cache_yet_has_no_blocks(blocks: str) -> None:
    metrics = parse_metrics(METRICS + CACHE_INFO % (0, blocks))
    assert metrics.kv_blocks_total == metrics.load.kv_blocks_used == 0
    assert metrics.load.running_seqs == 3


def test_speculation_is_counted_where_there_is_some() -> None:
    text = METRICS + "\n".join(
        f'vllm:spec_decode_num_{name}_total{{engine="0",model_name="m"}} {value}'
        for name, value in (("drafts", 14.0), ("draft_tokens", 70.0), ("accepted_tokens", 39.0))
    )
    load = parse_metrics(text).load
    assert (load.spec_drafts, load.spec_draft_tokens, load.spec_accepted_tokens) == (14, 70, 39)
    load = parse_metrics(METRICS).load
    assert (load.spec_drafts, load.spec_draft_tokens, load.spec_accepted_tokens) == (0, 0, 0)


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_a_value_that_is_no_number_raises_value_error(value: str) -> None:
    with pytest.raises(ValueError, match="num_requests_running is"):
        parse_metrics('vllm:num_requests_running{engine="0"} ' + value)


def test_metrics_of_something_else_are_no_load() -> None:
    metrics = parse_metrics('# TYPE up gauge\nup{job="x"} 1.0\n')
    assert metrics == parse_metrics("")
    assert (metrics.kv_blocks_total, metrics.tokens_done) == (0, ())
    assert metrics.load == WorkerLoad(0, 0, 0)


def test_the_fake_engine_has_every_series() -> None:
    counters = Counters(
        prompt_tokens=700,
        computed_prompt_tokens=500,
        generation_tokens=90,
        gaps=80,
        gaps_s=2.4,
        steps=40.5,
        prefix_queries_tokens=700,
        prefix_hits_tokens=200,
        external_hits_tokens=64,
        transfers=2,
        transferred_bytes=4096,
        failed_transfers=3,
        expired_leases=1,
    )
    settings = FakeSettings(model='m"\\', kv_blocks=100, block_size_tokens=32)
    metrics = parse_metrics(
        render_metrics(settings, counters, Gauges(running_seqs=2, waiting_seqs=1, kv_blocks_used=9))
    )
    assert metrics.tokens_done == (790,)
    assert metrics.load == WorkerLoad(
        running_seqs=2,
        waiting_seqs=1,
        kv_blocks_used=9,
        kv_tokens_used=288,
        itl_sum_s=2.4,
        itl_count=80,
        engine_steps=40,
        computed_prompt_tokens=500,
        prefix_query_tokens=700,
        prefix_hit_tokens=200,
        cached_prompt_tokens=200,
        transferred_prompt_tokens=64,
        nixl_bytes=4096,
        nixl_failed_transfers=3,
        nixl_expired=1,
    )


@pytest.mark.parametrize("line", ['vllm:num_requests_running{engine="0"', 'vllm:num_requests_running{engine="0"} many'])
def test_broken_metrics_raise_value_error(line: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        parse_metrics(line)


def test_only_forwarded_routes_are_taken_and_only_where_they_can_be_posted_to() -> None:
    assert parse_routes(OPENAPI) == {
        "/v1/chat/completions": ("messages", "model", "top_k"),
        "/v1/completions": ("model", "prompt"),
        "/tokenize": (),  # two schemas: no single list of fields
        "/pooling": (),  # no body
    }


@pytest.mark.parametrize("openapi", [{}, {"paths": {}}, {"paths": {"/v1/completions": {"post": {}}}}])
def test_an_incomplete_description_is_no_error(openapi: dict[str, object]) -> None:
    assert set(parse_routes(openapi).values()) <= {()}


@pytest.mark.parametrize(
    "word", ["lora", "scale", "sleep", "rpc", "profile", "reset", "pause", "weight", "invocations"]
)
def test_no_operators_route_is_forwarded(word: str) -> None:
    assert not [route for route in FORWARDED_ROUTES if word in route]
