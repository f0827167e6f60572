"""Real processes: what a child's end is, and that nothing survives it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from workers.child_process import ChildProcess, PrefixedLog

ENV = {"PATH": os.environ["PATH"]}
# Prints are flushed as whole lines: several processes share one pipe.
PYTHON = [sys.executable, "-I", "-S", "-c"]

# Prints "ready" once SIGTERM is ignored, so that a test cannot be faster than the child.
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
# A daemon as in the textbook: two forks and a session of its own. Ignores SIGTERM; prints its pid.
DAEMON = """
import os, signal, sys, time
is_up, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("daemon", os.getpid(), flush=True)
        os.write(tell, b"x")
        time.sleep(60)
    os._exit(0)
os.wait()
os.read(is_up, 1)
print("launched", flush=True)
"""


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


class Lines(list[str]):
    """The child's log."""

    async def until(self, word: str, count: int = 1) -> list[str]:
        """Lines that begin with a word, as soon as there are enough of them."""
        while len(found := [line for line in self if line.startswith(word)]) < count:
            await asyncio.sleep(0.01)
        return found


@contextlib.asynccontextmanager
async def child(*argv: str, grace_s: float = 10.0) -> AsyncIterator[tuple[ChildProcess, Lines]]:
    lines = Lines()
    process = await ChildProcess.start(argv, ENV, grace_s=grace_s, log=lines.append)
    try:
        yield process, lines
    finally:
        await process.kill()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until_dead(processes: list[int]) -> None:
    deadline_s = time.monotonic() + 10.0
    while any(is_alive(pid) for pid in processes):
        assert time.monotonic() < deadline_s, "still alive after 10 s"
        time.sleep(0.02)


def pids(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines]


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 128 + 9), ("kill -SEGV $$", 128 + 11), ("kill -TERM $$", 128 + 15)],
)
def test_the_exit_status_passes_through(script: str, code: int) -> None:
    async def test() -> None:
        async with child("sh", "-c", script) as (process, _):
            assert await process.wait() == code
            assert process.returncode == code
            assert await process.wait() == await process.stop() == await process.kill() == code

    run(test)


def test_a_command_that_does_not_exist_is_named() -> None:
    async def test() -> None:
        async with child("/no/such/program", "x") as (process, _):
            assert await process.wait() == 127
            assert process.tail() == "cannot run /no/such/program: No such file or directory"

    run(test)


def test_lines_of_both_streams_arrive_in_order_and_complete() -> None:
    async def test() -> None:
        script = "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf 'no newline'"
        async with child("sh", "-c", script) as (process, lines):
            assert await process.wait() == 0
            assert lines == [f"{name} {i}" for i in range(200) for name in ("out", "err")] + ["no newline"]
            assert process.tail().splitlines() == lines[-40:]

    run(test)


def test_lines_arrive_while_it_runs() -> None:
    async def test() -> None:
        async with child(*PYTHON, "import time; print('first', flush=True); time.sleep(60)") as (process, lines):
            await lines.until("first")
            assert process.returncode is None

    run(test)


def test_bytes_that_are_no_text_are_replaced() -> None:
    async def test() -> None:
        async with child("printf", r"a\377b\n\ntrailing  \n") as (process, lines):
            await process.wait()
            assert lines == ["a�b", "", "trailing"]

    run(test)


def test_a_line_longer_than_the_buffer_does_not_stop_the_log() -> None:
    async def test() -> None:
        script = "print('x' * 100_000); print('y' * 5_000_000); print('after')"
        async with child(*PYTHON, script) as (process, lines):
            assert await process.wait() == 0
            assert lines[0] == "x" * 100_000
            assert lines[-1] == "after"
            assert all(set(line) <= {"y"} for line in lines[1:-1])

    run(test)


def test_the_command_has_only_the_given_environment_and_no_standard_input() -> None:
    async def test() -> None:
        script = "import os, sys; print(sorted(k for k in os.environ if k != 'LC_CTYPE'), repr(sys.stdin.read()))"
        async with child(*PYTHON, script) as (process, lines):
            assert await process.wait() == 0
            assert lines == ["['PATH'] ''"]

    run(test)


def test_stop_lets_the_command_end_by_itself() -> None:
    async def test() -> None:
        script = """
import signal, sys, time
def stop(*_):
    print("bye", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
        async with child(*PYTHON, script) as (process, lines):
            await lines.until("ready")
            assert await process.stop() == 5, "not killed"
            assert lines[-1] == "bye"

    run(test)


def test_stop_kills_after_the_grace_period() -> None:
    async def test() -> None:
        async with child(*PYTHON, STUBBORN, grace_s=0.7) as (process, lines):
            await lines.until("ready")
            started_at_s = time.monotonic()
            assert await process.stop() == 128 + signal.SIGKILL
            assert 0.7 <= time.monotonic() - started_at_s < 5.0

    run(test)


def test_a_second_stop_does_not_prolong_the_grace_period() -> None:
    async def test() -> None:
        async with child(*PYTHON, STUBBORN, grace_s=3.0) as (process, lines):
            await lines.until("ready")
            started_at_s = time.monotonic()
            first = asyncio.create_task(process.stop())
            await asyncio.sleep(2.5)
            assert await process.stop() == await first == 128 + signal.SIGKILL
            assert 3.0 <= time.monotonic() - started_at_s < 5.5

    run(test)


def test_kill_is_immediate() -> None:
    async def test() -> None:
        async with child(*PYTHON, STUBBORN, grace_s=20.0) as (process, lines):
            await lines.until("ready")
            started_at_s = time.monotonic()
            assert await process.kill() == 128 + signal.SIGKILL
            assert time.monotonic() - started_at_s < 5.0

    run(test)


def test_kill_is_immediate_also_while_stop_waits() -> None:
    async def test() -> None:
        async with child(*PYTHON, STUBBORN, grace_s=20.0) as (process, lines):
            await lines.until("ready")
            started_at_s = time.monotonic()
            stopping = asyncio.create_task(process.stop())
            await asyncio.sleep(0.2)
            assert not stopping.done()
            assert await process.kill() == await stopping == 128 + signal.SIGKILL
            assert time.monotonic() - started_at_s < 5.0

    run(test)


def test_a_signal_to_the_guard_is_passed_on() -> None:
    async def test() -> None:
        script = "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
        async with child("sh", "-c", script) as (process, lines):
            await lines.until("ready")
            os.kill(process.pid, signal.SIGTERM)
            assert await process.wait() == 7
            assert lines[-1] == "got it"

    run(test)


def test_a_guard_that_waits_for_the_grace_period_burns_no_cpu() -> None:
    def cpu_ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    async def test() -> None:
        async with child(*PYTHON, STUBBORN, grace_s=1.0) as (process, lines):
            await lines.until("ready")
            guard = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
            assert process._guard.stdin is not None
            process._guard.stdin.close()  # as by the owner's death
            await asyncio.sleep(0.1)
            before = cpu_ticks(guard)
            await asyncio.sleep(0.7)
            assert cpu_ticks(guard) - before < 0.2 * os.sysconf("SC_CLK_TCK")
            assert await process.wait() == 128 + signal.SIGKILL

    run(test)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_grandchildren_that_ignore_sigterm_die_too(end: str) -> None:
    async def test() -> None:
        script = f"""
import os, subprocess, sys, time
for _ in range(3):
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", {STUBBORN!r}])
    print("grandchild", child.pid, flush=True)
time.sleep(60)
"""
        async with child(*PYTHON, script, grace_s=1.0) as (process, lines):
            await lines.until("ready", 3)
            grandchildren = pids(await lines.until("grandchild", 3))
            assert all(is_alive(pid) for pid in grandchildren)
            await (process.stop() if end == "stop" else process.kill())
            assert not [pid for pid in grandchildren if is_alive(pid)]

    run(test)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_daemon_that_left_the_session_and_its_parents_dies_too(end: str) -> None:
    async def test() -> None:
        async with child(*PYTHON, DAEMON + "time.sleep(60)", grace_s=1.0) as (process, lines):
            await lines.until("launched")
            (daemon,) = pids(await lines.until("daemon"))
            assert is_alive(daemon)
            assert os.getsid(daemon) != os.getsid(process.pid)
            await (process.stop() if end == "stop" else process.kill())
            assert not is_alive(daemon)

    run(test)


def test_a_daemon_dies_also_when_the_command_ends_by_itself() -> None:
    async def test() -> None:
        async with child(*PYTHON, DAEMON, grace_s=20.0) as (process, lines):
            started_at_s = time.monotonic()
            assert await process.wait() == 0  # the daemon holds the pipe open: this would hang if it lived
            assert time.monotonic() - started_at_s < 5.0
            (daemon,) = pids(await lines.until("daemon"))
            assert not is_alive(daemon)

    run(test)


OWNER = """
import asyncio, sys
from workers.child_process import ChildProcess
async def main():
    command = [sys.executable, "-I", "-S", "-c", sys.argv[1]]
    child = await ChildProcess.start(command, {}, grace_s=0.5, log=lambda line: print(line, flush=True))
    print("guard", child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""


def test_everything_dies_with_an_owner_that_is_killed() -> None:
    """An owner that has no chance to clean up: SIGKILL, or the kernel's out-of-memory killer."""
    command = DAEMON + "print('command', os.getpid(), flush=True); exec(" + repr(STUBBORN) + ")"
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, command],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**ENV, "PYTHONPATH": "."},
    ) as owner:
        assert owner.stdout is not None
        found: dict[str, int] = {}
        while not {"guard", "daemon", "command", "ready"} <= found.keys():
            word, _, pid = owner.stdout.readline().strip().partition(" ")
            found[word] = int(pid or 0)
        processes = [found[word] for word in ("guard", "daemon", "command")]
        assert all(is_alive(pid) for pid in processes)
        owner.kill()
        owner.wait()
        until_dead(processes)


def test_everything_dies_when_the_guard_is_killed() -> None:
    """Ray kills the children of a worker process that it ends: the first process of the guard is one of them."""

    async def test() -> None:
        command = DAEMON + f"print('command', os.getpid(), flush=True); exec({STUBBORN!r})"
        async with child(*PYTHON, command, grace_s=0.5) as (process, lines):
            await lines.until("ready")
            found = pids(await lines.until("command")) + pids(await lines.until("daemon"))
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            until_dead(found)

    run(test)


def test_a_waiter_that_is_cancelled_does_not_disturb_the_others() -> None:
    async def test() -> None:
        # The guard ends with the command; a last line is still in the pipe when the waiter is cancelled.
        async with child("sh", "-c", "echo one; sleep 0.2; echo two") as (process, lines):
            await lines.until("one")
            for _ in range(40):
                waiter = asyncio.create_task(process.wait())
                await asyncio.sleep(0.01)
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
            assert await process.wait() == 0
            assert lines == ["one", "two"]

    run(test)


def test_a_waiter_cancelled_between_the_end_and_the_last_line_leaves_the_log_whole() -> None:
    async def test() -> None:
        async with child("true") as (process, _):
            hold = asyncio.Event()
            process._pump.cancel()
            process._pump = asyncio.create_task(hold.wait())  # type: ignore[arg-type]
            waiter = asyncio.create_task(process.wait())
            while process.returncode is None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            hold.set()
            assert await process.wait() == 0

    run(test)


def test_a_log_file_names_the_source_of_each_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "w.log"
    for lines in (["one", "two \udcff"], ["three"]):
        log = PrefixedLog(path, "w")
        for line in lines:
            log(line)
        assert path.read_text().endswith(f"[w] {lines[-1]}\n".replace("\udcff", "?"))  # written, not buffered
        log.close()
    assert path.read_text() == "[w] one\n[w] two ?\n[w] three\n"


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    async def test() -> None:
        log = PrefixedLog(Path("/dev/full"), "w")
        process = await ChildProcess.start(["sh", "-c", "echo one; echo two; exit 4"], ENV, grace_s=1.0, log=log)
        assert await process.wait() == 4
        assert process.tail() == "one\ntwo"
        log.close()

    run(test)


def test_lines_after_the_log_is_closed_are_lost_and_nothing_else(tmp_path: Path) -> None:
    log = PrefixedLog(tmp_path / "w.log", "w")
    log("one")
    log.close()
    log("two")
    log.close()
    assert (tmp_path / "w.log").read_text() == "[w] one\n"
