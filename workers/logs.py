"""How every process of Headrace logs: lines of text, or JSON objects with the ids of request, trace and span.

Invariants
 1. A line is one line, whatever is in its message.
 2. Of an exception a line has the kinds and where it came from, never its message: that may quote what a client sent.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
# Says which trace and span are current, by the names that lines have for them.
Ids = Callable[[], Mapping[str, str]]

_LOGGERS = ("controlplane", "router", "workers", "kvstore", "headrace")  # the last one: audit
_LEVEL = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_MOST_LEVEL_CHARS = 64  # of a line, before its level ends
_MOST_CAUSES = 5
_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, slots=True)
class LogStyle:
    """As the operator wants it."""

    format: LogFormat = "text"
    level: LogLevel = "info"

    def formatter(self, ids: Ids = dict, **fields: str) -> logging.Formatter:
        """`fields` are in each line of JSON; their values begin one of text."""
        return JsonLines(ids, fields) if self.format == "json" else TextLines(fields)


class TextLines(logging.Formatter):
    """Time, level, logger, message."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._prefix = "".join(f"[{value}] " for value in fields.values())

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}: {_origin(record.exc_info[1])}"
        return f"{self._prefix}{self.formatTime(record)} {record.levelname} {record.name} {message.translate(_ESCAPES)}"


class JsonLines(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`; `request_id`, `trace_id`, `span_id`, `error` where known.

    A record may bring fields of its own as `extra={"fields": ...}`.
    """

    def __init__(self, ids: Ids, fields: Mapping[str, str]) -> None:
        super().__init__()
        self._ids = ids
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One object."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
            **self._ids(),
        }
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            line["request_id"] = request_id
        if record.exc_info:
            line["error"] = _origin(record.exc_info[1])
        line |= getattr(record, "fields", {})
        return _encoded(line)


class ChildLines:
    """Lines that a child process prints, as JSON lines of a logger of its own. The level is the one named there."""

    def __init__(self, logger: str, **fields: str) -> None:
        self._logger = logger
        self._fields = fields

    def __call__(self, text: str) -> str:
        """One object."""
        level = _LEVEL.search(text, 0, _MOST_LEVEL_CHARS)
        return _encoded({
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level[0].lower() if level else "info",
            "logger": self._logger,
            "message": text,
            **self._fields,
        })  # fmt: skip


def _encoded(line: Mapping[str, object]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # lone surrogates: of bytes that are no text
        return json.dumps(line)


@contextmanager
def logging_to(
    path: Path | None, style: LogStyle, ids: Ids = dict, *, without: tuple[str, ...] = (), **fields: str
) -> Iterator[None]:
    """Headrace's log lines of this process into a file, or to stderr. `without`: loggers that go somewhere else."""
    if path is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, delay=True, encoding="utf-8", errors="backslashreplace")
    with handled_by(handler, style, ids, without=without, **fields):
        yield


@contextmanager
def handled_by(
    handler: logging.Handler, style: LogStyle, ids: Ids = dict, *, without: tuple[str, ...] = (), **fields: str
) -> Iterator[None]:
    """Headrace's log lines of this process to `handler`, which is closed in the end."""
    handler.setFormatter(style.formatter(ids, **fields))
    handler.setLevel(style.level.upper())
    handler.addFilter(lambda record: record.name not in without)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
        # A Serve replica sets the root's level to what Ray's own lines need.
        logger.setLevel(min(logging.INFO, logging.getLevelNamesMapping()[style.level.upper()]))
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _origin(error: BaseException | None) -> str:
    """Kinds of an exception and of its causes, each with the last places it passed."""
    told: list[str] = []
    while error is not None and len(told) < _MOST_CAUSES:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        told.append(f"{type(error).__name__} at {places}" if places else type(error).__name__)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "; caused by ".join(told)
