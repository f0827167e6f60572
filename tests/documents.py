"""What the documentation says, taken apart: code, links, commands, settings, metrics."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_COMMAND = re.compile(r"(?:^|[\s(;])(headrace (?:[a-z-]+|\[).*)")
_METRIC = re.compile(r"\bheadrace_[a-z0-9_]*(?:\*[a-z0-9_]*)*")


@dataclass(frozen=True)
class Document:
    """One page of Markdown."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        """As it is."""
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """Without blocks of code."""
        return _FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """Fenced blocks of one language; empty: of none."""
        return [body for named, body in _FENCE.findall(self.text) if named == language]

    def code(self) -> list[str]:
        """What stands between backticks, line breaks taken out."""
        return [" ".join(code.split()) for code in _CODE.findall(self.prose)]

    def links(self) -> list[str]:
        """Targets that are no addresses of the web."""
        return [target for target in _LINK.findall(self.prose) if "://" not in target]

    def anchors(self) -> set[str]:
        """As GitHub makes them of headings."""
        plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading) for heading in _HEADING.findall(self.prose))
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}

    def commands(self) -> Iterator[list[str]]:
        """Words of each `headrace ...`; of `a|b` and `[a|b]` each, what a shell would take away taken away."""
        lines = [line for block in self.blocks("") + self.blocks("sh") for line in _joined(block)]
        for line in (*lines, *self.code()):
            if line.startswith(("docker ", "helm ", "kubectl ")):
                line = line.partition(" -- ")[2]  # what runs in the pod
            found = _COMMAND.search(line.partition(" #")[0])
            if found is None:
                continue
            words = shlex.split(re.split(r"\s(?:\d?>>?|<|\||&)", found[1])[0])
            yield from map(list, itertools.product(*(word.strip("[]").split("|") for word in words)))

    def metrics(self) -> set[str]:
        """Names of ours, with * where there are several."""
        return set(_METRIC.findall(self.text)) - {"headrace_"}


def documents() -> list[Document]:
    """Every page."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "helm").rglob("*.md")]
    return [Document(path) for path in sorted(pages)]


def _joined(block: str) -> list[str]:
    """Lines of a shell, those that a backslash divides put together."""
    return block.replace("\\\n", " ").splitlines()
