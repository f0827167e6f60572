"""What vLLM reads off a chat template before it renders it: content format, variables, roles. Pure.

The search for a loop over message contents follows vllm/renderers/hf.py (`_detect_content_format`) step by step, order
included: it decides whether contents reach the template as strings or as lists of parts.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import jinja2
from jinja2 import ext, meta, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from router.tokens.types import CannotTokeniseError, Kind

ContentFormat = Literal["string", "openai"]


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """A chat template and what it says about itself."""

    source: str
    content_format: ContentFormat
    variables: frozenset[str]  # names it reads without having set them
    knows_developer: bool  # it mentions the role `developer`


class _GenerationTag(ext.Extension):
    """`{% generation %}`, which marks an assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012  jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_generation_support"), [], [], body).set_lineno(line)


def read_template(source: str) -> TemplateFacts:
    """Parse a template; raises CannotTokeniseError where jinja cannot."""
    # The environment of transformers/utils/chat_template_utils.py. It parses only; nothing is rendered with it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, ext.loopcontrols]
    )
    try:
        tree = environment.parse(source)
        variables = meta.find_undeclared_variables(tree)
    except (jinja2.TemplateError, RecursionError) as error:
        raise CannotTokeniseError(Kind.TEMPLATE, type(error).__name__) from None
    return TemplateFacts(
        source=source,
        content_format=_content_format(tree),
        variables=frozenset(variables),
        knows_developer='"developer"' in source or "'developer'" in source,
    )


def _content_format(tree: nodes.Template) -> ContentFormat:
    try:
        return "openai" if _loops_over_content(tree) else "string"
    except _OddLoopError:  # vLLM gives up on the template there
        return "string"


class _OddLoopError(Exception):
    """A loop or assignment that unpacks what it gets; vLLM asserts that there is none."""


def _name_of(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _OddLoopError
    return target.name


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """`node` is the variable, or its `key`, perhaps filtered or sliced."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _reads(node.node, name, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, name, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
    if isinstance(node, nodes.Getitem):
        return _reads_plain(node.node, name) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and _reads_plain(node.node, name) and node.attr == key


def _reads_plain(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _aliases(tree: nodes.Template, name: str) -> Iterator[str]:
    """`name` and the variables that are set to it."""
    yield name
    related, seen = deque([name]), {name}
    while related:
        current = related.popleft()
        for assign in tree.find_all(nodes.Assign):
            if _reads(assign.node, current):
                alias = _name_of(assign.target)
                yield alias
                if alias not in seen:
                    seen.add(alias)
                    related.append(alias)


def _message_names(tree: nodes.Template) -> Iterator[str]:
    """Loop variables that hold a message."""
    messages = list(_aliases(tree, "messages"))
    for loop in tree.find_all(nodes.For):
        if any(_reads(loop.iter, name) for name in messages):
            yield _name_of(loop.target)


def _loops_over_content(tree: nodes.Template) -> bool:
    messages = list(_message_names(tree))
    in_macros = _content_parameters(tree, messages)
    for loop in tree.find_all(nodes.For):
        if _is_content(loop, messages, in_macros):
            _name_of(loop.target)
            return True
    return False


def _is_content(loop: nodes.For, messages: list[str], in_macros: Mapping[int, frozenset[str]]) -> bool:
    if any(_reads(loop.iter, name, "content") for name in messages):
        return True
    if not isinstance(loop.iter, nodes.Name):
        return False
    parameters = in_macros.get(id(loop))
    return loop.iter.name == "content" if parameters is None else loop.iter.name in parameters


def _content_parameters(tree: nodes.Template, messages: list[str]) -> dict[int, frozenset[str]]:
    """Loops inside macros -> the macro's parameters that are given a message's content."""
    found: dict[int, frozenset[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        names = [argument.name for argument in macro.args]
        given: set[str] = set()
        for call in tree.find_all(nodes.Call):
            if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
                continue
            passed = [*zip(names, call.args, strict=False)]
            passed += [(keyword.key, keyword.value) for keyword in call.kwargs if keyword.key in names]
            given |= {name for name, value in passed if any(_reads(value, each, "content") for each in messages)}
        for loop in macro.find_all(nodes.For):
            # A later macro around the same loop replaces what an earlier one knew of it only if it knows something.
            if given or id(loop) not in found:
                found[id(loop)] = frozenset(given)
    return found
