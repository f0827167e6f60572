"""Segments give the tokens of the whole text, for every shape of tokenizer; the cache against a brute-force twin."""

import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.tokens.engine_options import EngineOptions
from router.tokens.hf_renderer import HfRenderer
from router.tokens.loaded import LoadedTokenizer
from router.tokens.loader import build_renderer
from router.tokens.probes import encode_segments
from router.tokens.segments import SegmentCache, Splitter
from router.tokens.tokenizer import weigh
from tests.property.json_bodies import values
from tests.tokenizer_shapes import CHATML, SHAPES

_PIECES = (
    "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<tool_call>", "\n<|", "<|im_end|>\n", "<mask>", "<sep>", "WORD",
    "<|im_sep|>", "<norm>", "[CLS]", "<|im_", "|>", "<", " ", "  ", "\n", "\t", "\u00a0", "▁", "user", "Hello", "日本",
    "e\u0301", "👍🏽", "İ", "ﬁ", "'s", "123456", "\x00",
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=6)), max_size=12).map("".join)


@cache
def renderer(index: int) -> HfRenderer:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    loaded = LoadedTokenizer(SHAPES[index]().to_str(), CHATML, special, False, "", [])
    return build_renderer(loaded, EngineOptions())


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=[shape.__name__ for shape in SHAPES])
@given(text=texts, special=st.booleans())
@settings(max_examples=200)
def test_tokens_of_segments_are_the_tokens_of_the_text(index: int, text: str, special: bool) -> None:
    one = renderer(index)
    assert one.segments_are_exact
    assert encode_segments(one, text, add_special_tokens=special) == one.encode(text, add_special_tokens=special)


@given(text=texts, separators=st.lists(st.sampled_from(_PIECES[:12]), unique=True))
def test_cutting_loses_nothing_and_cuts_only_before_separators(text: str, separators: list[str]) -> None:
    pieces = Splitter(separators).split(text)
    assert "".join(pieces) == text
    assert all(pieces)
    assert all(piece.startswith(tuple(separators)) for piece in pieces[1:])


_keys = st.one_of(st.sampled_from("abcdef"), st.sampled_from([b"1", b"2"]))
_steps = st.lists(st.tuples(st.sampled_from(["get", "put"]), _keys, st.integers(0, 700)), max_size=60)


@given(steps=_steps, max_bytes=st.sampled_from([1024, 4000, 8000]))
def test_cache_is_its_twin(steps: list[tuple[str, str | bytes, int]], max_bytes: int) -> None:
    cache_, twin = SegmentCache(max_bytes), _Twin(max_bytes)
    for step, key, size in steps:
        tokens = bytes([len(key)]) * size
        if step == "get":
            assert cache_.get(key) == twin.get(key)  # invariants 2 and 3
        else:
            cache_.put(key, tokens)
            twin.put(key, tokens)
        assert cache_.num_bytes == twin.num_bytes() <= max_bytes  # invariant 1
        assert len(cache_) == len(twin.entries)


class _Twin:
    """The cache as a list, oldest first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries: list[tuple[str | bytes, bytes]] = []

    def num_bytes(self) -> int:
        return sum(self._cost(key, tokens) for key, tokens in self.entries)

    def get(self, key: str | bytes) -> bytes | None:
        for index, (known, tokens) in enumerate(self.entries):
            if known == key:
                self.entries.append(self.entries.pop(index))
                return tokens
        return None

    def put(self, key: str | bytes, tokens: bytes) -> None:
        if self._cost(key, tokens) > self.max_bytes // 8 or any(known == key for known, _ in self.entries):
            return
        self.entries.append((key, tokens))
        while self.num_bytes() > self.max_bytes:
            self.entries.pop(0)

    @staticmethod
    def _cost(key: str | bytes, tokens: bytes) -> int:
        return 110 + sys.getsizeof(key) + sys.getsizeof(tokens)


@given(body=st.dictionaries(st.text(max_size=5), values), limit=st.integers(0, 2000))
def test_weighing_sees_every_character_up_to_its_limit(body: dict[str, object], limit: int) -> None:
    weight = weigh(body, limit)
    assert weight > limit or weight >= _num_chars(body)


def _num_chars(value: object) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_num_chars(each) for each in value.values())
    return sum(_num_chars(each) for each in value) if isinstance(value, list) else 0
