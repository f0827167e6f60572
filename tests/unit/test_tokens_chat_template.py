"""Which template renders a chat, with which variables, and what it is taken for."""

from typing import Any

import pytest

from router.tokens.chat_template import ChatTemplate
from router.tokens.engine_options import EngineOptions, read_engine_args
from router.tokens.template_facts import read_template
from router.tokens.types import CannotTokeniseError, Kind

PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
VARIABLES = (
    "{{ [enable_thinking | default(none), reasoning_effort | default(none), mode | default(none), documents, "
    "cohere_format] | tojson }}"
)
MESSAGES = [{"role": "user", "content": "hi"}]


def render(template: Any, options: EngineOptions | None = None, **fields: Any) -> str:
    chat = ChatTemplate(template, {"bos_token": "<s>"}, options or EngineOptions())
    return chat.render({"messages": MESSAGES, **fields})


def refused(template: Any, options: EngineOptions | None = None, **fields: Any) -> Kind:
    with pytest.raises(CannotTokeniseError) as caught:
        render(template, options, **fields)
    return caught.value.kind


def test_generation_prompt() -> None:
    assert render(PLAIN) == "<s>user: hi\nassistant: "
    assert render(PLAIN, add_generation_prompt=False) == "<s>user: hi\n"


def test_the_final_message_is_left_open() -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    fields: dict[str, Any] = {"messages": messages, "continue_final_message": True}
    assert render(PLAIN, **fields, add_generation_prompt=False) == "<s>user: hi\nassistant: Well, "
    assert refused(PLAIN, **fields) is Kind.UNSUPPORTED_FIELD  # the generation prompt is the default
    assert fields["messages"] is messages
    assert messages[1]["content"] == "Well, "


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, '[null, null, null, null, "cmd4"]'),
        ({"reasoning_effort": "low"}, '[true, "low", null, null, "cmd4"]'),
        ({"reasoning_effort": "none"}, '[false, "none", null, null, "cmd4"]'),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": 0}}, '[0, "low", null, null, "cmd4"]'),
        ({"chat_template_kwargs": {"mode": "auto", "reasoning_effort": "high"}}, '[null, "high", null, null, "cmd4"]'),
        (
            {"documents": [{"a": "b"}], "chat_template_kwargs": {"documents": []}},
            '[null, null, null, [{"a": "b"}], "cmd4"]',
        ),
        ({"chat_template_kwargs": {"documents": [{"a": "b"}], "mode": 1}}, '[null, null, 1, [{"a": "b"}], "cmd4"]'),
        ({"chat_template_kwargs": {"add_generation_prompt": False, "unused": 1}}, '[null, null, null, null, "cmd4"]'),
    ],
)
def test_variables(fields: dict[str, Any], variables: str) -> None:
    assert render(VARIABLES, **fields) == variables


def test_the_engines_own_variables_are_defaults() -> None:
    options = EngineOptions(template_variables={"mode": "m", "enable_thinking": False})
    template = "{{ [mode, enable_thinking] }}"
    assert render(template, options) == "['m', False]"
    assert render(template, options, chat_template_kwargs={"mode": "auto", "enable_thinking": True}) == "['m', True]"


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "tools", "truncation", "messages"])
def test_variables_that_would_reach_transformers_are_not_mirrored(name: str) -> None:
    assert refused(PLAIN, chat_template_kwargs={name: True}) is Kind.UNSUPPORTED_FIELD


def test_a_clients_template_is_rendered_where_the_engine_trusts_it() -> None:
    assert refused(PLAIN, chat_template="x") is Kind.CLIENT_TEMPLATE
    trusting = EngineOptions(trusts_request_template=True)
    assert render(PLAIN, trusting, chat_template="{{ messages | length }}") == "1"
    assert render(PLAIN, trusting, chat_template="") == render(PLAIN)
    assert refused(PLAIN, trusting, chat_template="{{ oops") is Kind.TEMPLATE
    assert refused(PLAIN, trusting, chat_template=5) is Kind.CLIENT_TEMPLATE
    outside = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    assert refused(PLAIN, trusting, chat_template=outside) is Kind.TEMPLATE  # the sandbox holds
    assert refused(PLAIN, trusting, chat_template="{{ messages.append(1) }}") is Kind.TEMPLATE


def test_templates_by_name() -> None:
    both = {"default": "d", "tool_use": "t"}
    tool = {"type": "function", "function": {"name": "f"}}
    assert render(both) == "d"
    assert render(both, tools=[tool]) == "t"
    assert render({"default": "d"}, tools=[tool]) == "d"
    assert refused({"tool_use": "t"}) is Kind.TEMPLATE
    assert render(both, EngineOptions(chat_template="tool_use")) == "t"
    assert render(both, EngineOptions(trusts_request_template=True), chat_template="tool_use") == "t"


def test_the_engines_template_stands_before_the_models() -> None:
    assert render(PLAIN, EngineOptions(chat_template="{{ 'engine' }}")) == "engine"
    assert render(None, EngineOptions(chat_template="{{ 'engine' }}")) == "engine"


def test_without_a_template_there_is_no_chat() -> None:
    assert refused(None) is Kind.TEMPLATE


def test_tools_of_choice_none_may_be_dropped() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    template = "{{ tools | length if tools else 0 }}"
    assert render(template, tools=[tool], tool_choice="none") == "1"
    assert render(template, EngineOptions(drops_tools_of_choice_none=True), tools=[tool], tool_choice="none") == "0"
    assert render(template, EngineOptions(drops_tools_of_choice_none=True), tools=[tool], tool_choice="auto") == "1"


def test_what_a_template_refuses_is_not_quoted() -> None:
    template = "{{ raise_exception('no ' + messages[0].content) }}"
    with pytest.raises(CannotTokeniseError) as caught:
        render(template, messages=[{"role": "user", "content": "secret"}])
    assert caught.value.kind is Kind.TEMPLATE
    assert "secret" not in str(caught.value)


def test_a_role_the_template_does_not_know() -> None:
    messages = [*MESSAGES, {"role": "developer", "content": "d"}]
    assert render(PLAIN, messages=messages) == "<s>system: d\nuser: hi\nassistant: "
    knowing = PLAIN + "{# 'developer' #}"
    assert render(knowing, messages=messages) == "<s>user: hi\ndeveloper: d\nassistant: "


@pytest.mark.parametrize("fields", [{"add_generation_prompt": 1}, {"continue_final_message": "true"},
                                    {"chat_template_kwargs": []}, {"messages": []}])  # fmt: skip
def test_spellings_that_pydantic_converts_or_refuses(fields: dict[str, Any]) -> None:
    assert refused(PLAIN, **fields) is Kind.UNSUPPORTED_FIELD


LOOP = "{% for c in m.content %}{{ c.text }}{% endfor %}"
MACRO = "{% macro show(x, n) %}{% for c in x %}{{ c.text }}{% endfor %}{% endmacro %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, "string"),
        ("{% for m in messages %}" + LOOP + "{% endfor %}", "openai"),
        ("{% for m in messages %}" + LOOP.replace("m.content", "m['content'] | list") + "{% endfor %}", "openai"),
        ("{% set a = messages[1:] %}{% set b = a %}{% for m in b %}" + LOOP + "{% endfor %}", "openai"),
        ("{% set a = messages %}{% set a = a %}{% for m in a %}" + LOOP + "{% endfor %}", "openai"),
        ("{% for x in other %}" + LOOP + "{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in content %}{% endfor %}{% endfor %}", "openai"),
        (MACRO + "{% for m in messages %}{{ show(m.content, 1) }}{% endfor %}", "openai"),
        (MACRO + "{% for m in messages %}{{ show(n=1, x=m['content']) }}{% endfor %}", "openai"),
        (MACRO + "{% for m in messages %}{{ show(m.role, 1) }}{% endfor %}", "string"),
        ("{% macro f(content) %}{% for c in content %}{% endfor %}{% endmacro %}", "string"),
        ("{% for a, b in messages %}{% endfor %}{% for m in messages %}" + LOOP + "{% endfor %}", "string"),
        ("{% for m in messages %}{% generation %}" + LOOP + "{% endgeneration %}{% break %}{% endfor %}", "openai"),
    ],
)
def test_content_format(template: str, expected: str) -> None:
    assert read_template(template).content_format == expected


def test_content_format_as_the_engine_was_told() -> None:
    template = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    assert render(template) == '"hi"'
    assert render(template, EngineOptions(content_format="openai")) == '[{"type": "text", "text": "hi"}]'


def test_variables_of_a_template() -> None:
    facts = read_template("{% set a = b %}{{ a }}{% for m in messages %}{{ m.x + c }}{% endfor %}")
    assert facts.variables == {"b", "c", "messages"}


def test_engine_arguments() -> None:
    options = read_engine_args([
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--chat-template", "{{ a }}",
        "--chat_template_content_format=openai", "--default-chat-template-kwargs", '{"a": 1}',
        "--trust-request-chat-template", "--exclude-tools-when-tool-choice-none",
    ])  # fmt: skip
    assert options == EngineOptions("{{ a }}", "openai", {"cohere_format": "cmd4", "a": 1}, True, True)
    assert read_engine_args([]) == EngineOptions()


@pytest.mark.parametrize(
    "args",
    [
        ["--tokenizer-mode", "mistral"], ["--tokenizer_mode=slow"], ["--hf-overrides.a", "1"], ["--enable-prompt"],
        ["--trust-request"], ["--no-trust-request-chat-template"], ["--trust-request-chat-template=True"],
        ["--default-chat-template-kwargs.a", "1"], ["--default-chat-template-kwargs", "{"],
        ["--default-chat-template-kwargs", '{"tokenize": true}'], ["--chat-template-content-format", "x"],
        ["--middleware", "m.Wrap"], ["--default-chat-template-kwargs", "[1]"],
    ],
)  # fmt: skip
def test_engine_arguments_that_are_not_mirrored(args: list[str]) -> None:
    with pytest.raises(CannotTokeniseError) as caught:
        read_engine_args(args)
    assert caught.value.kind is Kind.UNSUPPORTED_ENGINE
