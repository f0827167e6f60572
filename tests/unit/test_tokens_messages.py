"""What the chat template gets of a request; expectations are what vLLM 0.32's own functions give."""

from typing import Any

import pytest

from router.tokens.messages import build_conversation, dump_tools, without_developer
from router.tokens.types import CannotTokeniseError, Kind

CALL = {"type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}', "x": 1}, "id": "1", "e": 2}


def text(*texts: str, **more: object) -> list[dict[str, object]]:
    return [{"type": "text", "text": each, **more} for each in texts]


def build(message: Any, content_format: Any = "string") -> dict[str, Any]:
    (built,) = build_conversation([message], content_format)
    return built


def refused(message: Any) -> Kind:
    with pytest.raises(CannotTokeniseError) as caught:
        build(message)
    return caught.value.kind


@pytest.mark.parametrize(
    ("content", "as_string", "as_parts"),
    [
        ("hi", "hi", text("hi")),
        ("", "", text("")),
        (None, "", []),
        ([], "", []),
        (text("a", "", "b"), "a\nb", text("a", "", "b")),
        (
            [{"text": "a", "type": "text", "cache_control": {"z": 1}, "name": "n"}],
            "a",
            text("a", cache_control={"z": 1}),
        ),
        ([{"type": "text", "text": "a", "uuid": None}], "a", text("a")),
    ],
)
def test_content_is_joined_or_wrapped(content: object, as_string: str, as_parts: object) -> None:
    message = {"role": "user", "content": content}
    assert build(message) == {"role": "user", "content": as_string}
    assert build(message, "openai") == {"role": "user", "content": as_parts}


def test_a_message_without_content_is_empty() -> None:
    assert build({"role": "assistant"}) == {"role": "assistant", "content": ""}


def test_an_assistant_may_have_refused() -> None:
    message = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert build(message, "openai")["content"] == text("no")
    assert refused({**message, "role": "user"}) is Kind.UNSUPPORTED_FIELD


@pytest.mark.parametrize(
    ("arguments", "decoded"),
    [('{"a": [1, null]}', {"a": [1, None]}), ("", {}), ("[1]", {}), ("5", {}), ("{bad", {})],
)
def test_arguments_of_tool_calls_are_objects(arguments: str, decoded: object) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    built = build({"role": "assistant", "content": None, "tool_calls": [call]})
    assert built["tool_calls"][0]["function"]["arguments"] == decoded


def test_tool_calls_have_their_keys_in_declared_order() -> None:
    (built,) = build({"role": "assistant", "tool_calls": [CALL]})["tool_calls"]
    assert list(built) == ["id", "function", "type", "e"]
    assert list(built["function"].items()) == [("arguments", {"b": 1, "a": 2}), ("name", "f"), ("x", 1)]
    assert CALL["function"]["arguments"] == '{"b": 1, "a": 2}'  # type: ignore[index]  # the request is not changed


@pytest.mark.parametrize("calls", [None, []])
def test_no_tool_calls_are_not_passed_on(calls: object) -> None:
    assert build({"role": "assistant", "content": "x", "tool_calls": calls}) == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_has_both_names(name: str) -> None:
    built = build({"role": "assistant", "content": "x", name: "r"})
    assert built == {"role": "assistant", "content": "x", "reasoning": "r", "reasoning_content": "r"}
    assert "reasoning" not in build({"role": "user", "content": "x", name: "r"})


def test_tool_results_are_strings_in_either_format() -> None:
    message = {"role": "tool", "content": text("a", "", "b"), "tool_call_id": "1", "name": "t"}
    assert build(message) == {"role": "tool", "content": "a\nb", "tool_call_id": "1", "name": "t"}
    assert build(message, "openai")["content"] == "a\n\nb"
    assert build({"role": "tool", "content": []}, "openai") == {"role": "tool", "content": ""}


def test_unknown_keys_and_odd_names_are_dropped() -> None:
    message: dict[str, Any] = {
        "role": "user",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "foo": 1,
        "task": "t",
        "name": None,
    }
    assert build(message) == {"role": "user", "content": "x", "task": "t"}


def test_a_billing_header_is_no_part_of_a_system_message() -> None:
    header = "x-anthropic-billing-header: 1"
    assert build({"role": "system", "content": f"{header}\nBe brief."})["content"] == "Be brief."
    assert build({"role": "system", "content": text(header, "Be brief.")}, "openai")["content"] == text("Be brief.")
    assert build({"role": "user", "content": header})["content"] == header


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("hi", Kind.UNSUPPORTED_FIELD),
        ({"content": "x"}, Kind.UNSUPPORTED_FIELD),
        ({"role": "user", "content": 5}, Kind.UNSUPPORTED_FIELD),
        ({"role": "user", "content": ["bare"]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "user", "content": [{"type": "text"}]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "user", "content": [{"type": "input_text", "text": "x"}]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, Kind.MEDIA),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, Kind.MEDIA),
        ({"role": "user", "content": [{"type": "text", "text": "x", "uuid": "u"}]}, Kind.MEDIA),
        ({"role": "user", "content": "x", "name": 5}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "reasoning": 5}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "tool_calls": "f"}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "tool_calls": ["f"]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": None}]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]}, Kind.UNSUPPORTED_FIELD),
        ({"role": "developer", "content": "x", "tools": []}, Kind.UNSUPPORTED_FIELD),
    ],
)
def test_what_is_not_mirrored_is_said(message: object, kind: Kind) -> None:
    assert refused(message) is kind


def test_arguments_nested_beyond_reason_are_refused() -> None:
    call = {**CALL, "function": {"name": "f", "arguments": "[" * 100_000}}
    assert refused({"role": "assistant", "tool_calls": [call]}) is Kind.UNSUPPORTED_FIELD


@pytest.mark.parametrize("messages", [None, [], "hi", {"role": "user"}])
def test_messages_must_be_a_list_of_some(messages: object) -> None:
    with pytest.raises(CannotTokeniseError):
        build_conversation(messages, "string")


def test_tools_are_dumped_as_declared() -> None:
    tool = {"x": 1, "function": {"parameters": {"z": 1, "a": 2}, "name": "f", "y": 2}, "type": "function"}
    assert repr(dump_tools([tool])) == repr(
        [{"type": "function", "function": {"name": "f", "description": None, "parameters": {"z": 1, "a": 2}}}]
    )


def test_strict_and_deferred_tools() -> None:
    function = {"name": "f", "description": "d", "strict": False}
    (dumped,) = dump_tools([{"function": function, "defer_loading": True}]) or [{}]
    assert list(dumped) == ["type", "function", "defer_loading"]
    assert list(dumped["function"].items())[2:] == [("parameters", None), ("strict", False), ("defer_loading", True)]
    (dumped,) = dump_tools([{"function": {**function, "defer_loading": False}, "defer_loading": True}]) or [{}]
    assert dumped["function"]["defer_loading"] is False


@pytest.mark.parametrize(
    "tools",
    [[], {}, ["f"], [{"type": "custom"}], [{"function": "f"}], [{"function": {"name": 1}}],
     [{"function": {"name": "f", "strict": "true"}}], [{"function": {"name": "f", "parameters": []}}]],
)  # fmt: skip
def test_tools_that_vllm_refuses_or_converts(tools: object) -> None:
    with pytest.raises(CannotTokeniseError):
        dump_tools(tools)


def test_no_tools() -> None:
    assert dump_tools(None) is None


def test_developer_becomes_the_one_system_message() -> None:
    conversation = build_conversation(
        [
            {"role": "developer", "content": "one"},
            {"role": "user", "content": "u"},
            {"role": "system", "content": text("two", "three"), "name": "n"},
            {"role": "system", "content": ""},
        ],
        "openai",
    )
    assert without_developer(conversation) == [
        {"role": "system", "content": "one\n\ntwo\nthree"},
        {"role": "user", "content": text("u")},
    ]


def test_a_first_developer_message_stays_where_it_is() -> None:
    conversation = build_conversation(
        [{"role": "developer", "content": "one"}, {"role": "user", "content": "u"}], "string"
    )
    assert without_developer(conversation) == [{"role": "system", "content": "one"}, {"role": "user", "content": "u"}]
