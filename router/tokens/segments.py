"""Texts cut where cutting does not change their tokens, and the tokens of the pieces. Pure.

A tokenizer first finds its added tokens in a text, and encodes what lies between them piece by piece: normaliser,
pre-tokeniser and model never see across an added token. So a text can be cut before an added token, and each piece
encoded on its own. This holds for added tokens that are found in the raw text (`normalized` off), take nothing from
the text before them (`lstrip` off), look at nothing around them (`single_word` off) and overlap with no other; and a
piece must begin with its added token, because some tokenizers treat the beginning of a text differently. Whether it
holds for a tokenizer is checked when it is loaded, and again while it is used.
Source: huggingface/tokenizers, src/tokenizer/added_vocabulary.rs (`extract_and_normalize`).

Invariants of SegmentCache
 1. `num_bytes` is the sum of what its entries cost, and never above the limit after `put`.
 2. What is found is what was put under the same text, unchanged.
 3. The entry that was used longest ago is dropped first.
"""

import re
import sys
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Protocol

# Longer texts are known by their digest. It is a cryptographic one: clients choose the texts.
_MAX_KEY_CHARS = 64
_DIGEST_BYTES = 16
# Of an OrderedDict, besides key and value.
_ENTRY_BYTES = 110
_MAX_SEPARATORS = 16


class AddedToken(Protocol):
    """What `tokenizers` says of an added token."""

    @property
    def content(self) -> str: ...

    @property
    def lstrip(self) -> bool: ...

    @property
    def normalized(self) -> bool: ...

    @property
    def single_word(self) -> bool: ...


def choose_separators(added: Iterable[AddedToken], samples: Sequence[str]) -> tuple[str, ...]:
    """Added tokens before which a text may be cut, of those that occur in `samples`: the most frequent few."""
    first_stage = [token.content for token in added if not token.normalized and token.content]
    plain = {
        token.content
        for token in added
        if not (token.normalized or token.lstrip or token.single_word) and _stands_alone(token.content, first_stage)
    }
    counts = {content: sum(sample.count(content) for sample in samples) for content in plain}
    frequent = sorted((content for content in plain if counts[content]), key=lambda content: -counts[content])
    return tuple(sorted(frequent[:_MAX_SEPARATORS]))


def _stands_alone(content: str, others: Iterable[str]) -> bool:
    """Nothing else can be found where it is found, and the text before it ends as at the end of a text."""
    category = unicodedata.category(content[0]) if content else "Cn"
    if category[0] not in "PS" or category == "Pc":  # a word or white space would go on
        return False
    return not any(
        content in other or any(other.endswith(content[:size]) for size in range(1, len(content)))
        for other in others
        if other != content
    )


class Splitter:
    """Cuts before each separator."""

    def __init__(self, separators: Sequence[str]) -> None:
        longest_first = sorted(separators, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if separators else None

    def split(self, text: str) -> list[str]:
        """The pieces of `text`, in order; none is empty."""
        if self._pattern is None:
            return [text] if text else []
        cuts = [found.start() for found in self._pattern.finditer(text)]
        if not cuts or cuts[0] != 0:
            cuts.insert(0, 0)
        cuts.append(len(text))
        return [text[begin:end] for begin, end in pairwise(cuts) if begin < end]


def segment_key(text: str) -> str | bytes:
    """What a segment is known by; raises UnicodeEncodeError for text that is none (lone surrogates)."""
    if len(text) <= _MAX_KEY_CHARS:
        return text
    return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


class SegmentCache:
    """The tokens of segments, least recently used dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str | bytes, bytes] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str | bytes) -> bytes | None:
        """The segment's tokens, None if they are not here."""
        tokens = self._entries.get(key)
        if tokens is not None:
            self._entries.move_to_end(key)
        return tokens

    def put(self, key: str | bytes, tokens: bytes) -> None:
        """Keep a segment's tokens at the cost of older ones, unless they would fill an eighth of the cache."""
        cost = _cost(key, tokens)
        if key in self._entries or cost > self._max_bytes // 8:
            return
        self._entries[key] = tokens
        self.num_bytes += cost
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= _cost(*self._entries.popitem(last=False))

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.num_bytes = 0


def _cost(key: str | bytes, tokens: bytes) -> int:
    return _ENTRY_BYTES + sys.getsizeof(key) + sys.getsizeof(tokens)
