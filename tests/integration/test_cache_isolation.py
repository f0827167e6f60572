"""Two tenants on real engines with a hand-off: neither finds what the other has cached, in time or in usage."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from router.admin_tokens import digest_of
from tests.stack import Stack, running_stack

pytestmark = [pytest.mark.cluster, pytest.mark.own_cluster, pytest.mark.timeout(600)]

ACME, OTHER = "hr-acme", "hr-other"
BLOCK_SIZE_TOKENS = 32


@pytest.fixture(scope="module", params=["always", "never"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`always`: the prefill engine has the prefix; `never`: the one that decodes."""
    config = {
        "engine": {"dtype": "float32", "max_model_len_tokens": 2304},
        "router": {"hand_off": request.param},
        "slo": {"classes": {"chat": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}}, "default_class": "chat"},
        "identity": {
            "required": True,
            "keys": {digest_of(ACME): {"tenant": "acme"}, digest_of(OTHER): {"tenant": "other"}},
        },
    }
    shape = "1P1D" if request.param == "always" else "1M"
    with running_stack(tmp_path_factory.mktemp("isolated") / "headrace.yaml", config, "--pools", shape) as running:
        running.wait_for_ready()
        yield running


def ask(stack: Stack, key: str, route: str, **fields: Any) -> tuple[int, str]:
    """Cached tokens, and the answer's text."""
    models = httpx.get(f"{stack.http_url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=30).json()
    body = {"model": models["data"][0]["id"], "max_tokens": 4, "temperature": 0, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    response = httpx.post(f"{stack.http_url}{route}", json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    answer = response.json()
    choice = answer["choices"][0]
    cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return cached, choice["text"] if "text" in choice else choice["message"]["content"]


def inputs(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same question in each form that computes keys and values."""
    text = f"{name}: " + " ".join(f"fact {number} is {number * 7 % 13}." for number in range(40))
    yield "/v1/completions", {"prompt": text}
    yield "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}


def test_no_tenant_finds_what_another_has_cached(stack: Stack) -> None:
    for route, fields in inputs("a"):
        first, answer = ask(stack, ACME, route, **fields)
        assert first < BLOCK_SIZE_TOKENS
        theirs, same_answer = ask(stack, OTHER, route, **fields)
        assert theirs < BLOCK_SIZE_TOKENS, "found what another tenant sent"
        assert same_answer == answer, "a salt changes where blocks are found, not what is answered"
        again, _ = ask(stack, ACME, route, **fields)
        assert again >= 4 * BLOCK_SIZE_TOKENS, "its own it finds"
        guess, _ = ask(stack, OTHER, route, cache_salt="a-guess", **fields)
        assert guess < BLOCK_SIZE_TOKENS


def test_without_a_key_nothing_is_answered(stack: Stack) -> None:
    response = httpx.post(f"{stack.http_url}/v1/completions", json={"model": "m", "prompt": "a"}, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
