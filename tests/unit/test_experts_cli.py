"""`headrace experts plan` and `simulate`: what they print, and what they say of bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from controlplane.cli import app
from controlplane.experts_cli import read_plan
from controlplane.placement.loads import ExpertLoadWindow, encode
from tests.placement_cases import domains


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["experts", *args], terminal_width=200)


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({f"moe/{name}": tokens.tolist() for name, tokens in domains().items()}))
    return path


def planned(loads: Path, *args: str, slots_per_rank: int = 9) -> dict[str, Any]:
    shape = "--ranks", "8", "--slots-per-rank", str(slots_per_rank)
    result = run("plan", "--loads", str(loads), *shape, "--json", *args)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_plan_is_good_for_every_load_in_the_file(loads: Path) -> None:
    plan = planned(loads, "--nodes", "2")
    assert (plan["layers"], plan["experts"], plan["ranks"], plan["nodes"]) == (3, 64, 8, 2)
    assert set(plan["balancedness"]) == {"moe/chat", "moe/code", "moe/law", "moe/prose"}
    assert min(values["worst"] for values in plan["balancedness"].values()) > 0.85
    assert plan["seconds"]["straggler"] >= plan["seconds"]["bound"] > 0.0
    assert plan["plan_s"] > 0.0


def test_a_plan_for_what_was_not_seen_shows_what_was(loads: Path) -> None:
    plan = planned(loads, "--unseen")
    assert set(plan["balancedness"]) == {"moe/chat", "moe/code", "moe/law", "moe/prose"}
    assert min(values["mean"] for values in plan["balancedness"].values()) > 0.8


def test_a_plan_is_read_back_and_changed_little(loads: Path, tmp_path: Path) -> None:
    first = tmp_path / "plan.json"
    first.write_text(json.dumps(planned(loads, "--match", "chat")))
    assert read_plan(first).num_experts == 64
    second = planned(loads, "--match", "code", "--previous", str(first), "--max-moves", "12")
    assert 0 < second["moved_slots"] <= 12
    assert second["seconds"]["total"] < second["seconds"]["kept"]


def test_a_dead_rank_holds_nothing_and_its_experts_go_elsewhere(loads: Path, tmp_path: Path) -> None:
    before = tmp_path / "plan.json"
    before.write_text(json.dumps(planned(loads, slots_per_rank=10)))
    plan = planned(loads, "--previous", str(before), "--dead", "3", slots_per_rank=10)
    assert all(set(row[30:40]) == {-1} for row in plan["slots"])
    assert all(set(row) - {-1} == set(range(64)) for row in plan["slots"])
    assert plan["needed_slots"] > 0
    after = tmp_path / "after.json"
    after.write_text(json.dumps(plan))
    assert read_plan(after).num_experts == 64


def test_people_see_a_table_and_a_heat_map(loads: Path) -> None:
    result = run("plan", "--loads", str(loads), "--ranks", "8", "--slots-per-rank", "9")
    assert result.exit_code == 0
    assert "3 layers, 64 experts, 8 ranks" in result.stdout
    assert "▒" in result.stdout


def test_windows_are_replayed_through_policies(tmp_path: Path) -> None:
    path = tmp_path / "windows.json"
    windows = [
        ExpertLoadWindow("moe", "m0", 1, "all", 60.0, 60.0 * number, np.rint(domains()["law"] * (1 + 0.01 * number)))
        for number in range(1, 5)
    ]
    path.write_bytes(encode(windows))
    result = run("simulate", "--loads", str(path), "--ranks", "8", "--slots-per-rank", "9", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert rows["as they come"]["moved_slots"] == 0
    assert rows["Headrace"]["balancedness"] > 0.95 > rows["as they come"]["balancedness"]
    assert rows["Headrace"]["moved_slots"] < rows["EPLB, every window"]["moved_slots"]
    assert "Headrace" in run("simulate", "--loads", str(path), "--ranks", "8", "--slots-per-rank", "9").stdout


@pytest.mark.parametrize(
    ("content", "args", "said"),
    [
        ("[[1, 2], [3]]", (), "layer 1: 1 experts, layer 0 has 2"),
        ("[[1, 2], [0, 0]]", (), "layer 1: all experts have load 0"),
        ("[[1, NaN]]", (), "layer 0: expert 1 has load nan"),
        ("[[1, 2], [3, 4]]", ("--slots-per-rank", "1", "--ranks", "1"), "2 experts need as many slots, 1 of 1 ranks"),
        ("[[1, 2]]", ("--nodes", "3"), "8 ranks do not divide over 3 nodes"),
        ("[[1, 2]]", ("--dead", "8"), "ranks go from 0 to 7"),
        ("[[1, 2]]", ("--risk", "2"), "risk is 2.0, allowed is 0 to 1"),
        ("nonsense", (), "not JSON"),
    ],
)
def test_bad_input_is_said_by_layer_and_rule(tmp_path: Path, content: str, args: tuple[str, ...], said: str) -> None:
    path = tmp_path / "loads.json"
    path.write_text(content)
    result = run("plan", "--loads", str(path), "--ranks", "8", "--slots-per-rank", "9", *args)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "not a plan"),
        ('{"version": 2, "experts": 2, "ranks": 1, "slots_per_rank": 2, "slots": [[0, 1]]}', "version 2"),
        ('{"version": 1, "experts": 2, "ranks": 1, "slots_per_rank": 2, "slots": [[0, 0]]}', "expert 1 has no slot"),
        ('{"version": 1, "experts": 2, "ranks": 1, "slots_per_rank": 2, "slots": [[0, 1], [1]]}', "one length"),
        ('{"version": 1, "experts": 2, "ranks": 2, "slots_per_rank": 2, "slots": [[0, 1]]}', "expected (layers, 4"),
        ('{"version": 1, "experts": 2, "ranks": 0, "slots_per_rank": 0, "slots": [[0, 1]]}', "0 ranks"),
    ],
)
def test_a_bad_plan_is_not_sent(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    result = run("apply", "--plan", str(path), "--worker", "m0", "--admin", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert said in result.stderr
