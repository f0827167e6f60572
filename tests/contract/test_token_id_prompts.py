"""A prompt's token ids in place of its text: the engine's answer is the same, beside every field that may be there."""

import json
import math
from typing import Any

import httpx
import pytest

from router.tokens.ids import SAFE_FIELDS
from tests.contract.engine_requests import COMPLETIONS, Engine

_PROMPT = "The quick brown fox, naïve café <|im_end|> 日本 and then"
# Each field once at least, with a value that does something.
_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "streamed": {"stream": True, "stream_options": {"include_usage": True}, "stream_interval": 1},
    "log probabilities": {"logprobs": 2},
    "log probabilities, streamed": {"logprobs": 2, "stream": True},
    "ids in the answer": {"return_token_ids": True},
    "stops": {"stop": [" a"], "stop_token_ids": [0], "include_stop_str_in_output": True},
    "sampled": {"n": 2, "temperature": 0.8, "seed": 7, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "lengths": {"min_tokens": 5, "ignore_eos": True},
    "bias": {"logit_bias": {"5": 1.0}},
    "special tokens": {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    "salted": {"cache_salt": "salt", "priority": 0},
    "json": {"response_format": {"type": "json_object"}, "max_tokens": 12},
    "regex": {"structured_outputs": {"regex": "[0-9]{3}"}},
    "who": {"user": "u", "metadata": {"a": "b"}, "store": False, "safety_identifier": "s"},
    "too many tokens": {"max_tokens": 1_000_000},
    "no tokens": {"max_tokens": 0},
}


def test_every_safe_field_is_tried() -> None:
    tried = {name for fields in _CASES.values() for name in fields}
    assert tried | {"model", "prompt", "max_tokens", "temperature"} == SAFE_FIELDS


@pytest.mark.parametrize("name", _CASES)
def test_text_and_ids_get_the_same_answer(name: str, engine: Engine, http: httpx.Client) -> None:
    body = {"model": engine.model, "max_tokens": 6, "temperature": 0, "seed": 1, **_CASES[name]}
    tokens = http.post("/tokenize", json={"model": engine.model, "prompt": _PROMPT}).json()["tokens"]
    http.post(COMPLETIONS, json={**body, "prompt": _PROMPT})  # so that as much is cached for the one as for the other
    with_text = http.post(COMPLETIONS, json={**body, "prompt": _PROMPT})
    with_ids = http.post(COMPLETIONS, json={**body, "prompt": tokens})
    assert with_text.status_code == with_ids.status_code
    texts, ids = (read(answer.text) for answer in (with_text, with_ids))
    assert is_same(texts, ids), (texts, ids)


def read(answer: str) -> list[Any]:
    """The objects of an answer, streamed or not."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line and not line.endswith("[DONE]")]
    return [json.loads(line) for line in lines]


def is_same(one: Any, other: Any) -> bool:
    """All that two equal requests have in common: not their ids, nor times, nor the last digits of a probability."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = one.keys() - {"id", "created"}
        return names == other.keys() - {"id", "created"} and all(is_same(one[name], other[name]) for name in names)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, abs_tol=1e-3)
    return bool(one == other)
