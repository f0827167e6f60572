"""Requests to token ids with a Hugging Face tokenizer. Pure: it is given what the loader has read."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from router.openai import CHAT_ROUTE, COMPLETION_ROUTE
from router.tokens.chat_template import ChatTemplate, read_bool
from router.tokens.loaded import LoadedTokenizer
from router.tokens.segments import Splitter, choose_separators
from router.tokens.types import TOKEN_TYPE, CannotTokeniseError, Kind, PromptText

# The engine makes other tokens, or none, if one of these is set.
_UNSUPPORTED = ("truncate_prompt_tokens", "prompt_embeds", "suffix", "mm_processor_kwargs", "media_io_kwargs")


class HfRenderer:
    """Renderer for one model; safe to call from several threads."""

    def __init__(self, loaded: LoadedTokenizer, chat: ChatTemplate, samples: Sequence[str]) -> None:
        """`samples`: rendered chats; the added tokens in them are where texts are cut."""
        self._tokenizer = Tokenizer.from_str(loaded.tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = loaded.encodes_special_tokens
        self._chat = chat
        self._chat_refused = loaded.chat_refused
        added = self._tokenizer.get_added_tokens_decoder().values()
        separators = () if loaded.encodes_special_tokens else choose_separators(added, samples)
        self._splitter = Splitter(separators)
        self.separators = separators
        self.segments_are_exact = False  # until it has been checked
        self.prefix, self.suffix = self._special_tokens_around()

    def read(self, route: str, fields: Mapping[str, Any]) -> "PromptText | array[int]":
        """The request's text or token ids; raises CannotTokeniseError."""
        for name in _UNSUPPORTED:
            if fields.get(name) is not None:
                raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, name)
        if route == CHAT_ROUTE:
            if self._chat_refused:
                raise CannotTokeniseError(Kind.UNSUPPORTED_ENGINE, self._chat_refused)
            add_special_tokens = read_bool(fields, "add_special_tokens", default=False)
            return PromptText(self._chat.render(fields), add_special_tokens)
        if route == COMPLETION_ROUTE:
            return read_completion(fields)
        raise CannotTokeniseError(Kind.UNSUPPORTED_ROUTE)

    def split(self, text: str) -> list[str]:
        """Segments of `text`, in order."""
        return self._splitter.split(text)

    def encode(self, text: str, *, add_special_tokens: bool) -> bytes:
        """The tokens of `text`."""
        try:
            # `encode` would keep other threads waiting, and the plain batch call computes offsets.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except BaseException as error:  # a panic in Rust is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise CannotTokeniseError(Kind.FAILED, type(error).__name__) from None
        return array(TOKEN_TYPE, encoding.ids).tobytes()

    def _special_tokens_around(self) -> tuple[bytes, bytes]:
        """What is put around a text. Where it is not the same around every text, the check of segments fails."""
        plain = self.encode("a", add_special_tokens=False)
        around = self.encode("a", add_special_tokens=True)
        size = array(TOKEN_TYPE).itemsize
        begins = (begin for begin in range(0, len(around), size) if around.startswith(plain, begin))
        begin = next(begins, 0)
        return around[:begin], around[begin + len(plain) :]


def read_completion(fields: Mapping[str, Any]) -> "PromptText | array[int]":
    """The prompt of a completion request. Raises CannotTokeniseError."""
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        (prompt,) = prompt
    if isinstance(prompt, str):
        return PromptText(prompt, read_bool(fields, "add_special_tokens", default=True))
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], str | list):
            raise CannotTokeniseError(Kind.SEVERAL_PROMPTS)
        try:
            return array(TOKEN_TYPE, prompt)
        except (TypeError, OverflowError):
            pass
    raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "prompt")
