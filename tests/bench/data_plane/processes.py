"""Processes of the benchmark: started with a mark in their environment, found and ended by it, whoever adopted them."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.bench.data_plane.meter import CONTENDER_ENV, processes_of

_GRACE_S = 15.0
_READY_S = 120.0


class DidNotStartError(Exception):
    """A process ended, or said nothing, before it was ready; the message has the end of its log."""


def mark(name: str) -> str:
    """The mark of a contender's processes in this run of the benchmark."""
    return f"{re.sub('[^a-z0-9]+', '-', name.lower())}@{os.getpid()}"


class Processes:
    """What was started for one contender. `folder` gets one log a process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.mark = mark(name)
        self._folder = folder
        self._started: list[asyncio.subprocess.Process] = []
        self._counting: list[asyncio.subprocess.Process] = []
        self._marks = {self.mark}

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, counts: bool = True) -> None:
        """Start a command; with `counts` it and its children are the contender itself."""
        await self._start(argv, env, counts, speaks=False)

    async def start_speaking(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, counts: bool = True
    ) -> str:
        """Start a command that prints a line when it is ready; the line."""
        process = await self._start(argv, env, counts, speaks=True)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_S):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise DidNotStartError(f"{' '.join(argv[:4])} ...: {self._end_of_log(len(self._started) - 1)}")
        return line.decode().strip()

    async def _start(
        self, argv: Sequence[str], env: Mapping[str, str] | None, counts: bool, *, speaks: bool
    ) -> asyncio.subprocess.Process:
        its_mark = self.mark if counts else f"{self.mark}-beside"
        self._marks.add(its_mark)
        with self._log(len(self._started)).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if speaks else log,
                stderr=log,
                env={**os.environ, **(env or {}), CONTENDER_ENV: its_mark},
                start_new_session=True,
            )
        self._started.append(process)
        if counts:
            self._counting.append(process)
        return process

    def pids(self) -> list[int]:
        """The contender's own processes: marked ones, and the children of those that have overwritten their mark."""
        found = set(processes_of(self.mark))
        for process in self._counting:
            with contextlib.suppress(psutil.Error):
                found |= {process.pid, *(each.pid for each in psutil.Process(process.pid).children(recursive=True))}
        return sorted(found)

    def beside(self) -> list[int]:
        """What was started for it and does not count."""
        return processes_of(f"{self.mark}-beside")

    def check(self) -> None:
        """Raise DidNotStartError if one has ended."""
        for number, process in enumerate(self._started):
            if process.returncode is not None:
                raise DidNotStartError(f"ended with status {process.returncode}: {self._end_of_log(number)}")

    def _log(self, number: int) -> Path:
        return self._folder / f"{self.mark}-{number}.log"

    def _end_of_log(self, number: int) -> str:
        return self._log(number).read_text(errors="replace")[-800:]

    async def stop(self) -> None:
        """End them all, the latest first."""
        for process in reversed(self._started):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(_GRACE_S):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()
        for each in self._marks:
            for pid in processes_of(each):  # daemons of theirs
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
