"""Where a text may be cut, and what is kept of its pieces."""

import gc
import tracemalloc
from dataclasses import dataclass

import pytest

from router.tokens.segments import SegmentCache, Splitter, choose_separators, segment_key


@dataclass(frozen=True)
class Added:
    content: str
    lstrip: bool = False
    normalized: bool = False
    single_word: bool = False


START, END = Added("<|start|>"), Added("<|end|>")
SAMPLE = "<|start|>user\nhi<|end|>\n<|start|>"


def test_separators_are_the_added_tokens_of_the_samples() -> None:
    assert choose_separators([START, END, Added("<|other|>")], [SAMPLE]) == ("<|end|>", "<|start|>")
    assert choose_separators([START, END], []) == ()


@pytest.mark.parametrize(
    "other",
    [
        Added("x<|start|>"),  # holds it
        Added("<|start|>\n"),  # is longer
        Added("\n<|"),  # begins before it and takes its first characters
        Added("<"),  # begins where it begins
    ],
)
def test_no_separator_overlaps_with_another_added_token(other: Added) -> None:
    assert "<|start|>" not in choose_separators([START, other], [SAMPLE])


def test_tokens_of_the_second_stage_overlap_with_nothing() -> None:
    assert choose_separators([START, Added("\n<|", normalized=True)], [SAMPLE]) == ("<|start|>",)


@pytest.mark.parametrize("name", ["lstrip", "normalized", "single_word"])
def test_tokens_that_look_around_are_no_separators(name: str) -> None:
    assert choose_separators([Added("<|start|>", **{name: True})], [SAMPLE]) == ()


@pytest.mark.parametrize("content", ["", " <x>", "\n\n", "word", "_x", "é>", "日"])
def test_tokens_that_go_on_what_is_before_them_are_no_separators(content: str) -> None:
    assert choose_separators([Added(content)], [f"a{content}b"]) == ()


def test_the_most_frequent_of_many() -> None:
    many = [Added(f"<{index:02}>") for index in range(40)]
    chosen = choose_separators(many, ["".join(token.content * (1 + index) for index, token in enumerate(many))])
    assert chosen == tuple(f"<{index:02}>" for index in range(24, 40))


def test_longer_separators_first() -> None:
    assert Splitter(["<a", "<a>"]).split("x<a>y<a z") == ["x", "<a>y", "<a z"]
    assert Splitter([]).split("x<a>") == ["x<a>"]
    assert Splitter(["<a>"]).split("") == Splitter([]).split("") == []


def test_keys() -> None:
    assert segment_key("a" * 64) == "a" * 64
    assert segment_key("a" * 65) != segment_key("a" * 66)
    assert len(segment_key("日" * 100_000)) == 16
    with pytest.raises(UnicodeEncodeError):
        segment_key("\ud800" * 100)


def test_an_entry_costs_what_is_counted() -> None:
    """By Python's own allocator, on average: the tables of a dictionary grow in steps."""
    cache = SegmentCache(1 << 30)
    gc.collect()
    tracemalloc.start()
    for index in range(20_000):
        text = f"<|start|>user\n{index} " + "x" * (index % 200)
        cache.put(segment_key(text), bytes(4 * (1 + index % 60)))
    measured = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.85 < measured / cache.num_bytes < 1.15


def test_clearing() -> None:
    cache = SegmentCache(10_000)
    cache.put("a", b"1234")
    cache.clear()
    assert (cache.get("a"), cache.num_bytes, len(cache)) == (None, 0, 0)
