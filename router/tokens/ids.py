"""A completion's text prompt, replaced by the token ids that the router has counted anyway. Pure.

vLLM's /v1/completions takes a prompt as token ids and then does not tokenise: with a hand-off, two engines are spared.
Chat completions have no such field. The answer must not depend on it, so that only requests are changed all of whose
fields are known to mean the same with ids; echo, truncation, beam search and the like are left alone, and so is a
prompt that may be too long, for the engine words that error differently.
Source: vLLM 0.32, vllm/entrypoints/openai/completion.
"""

from array import array
from collections.abc import Mapping
from typing import Any

import msgspec

from router.openai import COMPLETION_ROUTE

# Fields beside which text and ids give the same answer (tests/contract/test_token_id_prompts.py asks a real engine).
SAFE_FIELDS = frozenset(
    """
    model prompt cache_salt frequency_penalty ignore_eos include_stop_str_in_output logit_bias logprobs max_tokens
    metadata min_p min_tokens n presence_penalty priority repetition_penalty response_format return_token_ids
    safety_identifier seed skip_special_tokens spaces_between_special_tokens stop stop_token_ids store stream
    stream_interval stream_options structured_outputs temperature top_k top_p user
    """.split()  # noqa: SIM905  a list of names
)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def takes_ids(route: str, fields: Mapping[str, Any]) -> bool:
    """Whether ids may stand in for the text of this request."""
    return route == COMPLETION_ROUTE and isinstance(fields.get("prompt"), str) and fields.keys() <= SAFE_FIELDS


def with_ids(raw_body: bytes, tokens: "array[int]") -> bytes:
    """The body with `tokens` as its prompt; every other value keeps its bytes. `raw_body` is a JSON object."""
    fields = _FIELDS.decode(raw_body)
    fields["prompt"] = msgspec.Raw(msgspec.json.encode(tokens.tolist()))
    return msgspec.json.encode(fields)
