"""JSON bodies as clients send them: any object, in any legal spelling."""

import json

from hypothesis import strategies as st

# No surrogates: they are not text, and parse_body refuses them (test_openai.py).
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, text, st.sampled_from(["}", '"}', "\\", "kv_transfer_params"])),
    lambda children: st.one_of(st.lists(children, max_size=4), st.dictionaries(text, children, max_size=4)),
    max_leaves=12,
)
space = st.text(" \t\r\n", max_size=3)


@st.composite
def raw_bodies(draw: st.DrawFn, fields: st.SearchStrategy[dict[str, object]]) -> bytes:
    """An object as bytes: with or without spaces, escapes and trailing white space."""
    body = json.dumps(draw(fields), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 0, 3])))
    return (draw(space) + body + draw(space)).encode()
