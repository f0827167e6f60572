"""A supervised child process with a prefixed log. Its whole tree ends with it, or with us (child_guard.py)."""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workers import child_guard

_GUARD = str(Path(child_guard.__file__).resolve())


class ChildProcess:
    """One running command. Create with `start`; always end with `stop` or `kill`."""

    def __init__(self, guard: asyncio.subprocess.Process, log: Callable[[str], None]) -> None:
        self._guard = guard
        self._log = log
        self._tail: deque[str] = deque(maxlen=40)
        self._pump = asyncio.create_task(self._pump_lines())

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], *, grace_s: float, log: Callable[[str], None]
    ) -> "ChildProcess":
        """Start `argv`; each line it prints goes to `log`."""
        guard = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", _GUARD, f"{grace_s:g}", *argv,
            env=dict(env),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
            start_new_session=True,  # Ctrl-C at the terminal is for us to pass on
        )  # fmt: skip
        return cls(guard, log)

    @property
    def pid(self) -> int:
        """Process id of the guard; the command is its child."""
        return self._guard.pid

    @property
    def returncode(self) -> int | None:
        """Exit status, None while it runs."""
        return self._guard.returncode

    def tail(self) -> str:
        """The last lines it printed."""
        return "\n".join(self._tail)

    async def wait(self) -> int:
        """Wait for the end; return the exit status."""
        code = await self._guard.wait()
        await asyncio.shield(self._pump)  # a waiter that is cancelled must not take the pump with it
        return code

    async def stop(self) -> int:
        """SIGTERM, then SIGKILL to the whole tree after the grace period. Idempotent."""
        await self._tell(child_guard.STOP)
        return await self.wait()

    async def kill(self) -> int:
        """SIGKILL to the whole tree now, also while `stop` waits. Idempotent."""
        await self._tell(child_guard.KILL_NOW)
        return await self.wait()

    async def _tell(self, word: bytes) -> None:
        assert self._guard.stdin is not None
        if not self._guard.stdin.is_closing():
            with contextlib.suppress(OSError):  # it has ended
                self._guard.stdin.write(word)
                await self._guard.stdin.drain()

    async def _pump_lines(self) -> None:
        assert self._guard.stdout is not None
        while True:
            try:
                raw = await self._guard.stdout.readline()
            except ValueError:  # a line over the limit: its beginning is lost, the stream goes on
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            self._tail.append(line)
            self._log(line)


class PrefixedLog:
    """A log whose every line names its source: a file, or standard error. A full disk costs lines, never the process
    that wrote them."""

    def __init__(self, path: Path | None, prefix: str, form: Callable[[str], str] | None = None) -> None:
        """`form` makes whole lines in another way than behind the prefix. Without a path: standard error."""
        if path is None:
            self._file = os.fdopen(os.dup(sys.stderr.fileno()), "a", buffering=1, errors="replace")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", buffering=1, errors="replace")
        self._form = form or f"[{prefix}] {{}}".format

    def __call__(self, line: str) -> None:
        """Write one line."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            self._file.write(f"{self._form(line)}\n")

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()


def inherited_env() -> dict[str, str]:
    """The parent environment that `engine_command` filters."""
    return dict(os.environ)
