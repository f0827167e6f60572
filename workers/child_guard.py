"""Run a command so that nothing of it survives its owner: a small process between a supervisor and its child.

    python -I child_guard.py GRACE_S COMMAND [ARG ...]

The owner holds the guard's standard input. A byte "t" on it, or its end because the owner died in whatever way,
means: the command gets SIGTERM, and after GRACE_S every process it ever started gets SIGKILL. A byte "k", also during
the grace period, means: SIGKILL now. The guard is a child subreaper, so grandchildren whose parent died are still
found. It exits with the command's exit status (128 + signal number where a signal ended it, 127 where it could not
be started).

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
    """Start the command, wait for its end or the owner's, leave nobody behind."""
    grace_s, command = float(argv[0]), argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
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


def _kill_descendants() -> None:
    """SIGKILL until nobody is left: a dying parent may fork between two looks."""
    for _ in range(100):
        alive = [pid for pid in _descendants(os.getpid()) if not _is_zombie(pid)]
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


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


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
