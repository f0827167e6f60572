"""Claim: Headrace's data plane costs less than those of the Rust routers, with everything switched on.

    python -m tests.bench.data_plane [--rounds 3] [--seconds 0.8] [--match WORD ...] [--peers FOLDER] [--no-idle]

Closed loops of real HTTP from one client process through each contender to one process of mock engines, all on this
machine and on all of its cores, nothing pinned. Contenders run one at a time, each started afresh in every round, and
rounds follow each other (A B C A B C), so that noise hits all alike; what is reported are medians over the rounds. CPU
is that of all processes of the contender, from the kernel's nanosecond clocks. --match: contenders and cases (such as
"headrace", "unary-400 x32") that contain all parts of one of the words, where parts are joined by "+".
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.data_plane import report
from tests.bench.data_plane.cases import Case
from tests.bench.data_plane.contenders import CONTENDERS, Contender, Setting, job
from tests.bench.data_plane.meter import cpu_ns, cpu_since_ns, machine_busy_s, rss_bytes
from tests.bench.data_plane.processes import DidNotStartError, Processes
from workers.ports import free_ports

_HERE = "tests.bench.data_plane"
_IDLE_STREAMS = 10_000
_IDLE_CONTENDERS = ("bare relay", "headrace round robin", "headrace full", "vllm-router", "sglang-router")
_SPARE_DESCRIPTORS = 300
_WARM_S = 0.4
_LOOK_S, _QUIET_SHARE = 0.2, 0.15  # of the machine
_SETTLE_S, _IDLE_SHARE = 30.0, 0.15  # of a core


@dataclass
class Bench:
    """One run."""

    setting: Setting
    clients: asyncio.subprocess.Process
    fixtures: Processes
    seconds: float
    patience_s: float
    rounds: dict[tuple[str, Case], list[report.Measured]] = field(default_factory=dict)
    idle: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    async def measure(self, contender: Contender, cases: Sequence[Case], idle_streams: int) -> None:
        """Start a contender, put its cases to it, end it."""
        why = contender.missing(self.setting)
        if why is not None:
            self.skip(contender, why)
            return
        processes = Processes(contender.name, self.setting.folder)
        try:
            port = await contender.start(self.setting, processes)
            await _until_settled(processes)
            for case in cases:
                await self._until_quiet()
                told = job(contender, case, port, warm_s=_WARM_S, seconds=self.seconds)
                measured = await self._ask(told, processes)
                self.rounds.setdefault((contender.name, case), []).append(measured)
            if idle_streams:
                told = job(contender, Case("idle", idle_streams), port, warm_s=1.0, seconds=0.0)
                self.idle.append({"contender": contender.name, **await self._ask(told, processes)})
        except DidNotStartError as error:
            self.skip(contender, f"did not start: {error}")
        finally:
            await processes.stop()

    async def _ask(self, told: dict[str, Any], processes: Processes) -> dict[str, Any]:
        assert self.clients.stdin is not None
        assert self.clients.stdout is not None
        pids = processes.pids()
        told |= {"pids": pids, "beside": processes.beside() + self.fixtures.pids()}
        self.clients.stdin.write(json.dumps(told).encode() + b"\n")
        answer = await self.clients.stdout.readline()
        if not answer:
            raise SystemExit("the process of the clients has ended")
        measured: dict[str, Any] = json.loads(answer)
        if not pids:  # there is nobody between client and engine
            measured["cpu_us_per_request"] = None
        measured.setdefault("rss_mb", rss_bytes(pids) / 1e6 if pids else None)
        return measured

    async def _until_quiet(self) -> None:
        """Wait a while for others on this machine to pause."""
        give_up_s = time.monotonic() + self.patience_s
        while time.monotonic() < give_up_s:
            busy_s = machine_busy_s()
            await asyncio.sleep(_LOOK_S)
            if machine_busy_s() - busy_s < _QUIET_SHARE * _LOOK_S * (os.cpu_count() or 1):
                return

    def skip(self, contender: Contender, why: str) -> None:
        """Say so once."""
        if contender.name not in self.skipped:
            self.skipped[contender.name] = why
            print(f"skipped: {contender.name}: {why}", flush=True)


async def _until_settled(processes: Processes) -> None:
    """Until the contender does nothing: some load tokenizers, or start further processes, when they answer already."""
    for _ in range(int(_SETTLE_S / _LOOK_S)):
        pids = processes.pids()
        before = cpu_ns(pids)
        await asyncio.sleep(_LOOK_S)
        if cpu_since_ns(before) < _IDLE_SHARE * _LOOK_S * 1e9 and processes.pids() == pids:
            return


async def run(arguments: argparse.Namespace) -> None:
    """All rounds, then the report; of an interrupted run, what stands."""
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        workload = folder / "workload.json"
        await _finish(_module("prompts", workload))
        engines = free_ports("127.0.0.1", 2)
        fixtures = Processes("fixtures", folder)
        try:
            await fixtures.start_speaking(_module("engine", *(f"{port}:{at}" for at, port in enumerate(engines))))
            clients = await _clients(workload)
            setting = Setting(folder, workload, (engines[0], engines[1]), Path(arguments.peers).absolute())
            bench = Bench(setting, clients, fixtures, arguments.seconds, arguments.patience)
            try:
                await _all_rounds(bench, arguments)
            except asyncio.CancelledError:
                print("interrupted; what was measured until now:", flush=True)
            clients.terminate()
            await clients.wait()
        finally:
            await fixtures.stop()
    _print(bench, arguments)


async def _all_rounds(bench: Bench, arguments: argparse.Namespace) -> None:
    idle_streams = _idle_streams() if arguments.idle else 0
    for number in range(arguments.rounds):
        for contender, cases in _wanted(arguments.match):
            if cases:
                print(f"round {number + 1}: {contender.name}", file=sys.stderr, flush=True)
                holds = number == 0 and contender.name in _IDLE_CONTENDERS
                await bench.measure(contender, cases, idle_streams if holds else 0)


def _print(bench: Bench, arguments: argparse.Namespace) -> None:
    rows = report.rows(bench.rounds)
    report.print_table(rows)
    for each in bench.idle:
        report.print_idle(each)
    others = [each["others_share"] for measured in bench.rounds.values() for each in measured] or [0.0]
    print(f"\nother processes used {median(others):.0%} of the machine meanwhile (median), {max(others):.0%} at most")
    about = {"rounds": arguments.rounds, "seconds": arguments.seconds, "skipped": bench.skipped}
    print(report.json_line(rows, bench.idle, about))


def _wanted(words: Sequence[str]) -> list[tuple[Contender, list[Case]]]:
    """Contenders and cases that were asked for; `direct` in each case, as the others are compared with it."""
    wanted = [(each, [case for case in each.cases if _matches(words, each, case)]) for each in CONTENDERS]
    asked = {case for _, cases in wanted for case in cases}
    return [
        (each, [case for case in each.cases if case in asked] if each.name == report.DIRECT else cases)
        for each, cases in wanted
    ]


def _matches(words: Sequence[str], contender: Contender, case: Case) -> bool:
    text = f"{contender.name} | {case.name} "
    return not words or any(all(part in text for part in word.split("+")) for word in words)


def _idle_streams() -> int:
    """As many as descriptors allow: a router has two for each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 2 * _IDLE_STREAMS + _SPARE_DESCRIPTORS
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, max(enough, hard)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_IDLE_STREAMS, (soft - _SPARE_DESCRIPTORS) // 2)


async def _clients(workload: Path) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    clients = await asyncio.create_subprocess_exec(*_module("load", workload), stdin=pipe, stdout=pipe)
    assert clients.stdout is not None
    await clients.stdout.readline()
    return clients


async def _finish(argv: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    if await process.wait() != 0:
        raise SystemExit(f"{' '.join(argv)} failed")


def _module(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"{_HERE}.{module}", *map(str, arguments)]


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description="The data plane's benchmark.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.8, help="measured in each case of each round")
    parser.add_argument("--match", nargs="*", default=[], help="only these contenders and cases")
    parser.add_argument("--peers", default=".venv-peers", help="virtual environment with the other routers")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds to wait for a quiet machine, each time")
    parser.add_argument("--no-idle", dest="idle", action="store_false", help="leave the idle streams out")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
