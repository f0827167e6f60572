"""The fake engine's tokenizer, for the router: one token a byte, and the fake's own chat template."""

from array import array
from collections.abc import Mapping
from typing import Any

from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.tokens.hf_renderer import read_completion
from router.tokens.types import TOKEN_TYPE, CannotTokeniseError, Kind, PromptText
from workers.fake.model import render_chat, tokenize


class ByteRenderer:
    """A Renderer whose tokens are those of every fake engine."""

    def __init__(self) -> None:
        self.prefix = self.suffix = b""
        self.segments_are_exact = True

    def read(self, route: str, fields: Mapping[str, Any]) -> "PromptText | array[int]":
        """The request's text or token ids; raises CannotTokeniseError for what a fake refuses."""
        if route == COMPLETION_ROUTE:
            return read_completion(fields)
        messages = fields.get("messages")
        if route != CHAT_ROUTE:
            raise CannotTokeniseError(Kind.UNSUPPORTED_ROUTE)
        if not isinstance(messages, list) or not all(isinstance(each, dict) and "role" in each for each in messages):
            raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages")
        return PromptText(render_chat(fields), add_special_tokens=False)

    def split(self, text: str) -> list[str]:
        """Lines."""
        return text.splitlines(keepends=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        """The bytes of `text`, a token each."""
        return array(TOKEN_TYPE, tokenize(text)).tobytes()
