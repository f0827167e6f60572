"""Run a command so that nothing of it survives its owner: a small process between a supervisor and its child.

    python -I child_guard.py GRACE_S COMMAND [ARG ...]

The owner holds the guard's standard input. A byte "t" on it, or its end because the owner died in whatever way,
means: the command gets SIGTERM, and after GRACE_S every process it ever started gets SIGKILL. A byte "k", also during
the grace period, means: SIGKILL now. The guard is a child subreaper, so grandchildren whose parent died are still
found. It exits with the command's exit status (128 + signal number where a signal ended it, 127 where it could not
be started).

It is two processes: the one that was started only waits, and the guard proper is its child, in a session of its own.
Ray, when it ends a worker process in a hurry, kills that process's children; the guard, a grandchild, is left to do
its work, and takes the death of the first process as its owner's.

Standard library only: it has to start in milliseconds and stay small. Linux only.
"""

import contextlib
import ctypes
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
STOP = b"t"
KILL_NOW = b"k"


def main(argv: list[str]) -> int:
    """Run the guard proper and pass on its exit status; if it was killed, finish its work."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard_pid = os.fork()
    if guard_pid == 0:
        os.setsid()
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        code = _guard(float(argv[0]), argv[1:], libc)
        sys.stderr.flush()
        os._exit(code)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: os.kill(guard_pid, signum))
    _, status = os.waitpid(guard_pid, 0)
    _bury_everybody()
    return _exit_status(os.waitstatus_to_exitcode(status))


def _guard(grace_s: float, command: list[str], libc: ctypes.CDLL) -> int:
    """Start the command, wait for its end or the owner's, leave nobody behind."""
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    _wait(child, wake_r, grace_s)
    _kill_descendants()
    code = child.wait()
    _bury_everybody()
    return _exit_status(code)


def _exit_status(code: int) -> int:
    """As a shell says it: 128 + signal number."""
    return 128 - code if code < 0 else code


def _wait(child: "subprocess.Popen[bytes]", wake_r: int, grace_s: float) -> None:
    """Return when the child has ended or has to be killed."""
    kill_at_s = math.inf
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake_r, selectors.EVENT_READ)
        while child.poll() is None and (left_s := kill_at_s - time.monotonic()) > 0:
            for key, _ in selector.select(None if left_s == math.inf else left_s):
                data = os.read(key.fd, 64)
                if key.fd == wake_r and not {signal.SIGTERM, signal.SIGINT} & set(data):
                    continue  # SIGCHLD: the loop looks
                if key.fd == 0 and KILL_NOW in data:
                    return
                if not data:
                    selector.unregister(0)
                if kill_at_s == math.inf:
                    child.terminate()
                    kill_at_s = time.monotonic() + grace_s


def _bury_everybody() -> None:
    """Return when nobody is left: whoever loses its parent becomes our child, so no child means no descendant."""
    for _ in range(250):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        _kill_descendants()  # again: a dying parent may have forked since we looked
        time.sleep(0.01)


def _kill_descendants() -> None:
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
