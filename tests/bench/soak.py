"""Claim: a router that runs for long stays as it was: memory, descriptors, tasks, and no request is lost.

    python -m tests.bench.soak [--minutes 30] [--clients 24] [--seed 1]

A real router process on real Redis; clients of every kind (soak_clients.py) come, cut and go while workers
(soak_workers.py) join, drain, die and misbehave. The router's caches are made small, so that they are full early. Ends
with a table, a verdict and one JSON line; exit status 1 if the verdict is no. Flat means:

 1. memory: the line through the second half of the samples rises by less than GROWTH of the memory there;
 2. descriptors and tasks: with clients and workers gone, as many as before the first came, within SPARE;
 3. nothing is in flight, by the router's own count;
 4. no request is lost: each that its own client did not cut got an answer, a refusal that says why, or an end that can
    be told from a complete answer.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from statistics import linear_regression, mean
from typing import Any

import aiohttp
import yaml

from controlplane.config import Config
from controlplane.embedded_redis import embedded_redis
from tests.bench.data_plane.meter import rss_bytes
from tests.bench.soak_clients import ANSWERED, BROKEN, CUT, LOST, REFUSED, Clients
from tests.bench.soak_workers import Workers

GROWTH = 0.02
SPARE = 4
_SAMPLES = 120  # over the whole run
_SETTLE_S = 90.0  # idle connections may take so long to be closed
_CHANGE_S = 3.0  # between two changes of the fleet
_LINES = 12
_CONFIG: dict[str, Any] = {
    "router": {
        "http": {"port": 0},
        "grpc": {"port": 0},
        "tokens": {"cache_bytes": 1 << 20},
        "explain": {"keep_requests": 500, "keep_bytes": 1 << 20},
    },
    "index": {"budget_bytes": 4 << 20, "log_window_s": 5.0},
    "redis": {"lease_s": 2.0, "heartbeat_s": 0.2},
    "engine": {"probe_interval_s": 1.0},
}


@dataclass(frozen=True)
class Sample:
    """The router at one moment."""

    at_s: float
    rss_mb: float
    descriptors: int
    sockets: int
    tasks: int
    in_flight: float
    requests: int  # by the clients' count


@dataclass(frozen=True)
class Verdict:
    """What the run has shown."""

    problems: list[str]
    growth_mb_per_hour: float
    growth_share: float  # of the memory, over the second half

    @property
    def is_flat(self) -> bool:
        """Nothing speaks against it."""
        return not self.problems


@dataclass
class Soak:
    """What was seen."""

    samples: list[Sample] = field(default_factory=list)
    before: Sample | None = None
    after: Sample | None = None
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    num_tracebacks: int = 0  # on the router's stderr: errors that nobody dealt with


class Router:
    """The router's process, and what can be seen of it."""

    def __init__(self, process: asyncio.subprocess.Process, http_port: int, grpc_port: int) -> None:
        self._process = process
        self.http_port = http_port
        self.grpc_port = grpc_port
        self._began_s = time.monotonic()

    async def sample(self, requests: int) -> Sample:
        """Look at it now."""
        pid = self._process.pid
        links = [_target(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        return Sample(
            at_s=round(time.monotonic() - self._began_s, 1),
            rss_mb=round(rss_bytes([pid]) / 1e6, 2),
            descriptors=len(links),
            sockets=sum(link.startswith("socket:") for link in links),
            tasks=await self._tasks(),
            in_flight=await self._in_flight(),
            requests=requests,
        )

    async def wait_ready(self) -> None:
        """Until it would serve."""
        async with aiohttp.ClientSession() as session:
            for _ in range(300):
                async with session.get(f"http://127.0.0.1:{self.http_port}/readyz") as response:
                    if response.status == 200:
                        return
                await asyncio.sleep(0.1)
        raise SystemExit("the router did not become ready")

    async def _tasks(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        return int(json.loads(await self._process.stdout.readline())["tasks"])

    async def _in_flight(self) -> float:
        # A session of its own each time: no connection of ours is to be among those that are counted.
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.http_port}/metrics") as response,
        ):
            lines = (await response.text()).splitlines()
        return float(next(line for line in lines if line.startswith("headrace_requests_in_flight ")).split()[1])


async def soak(minutes: float, num_clients: int, seed: int) -> Soak:
    """Run it."""
    seen, rng, config = Soak(), Random(seed), Config.model_validate(_CONFIG)
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as name:
        folder = Path(name)
        async with embedded_redis(folder) as redis_url, _router(folder, redis_url) as router:
            seen.before = await _settled(router, None)
            workers = Workers(config, redis_url, Random(rng.random()))
            clients = Clients(router.http_port, router.grpc_port, Random(rng.random()))
            try:
                await workers.start()
                await router.wait_ready()
                await _churn(router, workers, clients, seen, minutes * 60, num_clients)
            finally:
                await workers.close()
            seen.after = await _settled(router, seen.before)
            seen.num_tracebacks = (folder / "router.err").read_text(errors="replace").count("Traceback (most recent")
    seen.outcomes = {act: dict(counter) for act, counter in sorted(clients.outcomes.items())}
    seen.lost, seen.changes = dict(clients.details.most_common(20)), dict(workers.seen)
    return seen


async def _churn(
    router: Router, workers: Workers, clients: Clients, seen: Soak, seconds: float, num_clients: int
) -> None:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.run(num_clients, stop))
        group.create_task(workers.churn(stop, _CHANGE_S))
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            await asyncio.sleep(seconds / _SAMPLES)
            seen.samples.append(await router.sample(sum(counter.total() for counter in clients.outcomes.values())))
        stop.set()


async def _settled(router: Router, goal: Sample | None) -> Sample:
    """The router when it has come to rest: as it was at `goal`, or after _SETTLE_S; without a goal, after a while."""
    give_up_s = time.monotonic() + _SETTLE_S
    sample = await router.sample(0)
    if goal is None:
        await asyncio.sleep(2.0)
        return await router.sample(0)
    while time.monotonic() < give_up_s and _left_over(goal, sample):
        await asyncio.sleep(1.0)
        sample = await router.sample(0)
    return sample


def _left_over(before: Sample, after: Sample) -> list[str]:
    """What there is more of."""
    found = [
        f"{what}: {getattr(before, what)} before, {getattr(after, what)} after"
        for what in ("descriptors", "tasks")
        if getattr(after, what) > getattr(before, what) + SPARE
    ]
    return found + ([f"in flight at the end: {after.in_flight:g}"] if after.in_flight else [])


def judge(seen: Soak) -> Verdict:
    """The verdict."""
    half = seen.samples[len(seen.samples) // 2 :]
    slope, _ = linear_regression([each.at_s for each in half], [each.rss_mb for each in half])
    growth = slope * (half[-1].at_s - half[0].at_s) / mean(each.rss_mb for each in half)
    assert seen.before is not None
    assert seen.after is not None
    problems = _left_over(seen.before, seen.after)
    if growth > GROWTH:
        problems.append(f"memory grew by {growth:.1%} in the second half, allowed {GROWTH:.0%}")
    num_lost = sum(outcomes.get(LOST, 0) for outcomes in seen.outcomes.values())
    if num_lost:
        problems.append(f"{num_lost} requests lost: {seen.lost}")
    if not any(outcomes.get(ANSWERED) for outcomes in seen.outcomes.values()):
        problems.append("nothing was answered")
    return Verdict(problems, round(slope * 3600, 2), round(growth, 4))


def print_report(seen: Soak, verdict: Verdict) -> None:
    """The table, the outcomes, the verdict."""
    assert seen.before is not None
    assert seen.after is not None
    print(f"{'minute':>8}{'RSS MB':>9}{'fds':>7}{'sockets':>9}{'tasks':>7}{'in flight':>11}{'requests':>10}")
    step = max(1, len(seen.samples) // _LINES)
    for each in (seen.before, *seen.samples[step - 1 :: step], seen.after):
        print(
            f"{each.at_s / 60:>8.1f}{each.rss_mb:>9.1f}{each.descriptors:>7}{each.sockets:>9}{each.tasks:>7}"
            f"{each.in_flight:>11.0f}{each.requests:>10}"
        )
    ends = (ANSWERED, REFUSED, BROKEN, CUT, LOST)
    print("\n" + f"{'clients':<24}" + "".join(f"{end:>12}" for end in ends))
    for act, outcomes in seen.outcomes.items():
        print(f"{act:<24}" + "".join(f"{outcomes.get(end, 0):>12}" for end in ends))
    print("workers: " + ", ".join(f"{count} {what}" for what, count in sorted(seen.changes.items())))
    if seen.num_tracebacks:
        print(f"{seen.num_tracebacks} tracebacks on the router's stderr")
    print(f"memory: {verdict.growth_mb_per_hour:+.1f} MB an hour, {verdict.growth_share:+.2%} in the second half")
    print("flat" if verdict.is_flat else "NOT FLAT: " + "; ".join(verdict.problems))


@asynccontextmanager
async def _router(folder: Path, redis_url: str) -> AsyncIterator[Router]:
    config = folder / "headrace.yaml"
    config.write_text(yaml.safe_dump(_CONFIG))
    argv = [sys.executable, "-m", "tests.bench.soak_router", str(config), redis_url, str(folder)]
    pipe = asyncio.subprocess.PIPE
    with (folder / "router.err").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True
        )
    try:
        assert process.stdout is not None
        ports = (await process.stdout.readline()).split()
        if len(ports) != 2:
            raise SystemExit(f"the router did not start: {(folder / 'router.err').read_text()[-800:]}")
        yield Router(process, int(ports[0]), int(ports[1]))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)  # noqa: PTH115  such a link points to no path
    except OSError:  # closed meanwhile
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report and one JSON line."""
    parser = argparse.ArgumentParser(description="Does a router stay as it was?")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    seen = asyncio.run(soak(given.minutes, given.clients, given.seed))
    verdict = judge(seen)
    print_report(seen, verdict)
    summary = {"bench": "soak", "minutes": given.minutes, "flat": verdict.is_flat, **asdict(verdict)}
    print(
        json.dumps(
            {
                **summary,
                "outcomes": seen.outcomes,
                "lost": seen.lost,
                "changes": seen.changes,
                "tracebacks": seen.num_tracebacks,
            }
        )
    )
    return 0 if verdict.is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
