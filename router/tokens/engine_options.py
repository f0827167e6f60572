"""What of an engine's arguments changes its prompts. Pure.

An argument that is not mirrored makes the model one that is routed by load: a guess would route worse than no tokens.
Source: vllm/entrypoints/launchers/cli_args.py and vllm/engine/arg_utils.py.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from router.tokens.types import CannotTokeniseError, Kind

GivenFormat = Literal["auto", "string", "openai"]

# Arguments of transformers' apply_chat_template: as template variables they would replace its own.
# Source: transformers/tokenization_utils_base.py.
RESERVED_VARIABLES = frozenset(
    """
    chat_template conversation conversations max_length messages padding return_assistant_tokens_mask return_dict
    return_tensors self tokenize tokenizer_kwargs tools truncation
    """.split()  # noqa: SIM905  a list of names
)
_FLAGS = {
    "--trust-request-chat-template": "trusts_request_template",
    "--exclude-tools-when-tool-choice-none": "drops_tools_of_choice_none",
}
_VALUES = ("--chat-template", "--chat-template-content-format", "--default-chat-template-kwargs", "--cohere-format")
# Tokenizer, renderer or the request itself become something else.
_UNSUPPORTED = (
    "--code-revision", "--config-format", "--enable-prompt-embeds", "--hf-config-path", "--hf-overrides",
    "--middleware", "--model-impl", "--revision", "--skip-tokenizer-init", "--tokenizer", "--tokenizer-mode",
    "--tokenizer-revision", "--tokens-only",
)  # fmt: skip
_FORMATS: Mapping[str, GivenFormat] = {"auto": "auto", "string": "string", "openai": "openai"}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engines of a model were told to make prompts."""

    chat_template: str | None = None  # a file's path, or the template itself; None: the model's own
    content_format: GivenFormat = "auto"
    # vLLM passes its Cohere format to every template.
    template_variables: Mapping[str, Any] = field(default_factory=lambda: {"cohere_format": "cmd4"})
    trusts_request_template: bool = False  # a client can then keep a thread of ours busy, as it can the engine
    drops_tools_of_choice_none: bool = False


def read_engine_args(args: Iterable[str]) -> EngineOptions:
    """The options in an engine's command line; raises CannotTokeniseError for one that is not mirrored."""
    values: dict[str, str] = {}
    flags: dict[str, bool] = {}
    waiting: str | None = None
    for arg in args:
        if waiting is not None:
            values[waiting], waiting = arg, None
        elif arg.startswith("--"):
            name, separator, value = arg.partition("=")
            name = name.replace("_", "-")
            if name in _FLAGS and not separator:
                flags[_FLAGS[name]] = True
            elif name in _VALUES and separator:
                values[name] = value
            elif name in _VALUES:
                waiting = name
            else:
                _check_irrelevant(name)
    return _options(values, flags)


def _check_irrelevant(name: str) -> None:
    """vLLM also takes abbreviations, `--no-` and dotted keys."""
    stem = name.partition(".")[0]
    positive = f"--{stem.removeprefix('--no-')}" if stem.startswith("--no-") else stem
    for known in (*_FLAGS, *_VALUES, *_UNSUPPORTED):
        if known.startswith(positive):
            raise CannotTokeniseError(Kind.UNSUPPORTED_ENGINE, name)


def _options(values: Mapping[str, str], flags: Mapping[str, bool]) -> EngineOptions:
    content_format = _FORMATS.get(values.get("--chat-template-content-format", "auto"))
    if content_format is None:
        raise CannotTokeniseError(Kind.UNSUPPORTED_ENGINE, "--chat-template-content-format")
    try:
        variables = json.loads(values.get("--default-chat-template-kwargs", "null")) or {}
    except json.JSONDecodeError:
        variables = None
    if not isinstance(variables, dict) or not RESERVED_VARIABLES.isdisjoint(variables):
        raise CannotTokeniseError(Kind.UNSUPPORTED_ENGINE, "--default-chat-template-kwargs")
    return EngineOptions(
        chat_template=values.get("--chat-template"),
        content_format=content_format,
        template_variables={"cohere_format": values.get("--cohere-format", "cmd4"), **variables},
        **flags,
    )
