"""prefill_body, for any body: what shapes the prompt is what the client sent, so both engines see the same tokens."""

import json

from hypothesis import given
from hypothesis import strategies as st

from router.openai import CHAT_ROUTE, parse_body
from tests.property.json_bodies import raw_bodies, text, values
from workers.kv_connector import HANDLE_FIELD, prefill_body

# vLLM 0.32, ChatCompletionRequest and CompletionRequest: fields that only say what to do with generated tokens.
OUTPUT_ONLY = {
    "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "logprobs", "top_logprobs",
    "logprob_token_ids", "structured_outputs", "stop", "stop_token_ids", "thinking_token_budget",
}  # fmt: skip
SET_BY_US = {"max_tokens": 1, "stream": False, HANDLE_FIELD: {"do_remote_decode": True}}

names = st.one_of(text, st.sampled_from(sorted(OUTPUT_ONLY)), st.sampled_from(["messages", "tools", "response_format"]))
fields = st.dictionaries(names.filter(lambda name: name != HANDLE_FIELD), values, max_size=8)


@given(raw_bodies(fields))
def test_everything_else_is_kept_as_it_is(raw: bytes) -> None:
    kept = {name: value for name, value in json.loads(raw).items() if name not in OUTPUT_ONLY}
    assert json.loads(prefill_body(raw)) == {**kept, **SET_BY_US}


@given(raw_bodies(fields.map(lambda f: {**f, "model": "m", "stream": True})))
def test_numbers_and_texts_survive_the_way_through_the_router(raw: bytes) -> None:
    """What parse_body lets through loses no precision and no character in prefill_body."""
    assert parse_body(CHAT_ROUTE, raw).model == "m"
    sent, prefill = json.loads(raw), json.loads(prefill_body(raw))
    assert {k: v for k, v in prefill.items() if k not in SET_BY_US} == {
        k: v for k, v in sent.items() if k not in OUTPUT_ONLY
    }
