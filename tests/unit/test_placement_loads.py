"""The wire form of expert loads, and what a file of loads may be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.placement.loads import (
    LOADS_VERSION,
    ExpertLoadWindow,
    decode,
    encode,
    parse_scenarios,
    read_scenarios,
)
from controlplane.placement.types import PlacementError
from tests.placement_cases import domains

WINDOW = ExpertLoadWindow("deepseek-v3", "decode-0", 4, "chat", 30.0, 1763719510.5, np.array([[12.0, 0.0], [1.5, 7.0]]))


def wire(**changes: Any) -> bytes:
    """One window, with fields of it changed."""
    item = json.loads(encode([WINDOW]))
    item["windows"][0].update(changes)
    return json.dumps(item).encode()


def test_what_is_written_is_what_is_read() -> None:
    other = replace(WINDOW, traffic_class="", engine="é", tokens=np.array([[1e-9, 1e18]]))
    found = decode(encode([WINDOW, other]))
    assert [one.is_same(two) for one, two in zip(found, (WINDOW, other), strict=True)] == [True, True]
    assert not found[0].is_same(found[1])


def test_the_wire_form_is_this() -> None:
    assert json.loads(encode([WINDOW])) == {
        "version": 1,
        "windows": [
            {
                "model": "deepseek-v3",
                "engine": "decode-0",
                "engine_epoch": 4,
                "traffic_class": "chat",
                "window_s": 30.0,
                "ended_at_s": 1763719510.5,
                "tokens": [[12, 0], [1.5, 7]],
            }
        ],
    }


def test_fields_of_a_later_time_are_passed_over() -> None:
    (found,) = decode(wire(num_steps=1000))
    assert found.is_same(WINDOW)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "load: empty"),
        (b"{", "load: not JSON: "),
        (b"\xff\xfe\xfd", "load: not JSON: "),
        (b"[" * 200_000, "load: not JSON: "),
        (b"[]", "load: load windows of version None; this Headrace reads 1"),
        (b'{"version": 2, "windows": 7}', "load: load windows of version 2; this Headrace reads 1"),
        (b'{"version": 1}', "load: Object missing required field `windows`"),
        (b'{"version": 1, "windows": []}', "load: no window"),
        (wire(model=3), r"load: Expected `str`, got `int` - at `\$.windows\[0\].model`"),
        (wire(window_s=0), r"load: window 0: deepseek-v3/chat/decode-0@1763719510.500: window_s is 0.0, allowed"),
        (wire(engine_epoch=-1), "engine_epoch is -1, allowed is 0 and above"),
        (wire(ended_at_s=float("nan")), "ended_at_s is nan, not an instant"),
        (wire(ended_at_s=10**400), "load: "),
        (wire(tokens=[[1, "2"]]), r"load: Expected `float`, got `str` - at `\$.windows\[0\].tokens\[0\]\[1\]`"),
        (wire(tokens=[[1, 2], [3]]), "load: window 0: layer 1: 1 experts, layer 0 has 2"),
        (wire(tokens=[[1, float("nan")]]), "load: window 0: layer 0: expert 1 has load nan, not a finite number"),
        (wire(tokens=[]), "load: window 0: no layer"),
    ],
)  # fmt: skip
def test_what_is_not_the_wire_form_is_an_error(raw: bytes, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        decode(raw)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (3, "f: 3, expected a matrix, named matrices or load windows"),
        (None, "f: null, expected a matrix"),
        ("x" * 100, r'f: "x{39}\.\.\., expected a matrix'),
        ([], "f: no layer"),
        ({}, "f: no load"),
        ([1, 2], "f: layer 0: 1, expected a list of loads by expert"),
        ([[1], {"a": 1}], "f: layer 1: an object, expected a list of loads by expert"),
        ([[]], "f: layer 0: 0 experts, expected at least one"),
        ([[1, 2], [1, 2, 3]], "f: layer 1: 3 experts, layer 0 has 2"),
        ([[1, None]], "f: layer 0: expert 1: null, expected a number"),
        ([[1, True]], "f: layer 0: expert 1: true, expected a number"),
        ([[1, [2]]], "f: layer 0: expert 1: a list, expected a number"),
        ([[1, 2], [3, float("nan")]], "f: layer 1: expert 1 has load nan, not a finite number"),
        ([[1, 10**400]], "f: layer 0: expert 1 has load inf, not a finite number"),
        ([[1, 1e19]], "f: layer 0: expert 1 has load 1e.19, above 1e.18"),
        ([[1, -2]], "f: layer 0: expert 1 has load -2.0, below 0"),
        ([[1, 2], [0, 0]], "f: layer 1: all experts have load 0, so nothing can be said of it"),
        ({"a": [[1]], "b": 7}, "f: 'b': 7, expected a matrix"),
        ({"a": [[1]], "b": [[-1]]}, "f: 'b': layer 0: expert 0 has load -1.0, below 0"),
        (
            {"x/a": [[1]], "x/b": [[2]], "y/a": [[1, 2]]},
            r"f: loads of several models, \(layers, experts\): 'x/a' has \(1, 1\), 'y/a' has \(1, 2\); match one",
        ),
    ],
)
def test_a_file_that_holds_no_loads_is_an_error(item: object, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        parse_scenarios(json.dumps(item).encode(), "f")


def test_a_bare_matrix_is_named_as_its_file() -> None:
    (found,) = parse_scenarios(b"[[1, 2], [3.5, 4]]", "loads.json")
    assert (found.name, found.tokens.tolist(), found.weight) == ("loads.json", [[1.0, 2.0], [3.5, 4.0]], 1.0)


def test_of_several_models_one_is_matched_by_name() -> None:
    raw = b'{"x/a": [[1]], "x/b": [[2]], "y/a": [[1, 2]], "source": "somewhere"}'
    assert [one.name for one in parse_scenarios(raw, "f", match="x/")] == ["x/a", "x/b"]
    assert [one.name for one in parse_scenarios(raw, "f", match="y/a")] == ["y/a"]
    with pytest.raises(PlacementError, match="f: no name contains 'z': 'x/a', 'x/b', 'y/a', 'source'"):
        parse_scenarios(raw, "f", match="z")


def test_only_the_first_names_are_listed() -> None:
    raw = json.dumps({f"n{number}": [[1]] for number in range(9)}).encode()
    with pytest.raises(PlacementError, match=r"'n5' and 3 more$"):
        parse_scenarios(raw, "f", match="z")


def test_windows_of_a_class_become_one_load() -> None:
    chat = [replace(WINDOW, engine=engine) for engine in ("decode-0", "decode-1")]
    code = replace(WINDOW, traffic_class="code", tokens=np.array([[5.0, 6.0], [7.0, 8.0]]))
    found = parse_scenarios(encode([*chat, code]), "f")
    assert [one.name for one in found] == ["deepseek-v3/chat", "deepseek-v3/code"]
    assert found[0].tokens.tolist() == [[24.0, 0.0], [3.0, 14.0]]
    (alone,) = parse_scenarios(encode([*chat, code]), "f", match="code")
    assert alone.tokens.tolist() == code.tokens.tolist()


def test_windows_of_models_with_other_shapes_are_told_apart() -> None:
    small = replace(WINDOW, model="olmoe", tokens=np.array([[1.0]]))
    raw = encode([WINDOW, small])
    with pytest.raises(PlacementError, match=r"'deepseek-v3/chat' has \(2, 2\), 'olmoe/chat' has \(1, 1\)"):
        parse_scenarios(raw, "f")
    assert [one.name for one in parse_scenarios(raw, "f", match="olmoe")] == ["olmoe/chat"]
    with pytest.raises(PlacementError, match="several models"):
        parse_scenarios(encode([WINDOW, replace(small, model=WINDOW.model)]), "f")


def test_named_matrices_are_read(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    names = [f"moe/{kind}/{name}" for kind in ("counts", "counts_top1") for name in domains()]
    path.write_text(json.dumps({key: [[1, 2, 3], [4, 5, 6]] for key in names}))
    found = read_scenarios(path, match="counts/")
    assert [one.name.rsplit("/", 1)[1] for one in found] == ["chat", "code", "law", "prose"]
    assert {one.tokens.shape for one in found} == {(2, 3)}
    assert len(read_scenarios(path)) == 8


def test_the_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    with pytest.raises(PlacementError, match=r"loads\.json: No such file or directory"):
        read_scenarios(path)
    path.write_bytes(b" \n")
    with pytest.raises(PlacementError, match=r"loads\.json: empty"):
        read_scenarios(path)
    with pytest.raises(PlacementError, match=rf"{tmp_path.name}: Is a directory"):
        read_scenarios(tmp_path)


def test_the_version_is_the_first_field() -> None:
    assert encode([WINDOW]).startswith(b'{"version":%d,' % LOADS_VERSION)
