"""Log lines, as text and as JSON. Invariants: workers/logs.py."""

import json
import logging
import re
from pathlib import Path

import pytest

from controlplane.admin_routes.audit import audit
from workers.child_process import PrefixedLog
from workers.logs import ChildLines, LogFormat, LogLevel, LogStyle, logging_to

LOGGER = logging.getLogger("router.some_module")


def written(path: Path) -> list[dict[str, object]]:
    """Objects, one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_json_line_says_when_how_bad_who_what_and_of_which_request(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with logging_to(path, LogStyle("json"), lambda: {"trace_id": "ab", "span_id": "cd"}, worker="w"):
        LOGGER.warning("request %s: %s", "r1", "late", extra={"request_id": "r1"})
    (line,) = written(path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(line.pop("time")))
    assert line == {
        "level": "warning", "logger": "router.some_module", "message": "request r1: late", "worker": "w",
        "request_id": "r1", "trace_id": "ab", "span_id": "cd",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
def test_1_a_line_is_one_line(tmp_path: Path, form: LogFormat) -> None:
    path = tmp_path / "x.log"
    with logging_to(path, LogStyle(form)):
        LOGGER.warning("one\r\ntwo %s", "\udc80 no text, \U0001f600 text")
        LOGGER.warning("three")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert "three" in lines[1]


def fail() -> None:
    words: dict[str, int] = {}
    try:
        words["a secret word"] += 1
    except KeyError as error:
        raise ValueError("a secret word") from error


@pytest.mark.parametrize("form", ["text", "json"])
def test_2_of_an_exception_a_line_has_kinds_and_places_only(tmp_path: Path, form: LogFormat) -> None:
    path = tmp_path / "x.log"
    with logging_to(path, LogStyle(form)):
        try:
            fail()
        except ValueError:
            LOGGER.exception("request %s failed", "r1")
    text = path.read_text()
    assert "secret" not in text
    assert re.search(r"ValueError at test_logs.py:\d+ fail < .*; caused by KeyError at test_logs.py:\d+", text)


def test_the_level_is_the_operators(tmp_path: Path) -> None:
    levels: tuple[LogLevel, ...] = ("error", "warning", "info", "debug")
    for expected, level in enumerate(levels, start=1):
        path = tmp_path / f"{level}.log"
        with logging_to(path, LogStyle("json", level)):
            for say in (LOGGER.debug, LOGGER.info, LOGGER.warning, LOGGER.error):
                say("x")
        assert len(written(path)) == expected


def test_an_audit_line_is_an_object_too(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with logging_to(path, LogStyle("json")):
        audit("olga", "POST", "/workers/m1/drain", 200)
    (line,) = written(path)
    assert (line["logger"], line["who"], line["action"]) == ("headrace.audit", "olga", "POST /workers/m1/drain")
    assert line["outcome"] == "done"


def test_lines_of_loggers_that_go_somewhere_else_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    with logging_to(path, LogStyle(), without=(LOGGER.name,), worker="w"):
        LOGGER.warning("elsewhere")
        logging.getLogger("router.other").warning("here")
    assert path.read_text().startswith("[w] ")
    assert "elsewhere" not in path.read_text()


def test_lines_of_an_engine_keep_the_level_that_they_name() -> None:
    form = ChildLines("engine", worker="w")
    lines = [
        json.loads(form(text)) for text in ("(APIServer pid=1) ERROR 11-22 it broke", "no level", "x" * 99 + " ERROR")
    ]
    assert [line["level"] for line in lines] == ["error", "info", "info"]
    assert lines[0]["message"] == "(APIServer pid=1) ERROR 11-22 it broke"
    assert (lines[0]["logger"], lines[0]["worker"]) == ("engine", "w")


def test_a_workers_file_has_objects_only_its_engines_lines_and_its_own(tmp_path: Path) -> None:
    path = tmp_path / "w.log"
    engine = PrefixedLog(path, "w", ChildLines("engine", worker="w"))
    with logging_to(path, LogStyle("json"), worker="w"):
        engine("INFO up")
        LOGGER.warning("own")
        engine("ERROR down")
    engine.close()
    assert [(line["message"], line["worker"]) for line in written(path)] == [
        ("INFO up", "w"), ("own", "w"), ("ERROR down", "w"),
    ]  # fmt: skip
