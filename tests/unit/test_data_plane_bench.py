"""The data plane's benchmark runs, for moments, with real engines, clients and relay. No time is looked at."""

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.bench.data_plane import report
from tests.bench.data_plane.cases import Case
from tests.bench.data_plane.contenders import CONTENDERS, Setting, job
from tests.bench.data_plane.idle_streams import hold_idle_streams
from tests.bench.data_plane.jobs import Job
from tests.bench.data_plane.load import measure
from tests.bench.data_plane.meter import cpu_ns, cpu_since_ns, rss_bytes
from tests.bench.data_plane.processes import DidNotStartError, Processes
from tests.bench.data_plane.prompts import Prompt, Workload
from tests.bench.soak import Sample, Soak, judge
from workers.ports import free_ports

_WORKLOAD = Workload(
    {
        "400": [Prompt([{"role": "user", "content": f"hello {number}"}], [12, 0, 0]) for number in range(3)],
        "turns": [Prompt([{"role": "user", "content": "hello 000000"}], [12, 0, 0])],
    },
    [[], []],
)
_RELAY = next(each for each in CONTENDERS if each.name == "bare relay")


def _measure(tmp_path: Path, *cases: Case) -> list[dict[str, Any]]:
    """What the bare relay makes of these."""

    async def test() -> list[dict[str, Any]]:
        ports = free_ports("127.0.0.1", 2)
        engines, relay = Processes("engines", tmp_path), Processes(_RELAY.name, tmp_path)
        try:
            argv = [sys.executable, "-m", "tests.bench.data_plane.engine", f"{ports[0]}:0", f"{ports[1]}:1"]
            await engines.start_speaking(argv)
            port = await _RELAY.start(Setting(tmp_path, tmp_path, (ports[0], ports[1]), tmp_path), relay)
            made = []
            for case in cases:
                told = job(_RELAY, case, port, warm_s=0.1, seconds=0.5)
                told |= {"pids": relay.pids(), "beside": engines.pids()}
                made.append(await (hold_idle_streams if case.kind == "idle" else measure)(_WORKLOAD, Job(**told)))
            return made
        finally:
            await relay.stop()
            await engines.stop()

    return asyncio.run(test())


def test_unary_streams_and_numbered_chats_pass_the_relay_whole(tmp_path: Path) -> None:
    cases = [Case("unary-400", 2), Case("stream-64", 2), Case("stream-64-paced", 2), Case("multi-turn", 2)]
    for case, measured in zip(cases, _measure(tmp_path, *cases), strict=True):
        assert measured["errors"] == 0, (case, measured["error"])
        assert measured["requests"] > 0, case
        assert measured["cpu_us_per_request"] > 0, case
        assert ("event_p50_us" in measured) == case.streams


def test_idle_streams_are_all_held_open(tmp_path: Path) -> None:
    (measured,) = _measure(tmp_path, Case("idle", 20))
    assert (measured["streams"], measured["errors"]) == (20, 0)
    assert measured["rss_mb"] >= measured["rss_before_mb"] > 0


def test_a_contender_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        processes = Processes("broken", tmp_path)
        try:
            with pytest.raises(DidNotStartError, match="no-such-module"):
                await processes.start_speaking([sys.executable, "-m", "no-such-module"])
        finally:
            await processes.stop()

    asyncio.run(test())


def test_peers_that_are_not_installed_say_so(tmp_path: Path) -> None:
    setting = Setting(tmp_path, tmp_path, (1, 2), tmp_path)
    missing = {each.name for each in CONTENDERS if each.missing(setting) is not None}
    assert missing >= {"vllm-router", "sglang-router", "dynamo frontend", "vllm-router P/D"}
    assert not any(name.startswith(("headrace", "direct", "bare")) for name in missing)


def test_the_report_takes_medians_and_differences_within_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    def measured(p50_us: float, cpu_us: float | None) -> report.Measured:
        times = {"rps": 100.0, "p50_us": p50_us, "p99_us": 2 * p50_us}
        return {**times, "cpu_us_per_request": cpu_us, "rss_mb": 10.0, "errors": 0, "error": None}

    unary, stream = Case("unary-400", 1), Case("stream-64", 1)
    rounds = {
        ("direct", unary): [measured(10, None), measured(50, None), measured(20, None)],
        ("x", unary): [measured(30, 40), measured(90, 60), measured(45, 50)],
        ("x", stream): [measured(300, 690)],
    }
    rows = report.rows(rounds)
    report.print_table(rows)
    made = json.loads(report.json_line(rows, [], {"rounds": 3}))["rows"]
    row = next(each for each in made if (each["contender"], each["case"]) == ("x", "unary-400"))
    assert (row["p50_us"], row["cpu_us_per_request"], row["added_p50_us"]) == (45, 50, 25)
    assert next(each for each in made if each["case"] == "stream-64")["cpu_us_per_chunk"] == 10.0
    assert "unary-400, 1 connection" in capsys.readouterr().out


def test_meters_of_this_process() -> None:
    before = cpu_ns([os.getpid(), 2**22 + 1])  # no process has that number
    sum(range(200_000))
    assert before.keys() == {os.getpid()}
    assert cpu_since_ns(before) > 0
    assert rss_bytes([os.getpid()]) > 1_000_000


def _soak(rss_mb: list[float], **after: float) -> Soak:
    rest: dict[str, Any] = {"sockets": 5, "tasks": 9, "in_flight": 0.0, "requests": 0, "descriptors": 20}
    samples = [Sample(at_s=float(at), rss_mb=rss, **rest) for at, rss in enumerate(rss_mb)]
    return Soak(samples, samples[0], Sample(**{**asdict(samples[-1]), **after}), {"a": {"answered": 5}})


def test_the_soak_s_verdict() -> None:
    growing = [100.0 + at for at in range(20)]
    assert judge(_soak([150.0, 200.0] + [201.0, 200.0] * 9)).is_flat  # filled its caches early
    assert "memory grew" in judge(_soak(growing)).problems[0]
    assert "descriptors: 20 before, 40 after" in judge(_soak([100.0] * 20, descriptors=40)).problems[0]
    assert "in flight at the end: 1" in judge(_soak([100.0] * 20, in_flight=1.0)).problems[0]
    lost = _soak([100.0] * 20)
    lost.outcomes["b"] = {"lost": 1}
    assert "1 requests lost" in judge(lost).problems[0]
