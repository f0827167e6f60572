"""From the `messages` and `tools` of a request to what the chat template gets, as vLLM 0.32 does it. Pure.

Sources: vllm/renderers/chat_utils.py (`_parse_chat_message_content`, `_postprocess_messages`), vllm/renderers/hf.py
(`_convert_developer_to_system`) and the pydantic types of vllm/entrypoints/openai/chat_completion/protocol.py, which
put the keys of tools and tool calls into the order of their declaration. What vLLM refuses is NotTokenised here, and
so is what it takes but is not mirrored.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from router.tokens.template_facts import ContentFormat
from router.tokens.types import CannotTokeniseError, Kind

Message = dict[str, Any]

# Keys of content parts that vLLM knows; in the format `openai` others are passed to the template.
# Source: vllm/renderers/chat_utils.py, `_KNOWN_CONTENT_PART_FIELDS`.
_PART_KEYS = frozenset(
    """
    audio_embeds audio_url closed data file image_embeds image_pil image_url input_audio name prompt_cache_breakpoint
    refusal text thinking type uuid video_embeds video_url
    """.split()  # noqa: SIM905  a list of names
)
_TEXT_KEYS = {"name", "prompt_cache_breakpoint", "refusal", "text", "type", "uuid"}
_MEDIA_KEYS = (_PART_KEYS - _TEXT_KEYS) | {"tool_reference"}
# A line that changes with every request of one client, and that vLLM drops from system messages.
_BILLING_HEADER = "x-anthropic-billing-header"


def build_conversation(messages: object, content_format: ContentFormat) -> list[Message]:
    """The messages as the template gets them; raises CannotTokeniseError."""
    if not isinstance(messages, list) or not messages:
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages")
    return [_build_message(message, wrap=content_format == "openai") for message in messages]


def without_developer(conversation: Sequence[Message]) -> list[Message]:
    """For a template that does not know the role: `developer` is `system`, and one system message comes first."""
    converted = [_as_system(message) if message["role"] == "developer" else message for message in conversation]
    system = [index for index, message in enumerate(converted) if message["role"] == "system"]
    if not any(system):  # none, or one that comes first
        return converted
    contents = [_flat(converted[index].get("content", "")) for index in system]
    merged = {"role": "system", "content": "\n\n".join(content for content in contents if content)}
    return [merged, *(message for message in converted if message["role"] != "system")]


def dump_tools(tools: object) -> list[dict[str, Any]] | None:
    """`tools` as the template gets them: declared keys only, in the order of their declaration."""
    if tools is None:
        return None
    if not isinstance(tools, list) or not tools:
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "tools")
    return [_dump_tool(tool) for tool in tools]


def _build_message(message: object, *, wrap: bool) -> Message:
    if not isinstance(message, dict):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages")
    role = _text(message, "role")
    built: Message = {"role": role, "content": _build_content(role, message.get("content"), wrap=wrap)}
    if role == "assistant":
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.tool_calls")
        if calls:
            built["tool_calls"] = [_build_tool_call(call) for call in calls]
        reasoning = _optional(message, "reasoning", str)
        reasoning = _optional(message, "reasoning_content", str) if reasoning is None else reasoning
        if reasoning is not None:
            built["reasoning"] = built["reasoning_content"] = reasoning
    elif role == "tool":
        if "tool_call_id" in message:
            built["tool_call_id"] = _optional(message, "tool_call_id", str)
        built["content"] = _flat(built["content"])
    for name in ("name", "task"):
        if _optional(message, name, str) is not None:
            built[name] = message[name]
    if role == "developer":
        if message.get("tools") is not None:
            raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.tools")
        built["tools"] = None
    return built


def _build_content(role: str, content: object, *, wrap: bool) -> str | list[Message]:
    if isinstance(content, str):
        parts: list[Message] = [{"type": "text", "text": content}]
    elif content is None:
        parts = []
    elif isinstance(content, list):
        parts = [_build_part(role, part) for part in content]
    else:
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.content")
    if role == "system":
        parts = [part for part in map(_without_header, parts) if part is not None]
    return parts if wrap else "\n".join(part["text"] for part in parts if part["text"])


def _build_part(role: str, part: object) -> Message:
    # A list that mixes in bare strings is taken or refused depending on its neighbours.
    if not isinstance(part, dict):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.content")
    kind = part.get("type")
    if part.get("uuid") is not None or not _MEDIA_KEYS.isdisjoint(part):
        raise CannotTokeniseError(Kind.MEDIA, "messages.content")
    if kind == "text":
        text = part.get("text")
    elif kind == "refusal" and role == "assistant":
        text = part.get("refusal")
    else:
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.content.type")
    if not isinstance(text, str):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.content.text")
    return {"type": "text", "text": text, **{key: value for key, value in part.items() if key not in _PART_KEYS}}


def _without_header(part: Message) -> Message | None:
    if not part["text"].startswith(_BILLING_HEADER):
        return part
    rest = part["text"].partition("\n")[2]
    return {**part, "text": rest} if rest else None


def _build_tool_call(call: object) -> Message:
    if not isinstance(call, dict) or call.get("type") != "function":
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.tool_calls")
    function = call.get("function")
    if not isinstance(function, dict):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.tool_calls.function")
    arguments, name = _text(function, "arguments"), _text(function, "name")
    declared = {"arguments": _decode_arguments(arguments), "name": name}
    return {
        "id": _text(call, "id"),
        "function": declared | {key: value for key, value in function.items() if key not in declared},
        "type": "function",
        **{key: value for key, value in call.items() if key not in ("id", "function", "type")},
    }


def _decode_arguments(arguments: str) -> dict[str, Any]:
    """Templates want an object; what a model once wrote badly must not end the conversation."""
    try:
        decoded = json.loads(arguments) if arguments else {}
    except json.JSONDecodeError:
        return {}
    except RecursionError:
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "messages.tool_calls.arguments") from None
    return decoded if isinstance(decoded, dict) else {}


def _dump_tool(tool: object) -> dict[str, Any]:
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "tools")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "tools.function")
    deferred = _optional(tool, "defer_loading", bool)
    function_deferred = _optional(function, "defer_loading", bool)
    dumped = {
        "name": _text(function, "name"),
        "description": _optional(function, "description", str),
        "parameters": _optional(function, "parameters", dict),
    }
    unset_if_none = {
        "strict": _optional(function, "strict", bool),
        "defer_loading": deferred if function_deferred is None else function_deferred,
    }
    dumped |= {key: value for key, value in unset_if_none.items() if value is not None}
    outer: dict[str, Any] = {"type": "function", "function": dumped}
    return outer if deferred is None else {**outer, "defer_loading": deferred}


def _as_system(message: Message) -> Message:
    return {**{key: value for key, value in message.items() if key != "tools"}, "role": "system"}


def _flat(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return str(content)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, name)
    return value


def _optional(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field's value or None; another type than `kind` is one that pydantic refuses or converts."""
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, name)
    return value
