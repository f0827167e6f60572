"""The documentation names commands, options, settings, files, targets and places that exist."""

import re
from typing import Any, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import BaseModel

from controlplane.chart_values import Values
from controlplane.cli import app
from controlplane.config import Config
from tests.documents import ROOT, Document, documents

PAGES = documents()
COMMAND: Any = typer.main.get_command(app)
SECTIONS = {*Config.model_fields, *Values.model_json_schema()["properties"]}
_SETTING = re.compile(r"([a-zA-Z_]+(?:\.[a-zA-Z_]+)+)(?:[:=. ].*)?")
_FILE = re.compile(r"(?:[\w.-]+/)+[\w.-]*")
# The changelog may name what is gone; nobody follows it.
CURRENT = [page for page in PAGES if page.path.name != "CHANGELOG.md"]


def _problem(words: list[str]) -> str | None:
    """What of a command does not exist."""
    found, rest = COMMAND, words[1:]
    while (commands := getattr(found, "commands", None)) is not None and rest and rest[0] != "...":
        name, *rest = rest
        if name not in commands:
            return f"there is no {name!r} in {found.name or 'headrace'}"
        found = commands[name]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.partition("=")[0] for word in rest if word.startswith("-")} - known - {"--help"}
    return f"{found.name} has no {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist_with_their_options(page: Document) -> None:
    assert [(words, problem) for words in page.commands() if (problem := _problem(words))] == []


def test_a_command_that_is_not_there_is_found() -> None:
    assert _problem(["headrace", "drain", "w", "--wait"]) is None
    assert "drian" in str(_problem(["headrace", "drian", "w"]))
    assert "--wiat" in str(_problem(["headrace", "drain", "w", "--wiat"]))
    assert sum(len(list(page.commands())) for page in PAGES) > 60


def _has(model: type[BaseModel], path: list[str]) -> bool:
    """Whether a section has this setting; mappings have any key."""
    if not path:
        return True
    field = next((f for name, f in model.model_fields.items() if path[0] in (name, f.alias)), None)
    if field is None:
        return False
    annotation: Any = field.annotation
    inner = [annotation, *get_args(annotation)]
    rest = path[1:]
    if get_origin(annotation) is dict or any(get_origin(item) is dict for item in inner):
        if annotation == dict[str, Any]:
            return True
        rest = rest[1:]
    sections = [item for item in inner if isinstance(item, type) and issubclass(item, BaseModel)]
    return not rest or any(_has(section, rest) for section in sections)


@pytest.mark.parametrize("page", CURRENT, ids=str)
def test_settings_exist(page: Document) -> None:
    """Of headrace.yaml or of the chart: `router.http.port`, `redis.storage`."""
    missing = []
    for code in page.code():
        match = _SETTING.fullmatch(code)
        path = match[1].split(".") if match else []
        if not path or path[0] not in SECTIONS:
            continue
        if path[-1] not in ("py", "yaml") and not (_has(Config, path) or _has(Values, path)):
            missing.append(code)
    assert missing == []


@pytest.mark.parametrize("page", CURRENT, ids=str)
def test_examples_of_the_configuration_load(page: Document) -> None:
    for block in page.blocks("yaml"):
        tree = yaml.safe_load(block.replace("…64 hex digits", "0" * 60))
        if set(tree) <= set(Config.model_fields):
            classes = {"interactive": {"ttft_s": 1, "tpot_s": 1, "deadline_s": 9}}
            classes["batch"] = classes["interactive"]
            if "slo" not in tree and "identity" in tree:
                tree["slo"] = {"classes": classes, "default_class": "batch"}
            Config.model_validate(tree)


def test_a_setting_that_is_not_there_is_found() -> None:
    assert _has(Config, ["router", "http", "tls", "cert_file"])
    assert _has(Config, ["slo", "classes", "chat", "ttft_s"])
    assert not _has(Config, ["router", "max_body"])
    assert not _has(Config, ["slo", "classes", "chat", "ttft"])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Document) -> None:
    dead = []
    for link in page.links():
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists() or (anchor and anchor not in Document(path).anchors()):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", CURRENT, ids=str)
def test_files_and_targets_exist(page: Document) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    code = page.code()
    files = [word for word in code if _FILE.fullmatch(word) and word.split("/")[0] in folders]
    assert [name for name in files if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = [word for text in (*code, *page.blocks("")) for word in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)]
    assert [name for name in used if name not in targets] == []
    modules = [word for text in (*code, *page.blocks("")) for word in re.findall(r"python -m ([\w.]+)", text)]
    ours = [name for name in modules if name.split(".")[0] in folders]
    paths = [ROOT.joinpath(*name.split(".")) for name in ours]
    assert [path for path in paths if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists())] == []
