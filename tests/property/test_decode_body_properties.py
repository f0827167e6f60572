"""decode_body, for any JSON object: the client's object and the handle, the client's bytes first (law 8)."""

import json

from hypothesis import given
from hypothesis import strategies as st

from router.openai import CHAT_ROUTE, parse_body
from tests.property.json_bodies import raw_bodies, text, values
from workers.kv_connector import HANDLE_FIELD, KvHandle, decode_body, parse_handle

# Names that parse_body looks at are left out: what it refuses never gets here.
read = {HANDLE_FIELD, "stream", "ec_transfer_params", "vllm_xargs"}
fields = st.dictionaries(text.filter(lambda name: name not in read), values, min_size=1, max_size=6)
params = st.dictionaries(text, values, max_size=4)


def spliced(raw: bytes, handle: dict[str, object]) -> bytes:
    return b"".join(decode_body(raw, KvHandle("e", 1, json.dumps(handle).encode())))


@given(raw_bodies(fields), params)
def test_the_decode_body_is_the_original_object_and_the_handle(raw: bytes, handle: dict[str, object]) -> None:
    assert json.loads(spliced(raw, handle)) == {**json.loads(raw), HANDLE_FIELD: handle}


@given(raw_bodies(fields), params)
def test_the_original_bytes_are_a_prefix(raw: bytes, handle: dict[str, object]) -> None:
    """Up to the closing brace; nothing between is written anew, so 1.50 stays 1.50."""
    open_object = raw.rstrip()[:-1]
    assert spliced(raw, handle).startswith(open_object)


@given(raw_bodies(fields.map(lambda f: {**f, "model": "m", HANDLE_FIELD: None})), params)
def test_the_handle_wins_over_a_null_that_parse_body_lets_through(raw: bytes, handle: dict[str, object]) -> None:
    assert parse_body(CHAT_ROUTE, raw).model == "m"
    assert json.loads(spliced(raw, handle))[HANDLE_FIELD] == handle


@given(params, text, st.integers(0, 2**40))
def test_a_handle_survives_the_way_from_the_prefill_reply_to_the_decode_call(
    extra: dict[str, object], engine_id: str, num_tokens: int
) -> None:
    sent = {**extra, "remote_engine_id": engine_id, "remote_num_tokens": num_tokens}
    handle = parse_handle(json.dumps({"choices": [], HANDLE_FIELD: sent}).encode())
    assert (handle.engine_id, handle.num_tokens) == (engine_id, num_tokens)
    assert json.loads(b"".join(decode_body(b'{"model":"m"}', handle)))[HANDLE_FIELD] == sent
