"""The check of a loaded tokenizer: may texts be encoded in segments? Pure."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from router.tokens.chat_template import ChatTemplate
from router.tokens.loaded import PROBE_TEXTS
from router.tokens.types import CannotTokeniseError, Renderer

_PEOPLE: list[dict[str, Any]] = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
_CALL = {"id": "call-0001", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
_CHATS: tuple[Mapping[str, Any], ...] = (
    {"messages": _PEOPLE[:1]},
    {"messages": _PEOPLE},
    {"messages": [{"role": "system", "content": "Be brief."}, *_PEOPLE]},
    {"messages": _PEOPLE, "tools": [_TOOL]},
    {
        "messages": [
            *_PEOPLE,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call-0001", "content": "blue"},
            {"role": "assistant", "content": "It is blue."},
        ],
        "tools": [_TOOL],
    },
)


def sample_chats(chat: ChatTemplate) -> list[str]:
    """The texts of a few chats, those that the template takes."""
    rendered = []
    for fields in _CHATS:
        try:
            rendered.append(chat.render(fields))
        except CannotTokeniseError:
            continue
    return rendered


def check_segments(renderer: Renderer, separators: Sequence[str], samples: Sequence[str]) -> bool:
    """The tokens of the segments are the tokens of the text, for every text tried."""
    return all(
        encode_segments(renderer, text, add_special_tokens=special) == renderer.encode(text, add_special_tokens=special)
        for text in _combined(separators, samples)
        for special in (False, True)
    )


def encode_segments(renderer: Renderer, text: str, *, add_special_tokens: bool) -> bytes:
    """The tokens of `text`, segment by segment."""
    tokens = b"".join(renderer.encode(segment, add_special_tokens=False) for segment in renderer.split(text))
    return renderer.prefix + tokens + renderer.suffix if add_special_tokens else tokens


def _combined(separators: Sequence[str], samples: Sequence[str]) -> Iterator[str]:
    yield from samples
    yield from PROBE_TEXTS
    for separator in separators:
        for before, after in pairwise((*PROBE_TEXTS, "")):
            yield before + separator + after
            yield separator + before + separator
        for other in separators:
            yield f"{separator}{other} x {separator}\n{other}"
