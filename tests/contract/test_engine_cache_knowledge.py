"""What is known of a real engine's cache is what the engine itself says of it."""

import asyncio

import httpx
import pytest

from kvstore.blocks import chain_blocks, chain_root
from kvstore.kv_log import open_kv_log
from kvstore.kv_types import SourceId, Tier
from kvstore.settings import IndexSettings, RedisSettings
from kvstore.types import WorkerId
from tests.contract.engine_requests import COMPLETIONS, long_prompt, wait_for
from tests.stack import Stack
from workers.engine_metrics import parse_metrics

pytestmark = pytest.mark.cluster

INDEX = IndexSettings()
REDIS = RedisSettings()


def _published(redis_url: str, source: SourceId) -> set[int]:
    async def read() -> set[int]:
        async with open_kv_log(redis_url, REDIS.namespace, INDEX, REDIS) as log:
            return {
                block_hash
                async for snapshot in log.read_snapshots([source])
                for block_hash in snapshot.held.get(Tier.DEVICE, ())
            }

    return asyncio.run(read())


def test_what_an_engine_has_cached_is_published_under_the_router_s_own_hashes(cluster: Stack) -> None:
    row = cluster.workers("decode")[0]
    with httpx.Client(base_url=row["address"], timeout=60.0) as http:
        block_size = parse_metrics(http.get("/metrics").text).block_size_tokens
        prompt, body = long_prompt(), {"model": cluster.model, "cache_salt": "pepper", "max_tokens": 1}
        tokens = http.post("/tokenize", json={"model": cluster.model, "prompt": prompt}).json()["tokens"]
        assert http.post(COMPLETIONS, json={**body, "prompt": prompt}).status_code == 200
        full = tokens[: len(tokens) // block_size * block_size]
        chain = chain_blocks(full, INDEX.block_size_tokens, chain_root(cache_salt="pepper"))
        source = SourceId(WorkerId(row["id"]))
        wait_for(lambda: set(chain) <= _published(cluster.redis_url, source), "its blocks in Redis", 40.0)
        usage = http.post(COMPLETIONS, json={**body, "prompt": prompt}).json()["usage"]
        # The last token is always computed, so a prompt of whole blocks computes its last block again.
        reusable = (len(tokens) - 1) // block_size * block_size
        assert usage["prompt_tokens_details"]["cached_tokens"] == reusable
