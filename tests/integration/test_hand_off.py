"""The hand-off is real: the engines' own counters say that the KV moved by NIXL, and the output is the same."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.engine_counters import engine_counters, wait_until
from tests.plain_engine import PlainEngine, plain_engine
from tests.stack import Stack

pytestmark = pytest.mark.cluster

# SmolLM2-135M: 30 layers x (K and V) x 3 KV heads x 64 dimensions, in float32.
KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 4
BLOCK_SIZE_TOKENS = 32


def complete(url: str, model: str, prompt: str | list[int], max_tokens: int, **fields: object) -> dict[str, object]:
    """One greedy completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=300)
    assert response.status_code == 200, response.text
    answer: dict[str, object] = response.json()
    return answer


def test_kv_moves_by_nixl_and_nothing_is_recomputed(cluster: Stack) -> None:
    prefill, decode = cluster.workers("prefill")[0]["address"], cluster.workers("decode")[0]["address"]
    rng = random.Random(7)
    prompt = [rng.randrange(1000, 40_000) for _ in range(10 * BLOCK_SIZE_TOKENS)]
    before_p, before_d = engine_counters(prefill), engine_counters(decode)

    answer = complete(cluster.http_url, cluster.model, prompt, 4)

    expected_bytes = len(prompt) * KV_BYTES_PER_TOKEN
    wait_until(
        lambda: (
            engine_counters(decode)["vllm:nixl_bytes_transferred_sum"]
            >= before_d["vllm:nixl_bytes_transferred_sum"] + expected_bytes
        ),
        "the decode engine has counted the transfer",
    )
    after_p, after_d = engine_counters(prefill), engine_counters(decode)

    def rose(name: str, before: dict[str, float], after: dict[str, float]) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert rose("vllm:nixl_bytes_transferred_sum", before_d, after_d) == expected_bytes
    assert rose("vllm:nixl_num_failed_transfers_total", before_d, after_d) == 0
    # The last prompt token is always computed where the answer begins; every other one came from outside.
    external = rose("vllm:prompt_tokens_by_source_total{source=external_kv_transfer}", before_d, after_d)
    computed = rose("vllm:prompt_tokens_by_source_total{source=local_compute}", before_d, after_d)
    assert external >= len(prompt) - 1
    assert computed <= 1 + probes_between(before_d, after_d)
    assert rose("vllm:external_prefix_cache_hits_total", before_d, after_d) >= len(prompt) - 1
    assert rose("vllm:prompt_tokens_by_source_total{source=local_compute}", before_p, after_p) >= len(prompt)
    assert isinstance(answer["usage"], dict)
    assert answer["usage"]["prompt_tokens"] == len(prompt)


def probes_between(before: dict[str, float], after: dict[str, float]) -> float:
    """One-token prompts of the supervisor's liveness probe that fell between two looks."""
    name = "vllm:request_success_total"
    return after[name] - before[name] - 1


def test_a_decode_that_comes_after_the_lease_computes_for_itself(cluster: Stack) -> None:
    """The blocks may be another prompt's by then. vLLM alone reads them all the same."""
    prefill, decode = cluster.workers("prefill")[0]["address"], cluster.workers("decode")[0]["address"]
    rng = random.Random(11)
    prompt = [rng.randrange(1000, 40_000) for _ in range(2 * BLOCK_SIZE_TOKENS)]
    expired = "vllm:nixl_num_kv_expired_reqs_total"
    external = "vllm:prompt_tokens_by_source_total{source=external_kv_transfer}"
    before_p, before_d = engine_counters(prefill), engine_counters(decode)
    leased = complete(prefill, cluster.model, prompt, 1, kv_transfer_params={"do_remote_decode": True})
    wait_until(lambda: engine_counters(prefill).get(expired, 0.0) > before_p.get(expired, 0.0), "the lease is over")

    params = leased["kv_transfer_params"]
    late = complete(decode, cluster.model, prompt, 8, kv_transfer_params=params, return_token_ids=True)

    wait_until(
        lambda: engine_counters(decode).get(expired, 0.0) > before_d.get(expired, 0.0), "the decode has declined it"
    )
    assert engine_counters(decode).get(external, 0.0) == before_d.get(external, 0.0)
    assert token_ids(late) == token_ids(complete(prefill, cluster.model, prompt, 8, return_token_ids=True))


@pytest.fixture(scope="module")
def plain(cluster: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainEngine]:
    """One vLLM without any connector, same model and dtype: the reference."""
    with plain_engine(cluster.model, tmp_path_factory.mktemp("plain") / "engine.log") as engine:
        yield engine


def test_twenty_prompts_give_the_same_tokens_as_one_plain_engine(cluster: Stack, plain: PlainEngine) -> None:
    """float32, greedy, 5 to 2,000 tokens: token for token the same through prefill and decode workers."""
    rng = random.Random(20)
    words = Path(__file__).read_text().split()
    lengths = [5, 31, 32, 33, 64, 100, 127, 128, 129, 200, 256, 300, 400, 511, 512, 700, 900, 1200, 1600, 2000]
    before = engine_counters(cluster.workers("decode")[0]["address"])["vllm:nixl_bytes_transferred_sum"]
    prompts = [tokens(plain, " ".join(rng.choice(words) for _ in range(length)))[:length] for length in lengths]
    assert [len(prompt) for prompt in prompts] == lengths
    for prompt in prompts:
        with ThreadPoolExecutor(2) as pool:
            ours = pool.submit(complete, cluster.http_url, cluster.model, prompt, 8, return_token_ids=True)
            theirs = pool.submit(complete, plain.address, cluster.model, prompt, 8, return_token_ids=True)
        assert token_ids(ours.result()) == token_ids(theirs.result()), f"prompt of {len(prompt)} tokens"
    moved = engine_counters(cluster.workers("decode")[0]["address"])["vllm:nixl_bytes_transferred_sum"] - before
    assert moved >= 0.9 * sum(lengths) * KV_BYTES_PER_TOKEN, "the prompts really were handed off"


def tokens(engine: PlainEngine, text: str) -> list[int]:
    """Token ids of a text."""
    response = httpx.post(f"{engine.address}/tokenize", json={"model": engine.model, "prompt": text}, timeout=60)
    ids: list[int] = response.json()["tokens"]
    return ids


def token_ids(answer: dict[str, object]) -> list[int]:
    """Generated token ids."""
    choices = answer["choices"]
    assert isinstance(choices, list)
    ids: list[int] = choices[0]["token_ids"]
    assert ids
    return ids
