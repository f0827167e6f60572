"""What processes cost: CPU time in nanoseconds and resident memory."""

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

CONTENDER_ENV = "HEADRACE_BENCH_CONTENDER"  # in the environment of every process that counts as the contender's
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROCESS_CPU = 2  # the kernel's CPUCLOCK_SCHED: a process clock of nanoseconds, ended threads included


def processes_of(contender: str) -> list[int]:
    """All processes that were started for the contender, whoever their parent is now."""
    mark = f"{CONTENDER_ENV}={contender}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:  # it has ended
                continue
            if mark in environment.split(b"\0"):
                found.append(int(folder.name))
    return found


def cpu_ns(pids: Iterable[int]) -> dict[int, int]:
    """CPU time that each of these has used, user and system. Those that have ended are left out."""
    used = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            used[pid] = time.clock_gettime_ns(~pid << 3 | _PROCESS_CPU)
    return used


def cpu_since_ns(before: Mapping[int, int]) -> int:
    """What the processes have used since `before`, all together, without those that have ended meanwhile."""
    return sum(now_ns - before[pid] for pid, now_ns in cpu_ns(before).items())


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory; pages shared between them count once for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            continue
    return total


def machine_busy_s() -> float:
    """CPU seconds that the whole machine has used since its start, by /proc/stat: in hundredths."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split()[1:11]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")
