"""From a chat request to the text of its prompt, as vLLM 0.32 renders it. Pure.

Sources: vllm/entrypoints/openai/chat_completion/protocol.py (`build_chat_params`), vllm/renderers/params.py
(`merge_kwargs`), vllm/renderers/online_renderer.py (`preprocess_chat`), vllm/renderers/hf.py
(`safe_apply_chat_template`). The template itself is rendered by the function of transformers that vLLM calls, in
jinja's ImmutableSandboxedEnvironment.
"""

from collections.abc import Mapping
from typing import Any

from router.tokens.engine_options import RESERVED_VARIABLES, EngineOptions
from router.tokens.messages import build_conversation, dump_tools, without_developer
from router.tokens.template_facts import TemplateFacts, read_template
from router.tokens.types import CannotTokeniseError, Kind

# Parameters of apply_chat_template that a request may set: passed on whether the template reads them or not.
_STANDARD_VARIABLES = frozenset({"documents", "add_generation_prompt", "continue_final_message"})


class ChatTemplate:
    """The chat templates of one model."""

    def __init__(
        self, templates: str | Mapping[str, str] | None, special_tokens: Mapping[str, Any], options: EngineOptions
    ) -> None:
        """`templates`: one, or several by name as some tokenizers have them. Raises CannotTokeniseError."""
        # 35 MB, so only where there is a chat template.
        from transformers.utils.chat_template_utils import render_jinja_template

        self._render = render_jinja_template
        self._single = templates if isinstance(templates, str) else None
        self._by_name = templates if isinstance(templates, Mapping) else {}
        # The engine's own template stands before the tokenizer's; its value may also be the name of one of those.
        given = options.chat_template
        self._given = self._by_name.get(given, given) if given else None
        sources = {self._single, self._given, *self._by_name.values()}
        self._facts = {source: read_template(source) for source in sources if source is not None}
        self._special_tokens = dict(special_tokens)
        self._options = options

    def render(self, fields: Mapping[str, Any]) -> str:
        """The prompt's text; raises CannotTokeniseError."""
        tools = self._tools(fields)
        template = self._resolve(fields, has_tools=tools is not None)
        given = self._options.content_format
        conversation = build_conversation(fields.get("messages"), template.content_format if given == "auto" else given)
        if not template.knows_developer and any(message["role"] == "developer" for message in conversation):
            conversation = without_developer(conversation)
        variables = self._variables(fields, template)
        if variables["add_generation_prompt"] and variables["continue_final_message"]:
            raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "continue_final_message")
        try:
            ((text,), _) = self._render(
                conversations=[conversation],
                tools=tools,
                chat_template=template.source,
                **{**self._special_tokens, **variables},
            )
        except Exception as error:  # anything can be raised from within a template
            # Its message may quote the prompt.
            raise CannotTokeniseError(Kind.TEMPLATE, type(error).__name__) from None
        return str(text)

    def _tools(self, fields: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        tools = dump_tools(fields.get("tools"))
        dropped = self._options.drops_tools_of_choice_none and fields.get("tool_choice") == "none"
        return None if dropped else tools

    def _resolve(self, fields: Mapping[str, Any], *, has_tools: bool) -> TemplateFacts:
        asked = fields.get("chat_template")
        if asked is not None:
            if not self._options.trusts_request_template or not isinstance(asked, str):
                raise CannotTokeniseError(Kind.CLIENT_TEMPLATE)
            if asked:
                source = self._by_name.get(asked, asked)
                return self._facts.get(source) or read_template(source)
        name = "tool_use" if has_tools and "tool_use" in self._by_name else "default"
        own = self._given or self._single or self._by_name.get(name)
        if own is None:
            raise CannotTokeniseError(Kind.TEMPLATE, "the model has no chat template")
        return self._facts[own]

    def _variables(self, fields: Mapping[str, Any], template: TemplateFacts) -> dict[str, Any]:
        """What the template can read besides messages and tools."""
        asked = fields.get("chat_template_kwargs")
        asked = {} if asked is None else asked
        if not isinstance(asked, dict) or not RESERVED_VARIABLES.isdisjoint(asked):
            raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, "chat_template_kwargs")
        effort = fields.get("reasoning_effort")
        request = {
            "add_generation_prompt": read_bool(fields, "add_generation_prompt", default=True),
            "continue_final_message": read_bool(fields, "continue_final_message", default=False),
            "documents": fields.get("documents"),
            "reasoning_effort": effort,
        }
        if effort is not None and "enable_thinking" not in asked:
            request["enable_thinking"] = effort != "none"
        merged = _merged(self._options.template_variables, _merged(asked, request))
        known = _STANDARD_VARIABLES | template.variables
        return {"documents": None} | {name: value for name, value in merged.items() if name in known}


def read_bool(fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """A flag of the request; pydantic's other spellings of true and false are not mirrored."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise CannotTokeniseError(Kind.UNSUPPORTED_FIELD, name)
    return value


def _merged(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` on top, except those that are None or "auto", which vLLM reads as not set."""
    return {**defaults, **{name: value for name, value in overrides.items() if value not in (None, "auto")}}
