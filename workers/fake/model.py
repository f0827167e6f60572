"""The fake engine's model: a byte tokenizer, one chat template and a generator of readable nonsense. Pure.

The next token depends on nothing but the tokens before it and the seed, as with a real model decoding greedily. So
every fake goes on with the same text from the same prefix: after a hand-off, a retry or a migration in mid-stream.
Output is lower-case ASCII, one byte a token, and comes back from `tokenize` unchanged.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VOCAB_SIZE = 1 << 31
_ALPHABET = b"etaoinshrdlucmfwypvbgkjqxz"
_SPACE = ord(" ")
_CANDIDATES = bytes((*_ALPHABET, _SPACE))
# Fields that shape a chat prompt besides its messages. A proxy that drops one changes the tokens, and so the answer.
_PROMPT_FIELDS = ("tools", "documents", "chat_template_kwargs", "reasoning_effort")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A generated token and its log probability."""

    token_id: int
    logprob: float

    def top(self, count: int) -> list[tuple[int, float]]:
        """The `count` likeliest candidates at its place and their log probabilities, itself first."""
        rank = _CANDIDATES.index(self.token_id)
        shown = range(min(count, len(_CANDIDATES)))
        return [(_CANDIDATES[(rank + offset) % len(_CANDIDATES)], self.logprob - offset / 2) for offset in shown]


def tokenize(text: str) -> tuple[int, ...]:
    """Token ids of `text`: its UTF-8 bytes."""
    return tuple(text.encode("utf-8", errors="replace"))


def detokenize(token_ids: Sequence[int]) -> str:
    """The inverse of `tokenize`; ids that are no byte become U+FFFD."""
    known = b"".join(bytes((token,)) if token < 256 else "\ufffd".encode() for token in token_ids)
    return known.decode("utf-8", errors="replace")


def render_chat(body: Mapping[str, Any]) -> str:
    """The prompt of a chat request whose messages have been checked."""
    parts = [f"[{name}] {json.dumps(body[name], sort_keys=True)}\n" for name in _PROMPT_FIELDS if body.get(name)]
    parts += [f"[{message['role']}] {_content(message.get('content'))}\n" for message in body["messages"]]
    if body.get("continue_final_message"):
        return "".join(parts).removesuffix("\n")
    return "".join(parts) + ("[assistant] " if body.get("add_generation_prompt", True) else "")


def _content(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return "" if content is None else str(content)


class TokenSource:
    """The continuation of `context` under `seed`."""

    def __init__(self, context: Sequence[int], seed: int) -> None:
        self._state = hashlib.blake2b(seed.to_bytes(16, "little", signed=True), digest_size=8)
        self._state.update(array("I", context).tobytes())

    def next_token(self) -> Sampled:
        """Generate one token; it becomes part of the context."""
        choice, doubt = self._state.digest()[:2]
        # About one in six is a space, so the text has words.
        token = _ALPHABET[choice % len(_ALPHABET)] if choice % 6 else _SPACE
        self._state.update(array("I", (token,)).tobytes())
        return Sampled(token, -doubt / 256)


class StopScanner:
    """Finds stop strings in a growing text and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include_stop = include_stop
        self._held_back = ""
        self._keep = max((len(stop) for stop in self._stops), default=1) - 1

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take in text; return what may be shown now and the stop string that ended it, if one did."""
        pending = self._held_back + text
        found = min(((pending.find(stop), stop) for stop in self._stops if stop in pending), default=None)
        if found is not None:
            at, stop = found
            self._held_back = ""
            return pending[: at + len(stop) if self._include_stop else at], stop
        cut = len(pending) - min(self._keep, len(pending))
        self._held_back = pending[cut:]
        return pending[:cut], None

    def flush(self) -> str:
        """What is still held back; the text ends here."""
        held_back, self._held_back = self._held_back, ""
        return held_back
