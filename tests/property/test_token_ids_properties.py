"""A prompt's text is replaced by ids and nothing else of the body is."""

import json
from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.tokens.ids import SAFE_FIELDS, takes_ids, with_ids
from tests.property.json_bodies import raw_bodies, text, values

with_prompt = st.builds(lambda fields, prompt: {**fields, "prompt": prompt}, st.dictionaries(text, values), text)


@given(raw=raw_bodies(with_prompt), tokens=st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_only_the_prompt_changes(raw: bytes, tokens: list[int]) -> None:
    changed = json.loads(with_ids(raw, array("I", tokens)))
    assert changed == {**json.loads(raw), "prompt": tokens}


@given(st.dictionaries(st.sampled_from([*sorted(SAFE_FIELDS), "echo", "suffix", "use_beam_search", "zz"]), st.none()))
def test_only_known_fields_may_be_beside_ids(fields: dict[str, Any]) -> None:
    body = {**fields, "prompt": "text"}
    assert takes_ids(COMPLETION_ROUTE, body) is (set(body) <= SAFE_FIELDS)
    assert not takes_ids(CHAT_ROUTE, body)
    assert not takes_ids(COMPLETION_ROUTE, {**fields, "prompt": ["text"]})
    assert not takes_ids(COMPLETION_ROUTE, {**fields, "prompt": [1, 2]})
