"""The clients: one process, raw protocols, cheaper than any router. Told what to do by JSON lines on stdin.

    python -m tests.bench.data_plane.load WORKLOAD

A job names a port, a kind of requests and how many connections; each connection sends its next request when it has the
answer to the last. What happens within `seconds` is counted, the CPU time of `pids` among it; it begins after `warm_s`,
and when every prompt has been sent once. Clocks are the system's monotonic one, which the mock engines stamp events
with.
"""

import asyncio
import gc
import json
import os
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, cast

import uvloop

from tests.bench.data_plane import prompts
from tests.bench.data_plane.idle_streams import hold_idle_streams
from tests.bench.data_plane.jobs import Job, Requests
from tests.bench.data_plane.meter import cpu_ns, cpu_since_ns, machine_busy_s

_END = b"0\r\n\r\n"  # of a chunked body
_RECONNECT_S = 0.02
_WARM_MOST_S, _WARM_LOOK_S = 6.0, 0.05
_NUM_CPUS = len(os.sched_getaffinity(0))
_KEPT_BYTES = 48  # of a stream's end


class Run:
    """What has been seen so far."""

    def __init__(self, requests: Requests, job: Job) -> None:
        self.requests = requests
        self.job = job
        self.streams = job.kind.startswith("stream")
        self.is_over = False
        self.open: set[asyncio.Transport] = set()
        self.opening: list[asyncio.Future[None]] = []
        self.all_closed = asyncio.Event()
        self.latencies_ns = array("Q")
        self.firsts_ns = array("Q")
        self.events_ns = array("Q")
        self.errors: Counter[str] = Counter()

    def begin(self) -> None:
        """From now on it counts."""
        for seen in (self.latencies_ns, self.firsts_ns, self.events_ns):
            del seen[:]
        self.errors.clear()
        self.cpu_before = cpu_ns(self.job.pids)
        self.beside_before = cpu_ns(self.job.beside)
        self.client_ns = -time.process_time_ns()
        self.busy_s = -machine_busy_s()
        self.began_ns = time.monotonic_ns()

    def end(self) -> dict[str, Any]:
        """Until now."""
        elapsed_s = (time.monotonic_ns() - self.began_ns) / 1e9
        used_ns = cpu_since_ns(self.cpu_before)
        self.client_ns += time.process_time_ns()
        ours_s = (used_ns + self.client_ns + cpu_since_ns(self.beside_before)) / 1e9
        others_s = self.busy_s + machine_busy_s() - ours_s
        self.is_over = True
        count = len(self.latencies_ns)
        return {
            "requests": count,
            "errors": sum(self.errors.values()),
            "error": next(iter(self.errors), None),
            "rps": round(count / elapsed_s, 1),
            **_percentiles("", self.latencies_ns),
            **_percentiles("first_", self.firsts_ns),
            **_percentiles("event_", self.events_ns),
            "cpu_us_per_request": used_ns / 1000 / count if count else None,
            "client_us_per_request": self.client_ns / 1000 / count if count else None,
            "others_share": max(0.0, others_s / elapsed_s / _NUM_CPUS),  # of the machine's CPU time
        }


def _percentiles(name: str, seen_ns: "array[int]") -> dict[str, float]:
    if not seen_ns:
        return {}
    ordered = sorted(seen_ns)
    at = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99)}
    return {f"{name}{which}_us": round(ordered[index] / 1000, 1) for which, index in at.items()}


class Client(asyncio.Protocol):
    """One connection."""

    __slots__ = ("_first", "_held", "_left", "_run", "_sent_ns", "_transport")

    def __init__(self, run: Run) -> None:
        self._run = run

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not derive from it
        self._run.open.add(self._transport)
        self._send()

    def _send(self) -> None:
        self._held = b""
        self._left: int | None = None  # bytes of the answer that are missing; None: its head; -1: it is chunked
        self._first = True
        request = self._run.requests.take()
        self._sent_ns = time.monotonic_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Part of an answer."""
        if self._left is None:
            data = self._held + data if self._held else data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._held = data
                return
            self._read_head(data[:end].lower())
            data = data[end:]
            if not data and self._left:
                self._held = b""
                return
        assert self._left is not None
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._done()
            return
        if self._run.streams:
            self._look_at(data)
        if len(data) < _KEPT_BYTES:
            self._held = (self._held + data)[-_KEPT_BYTES:]
        else:
            self._held = data[-_KEPT_BYTES:]
        if self._held.endswith(_END):
            if self._run.streams and b"[DONE]" not in self._held:
                self._run.errors["the stream has no end"] += 1
            self._done()

    def _read_head(self, head: bytes) -> None:
        if head[9:12] != b"200":
            self._run.errors[head[:40].decode("latin-1")] += 1
        at = head.find(b"\r\ncontent-length:")
        self._left = int(head[at + 17 : head.index(b"\r\n", at + 2)]) if at >= 0 else -1
        self._held = b""

    def _look_at(self, data: bytes) -> None:
        """Times of a stream's events."""
        now_ns = time.monotonic_ns()
        if self._first:
            self._first = False
            self._run.firsts_ns.append(now_ns - self._sent_ns)
        at = data.find(b'"@')
        while at >= 0:
            end = data.find(b'"', at + 2)
            if data[at + 2 : end].isdigit():  # a router may cut it in two
                self._run.events_ns.append(max(0, now_ns - int(data[at + 2 : end])))
            at = data.find(b'"@', at + 2)

    def _done(self) -> None:
        self._run.latencies_ns.append(time.monotonic_ns() - self._sent_ns)
        if self._run.is_over:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """At the end, or because the other side has given up."""
        self._run.open.discard(self._transport)
        if self._run.is_over:
            if not self._run.open:
                self._run.all_closed.set()
            return
        self._run.errors[f"connection lost: {error!r}"] += 1
        asyncio.get_running_loop().call_later(_RECONNECT_S, _reopen, self._run)


def _reopen(run: Run) -> None:
    if not run.is_over:
        run.opening.append(asyncio.ensure_future(open_connection(run)))


async def open_connection(run: Run) -> None:
    """Open one; what goes wrong is counted."""
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(lambda: Client(run), "127.0.0.1", run.job.port)
    except OSError as error:
        run.errors[f"no connection: {error!r}"] += 1


async def _until_warm(run: Run) -> None:
    """Until a router that keeps what it knows of prompts has seen each; not for ever."""
    for _ in range(int(_WARM_MOST_S / _WARM_LOOK_S)):
        if run.requests.all_taken or run.job.kind.endswith("paced"):
            return
        await asyncio.sleep(_WARM_LOOK_S)


async def measure(workload: prompts.Workload, job: Job) -> dict[str, Any]:
    """Run one job."""
    run = Run(Requests(workload, job), job)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        await asyncio.gather(*(open_connection(run) for _ in range(job.connections)))
        await asyncio.sleep(job.warm_s)
        await _until_warm(run)
        run.begin()
        await asyncio.sleep(job.seconds)
        measured = run.end()
        try:
            async with asyncio.timeout(5):
                if run.open:
                    await run.all_closed.wait()
        except TimeoutError:
            measured["error"] = measured["error"] or f"{len(run.open)} answers did not end"
            measured["errors"] += len(run.open)
            for transport in run.open:
                transport.abort()
    finally:
        gc.enable()
        gc.unfreeze()
    return measured


async def serve(workload: prompts.Workload) -> None:
    """One job a line, one answer a line."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    async for line in reader:
        job = Job(**json.loads(line))
        print(json.dumps(await (hold_idle_streams if job.kind == "idle" else measure)(workload, job)), flush=True)


def main() -> None:
    """Read the workload, then jobs."""
    workload = prompts.load(Path(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(workload))


if __name__ == "__main__":
    main()
