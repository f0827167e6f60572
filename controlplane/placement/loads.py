"""Expert loads in files and on the wire. Pure but for `read_scenarios` and `read_windows`.

The wire form is JSON, `version` first; unknown fields are passed over, missing ones refused:

    {"version": 1, "windows": [{"model": "deepseek-v3", "engine": "decode-0", "engine_epoch": 4,
                                "traffic_class": "chat", "window_s": 30.0, "ended_at_s": 1763719510.5,
                                "tokens": [[12, 0, 7, ...], ...]}, ...]}

`tokens` counts per MoE layer and logical expert, in the model's order, whatever slots there were. A reader also takes a
bare matrix [[...], ...], and {name: matrix, ...}, as published loads have it. Of several models' loads in one file
`match` names one: only names that contain it are read. An error names file, name, layer and rule.

Invariant
 1. decode(encode(windows)) equals windows, bit by bit.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from controlplane.placement.types import PlacementError, Scenario, Tokens, check_tokens

LOADS_VERSION = 1
_NAMES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class ExpertLoadWindow:
    """What an engine routed to each expert in a window of time."""

    model: str
    engine: str
    engine_epoch: int  # of the process: counts of two epochs are of two lives
    traffic_class: str
    window_s: float
    ended_at_s: float  # Unix time
    tokens: Tokens

    def __post_init__(self) -> None:
        if self.engine_epoch < 0:
            raise PlacementError(f"{self.name}: engine_epoch is {self.engine_epoch}, allowed is 0 and above")
        if not (math.isfinite(self.window_s) and self.window_s > 0.0):
            raise PlacementError(f"{self.name}: window_s is {self.window_s}, allowed is above 0")
        if not math.isfinite(self.ended_at_s):
            raise PlacementError(f"{self.name}: ended_at_s is {self.ended_at_s}, not an instant")
        check_tokens(self.tokens, self.name)

    @property
    def name(self) -> str:
        """As errors and plans call it."""
        return f"{self.model}/{self.traffic_class}/{self.engine}@{self.ended_at_s:.3f}"

    def is_same(self, other: "ExpertLoadWindow") -> bool:
        """By value, tokens included."""
        return _fields(self) == _fields(other) and np.array_equal(self.tokens, other.tokens)


class _WireWindow(msgspec.Struct):
    model: str
    engine: str
    engine_epoch: int
    traffic_class: str
    window_s: float
    ended_at_s: float
    tokens: list[list[float]]


class _Wire(msgspec.Struct):
    version: int
    windows: list[_WireWindow]


def encode(windows: Sequence[ExpertLoadWindow]) -> bytes:
    """The wire form."""
    wire = [_WireWindow(*_fields(window), window.tokens.tolist()) for window in windows]
    return msgspec.json.encode(_Wire(LOADS_VERSION, wire))


def decode(raw: bytes, name: str = "load") -> list[ExpertLoadWindow]:
    """The windows; raises PlacementError on anything else, an unknown version included."""
    return _windows(_json(raw, name), name)


def read_scenarios(path: Path, *, match: str = "") -> list[Scenario]:
    """The loads in a file whose name contains `match`; raises PlacementError. At least one, all of one shape."""
    return parse_scenarios(_bytes(path), str(path), match=match)


def read_windows(path: Path, *, match: str = "") -> list[Scenario]:
    """Loads one after another: windows of the wire form as they ended, named matrices as they stand in the file."""
    raw = _bytes(path)
    item = _json(raw, str(path))
    if not isinstance(item, dict) or "windows" not in item:
        return parse_scenarios(raw, str(path), match=match)
    windows = [window for window in _windows(item, str(path)) if match in window.name]
    if not windows:
        raise PlacementError(f"{path}: no window's name contains {match!r}")
    windows.sort(key=lambda window: window.ended_at_s)
    _check_shapes([(window.name, window.tokens) for window in windows], str(path))
    return [Scenario(window.name, window.tokens) for window in windows]


def parse_scenarios(raw: bytes, name: str, *, match: str = "") -> list[Scenario]:
    """`read_scenarios` of what is in the file. Several windows of one name become one load, their sum."""
    item = _json(raw, name)
    if isinstance(item, list):
        return [Scenario(name, _matrix(item, name))]
    if not isinstance(item, dict):
        raise PlacementError(f"{name}: {_called(item)}, expected a matrix, named matrices or load windows")
    if "windows" in item:
        found = _summed(_windows(item, name), name, match)
    else:
        found = {key: _named(item[key], f"{name}: {key!r}") for key in _matching(list(item), name, match)}
    _check_shapes(found.items(), name)
    return [Scenario(key, tokens) for key, tokens in found.items()]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlacementError(f"{path}: {error.strerror}") from None


def _json(raw: bytes, name: str) -> object:
    """By the standard library, which reads NaN: where it stands is said later."""
    if not raw.strip():
        raise PlacementError(f"{name}: empty")
    try:
        item: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise PlacementError(f"{name}: not JSON: {error}") from None
    return item


def _windows(item: object, name: str) -> list[ExpertLoadWindow]:
    # The version first: another one may have any other shape.
    version = item.get("version") if isinstance(item, dict) else None
    if version != LOADS_VERSION:
        raise PlacementError(f"{name}: load windows of version {version!r}; this Headrace reads {LOADS_VERSION}")
    try:
        wire = msgspec.convert(item, _Wire)
    except (msgspec.ValidationError, OverflowError) as error:
        raise PlacementError(f"{name}: {error}") from None
    if not wire.windows:
        raise PlacementError(f"{name}: no window")
    found = []
    for number, window in enumerate(wire.windows):
        where = f"{name}: window {number}"
        tokens = _matrix(window.tokens, where)
        try:
            found.append(ExpertLoadWindow(*_fields(window), tokens))
        except PlacementError as error:
            raise PlacementError(f"{where}: {error}") from None
    return found


def _summed(windows: Sequence[ExpertLoadWindow], name: str, match: str) -> dict[str, Tokens]:
    """By model and traffic class."""
    names = list(dict.fromkeys(f"{window.model}/{window.traffic_class}" for window in windows))
    found: dict[str, Tokens] = {}
    for key in _matching(names, name, match):
        parts = [window for window in windows if f"{window.model}/{window.traffic_class}" == key]
        _check_shapes([(part.name, part.tokens) for part in parts], name)
        found[key] = np.sum([part.tokens for part in parts], axis=0)
        check_tokens(found[key], f"{name}: {key!r}")
    return found


def _matching(names: Sequence[str], name: str, match: str) -> list[str]:
    if not names:
        raise PlacementError(f"{name}: no load")
    found = [key for key in names if match in key]
    if not found:
        raise PlacementError(f"{name}: no name contains {match!r}: {_listed(names)}")
    return found


def _check_shapes(loads: Iterable[tuple[str, Tokens]], name: str) -> None:
    by_shape: dict[tuple[int, ...], str] = {}
    for key, tokens in loads:
        by_shape.setdefault(tokens.shape, key)
    if len(by_shape) > 1:
        shapes = ", ".join(f"{key!r} has {shape}" for shape, key in by_shape.items())
        raise PlacementError(f"{name}: loads of several models, (layers, experts): {shapes}; match one by its name")


def _named(item: object, where: str) -> Tokens:
    if not isinstance(item, list):
        raise PlacementError(f"{where}: {_called(item)}, expected a matrix")
    return _matrix(item, where)


def _matrix(rows: Sequence[object], where: str) -> Tokens:
    """Checked (layers, experts)."""
    if not rows:
        raise PlacementError(f"{where}: no layer")
    found: list[list[float]] = []
    for layer, row in enumerate(rows):
        if not isinstance(row, list):
            raise PlacementError(f"{where}: layer {layer}: {_called(row)}, expected a list of loads by expert")
        if not row or (found and len(row) != len(found[0])):
            expected = f"layer 0 has {len(found[0])}" if found else "expected at least one"
            raise PlacementError(f"{where}: layer {layer}: {len(row)} experts, {expected}")
        found.append([_number(value, f"{where}: layer {layer}: expert {at}") for at, value in enumerate(row)])
    tokens = np.array(found)
    check_tokens(tokens, where)
    return tokens


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlacementError(f"{where}: {_called(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _called(value: object) -> str:
    """A JSON value, shortly."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown


def _fields(window: ExpertLoadWindow | _WireWindow) -> tuple[str, str, int, str, float, float]:
    """All but the tokens, in order."""
    return (
        window.model,
        window.engine,
        window.engine_epoch,
        window.traffic_class,
        window.window_s,
        window.ended_at_s,
    )
