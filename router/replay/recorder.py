"""Appends what the core is told, and what it answers, to a file. The event loop never waits for it.

The loop only puts references on a bounded queue: events and commands are immutable. A thread turns them into lines and
writes them every `flush_s`, in small lots with pauses, so that it never keeps the interpreter from the loop for long.

Invariants
 1. `observe` neither blocks nor raises.
 2. The file is a prefix of the core's history: no step is left out between two that are there.
 3. Whatever goes wrong (disk full, folder gone, too slow) ends the recording, not the router, and is logged once.
 4. The file is never larger than `max_bytes`, and only its owner may read it.
"""

import logging
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from router.events import Command, Event
from router.replay.recording import End, EndReason, Header, RecordingWriter

_log = logging.getLogger(__name__)

_LOT_S = 0.0002  # the event loop may have to wait so long for the interpreter, instead of 5 ms (sys.getswitchinterval)
_PAUSE_S = 0.0002  # between lots
_END_LINE_BYTES = 128  # kept free for the last line
_JOIN_S = 5.0


class Recorder:
    """One recording of one core, from its first event on: a core that has a past cannot be built again."""

    def __init__(
        self,
        path: Path,
        recipe: Mapping[str, Any],
        *,
        max_bytes: int,
        flush_s: float = 0.25,
        max_pending_steps: int = 100_000,
    ) -> None:
        """`recipe`: what builds the same core again, as JSON values (`router/build.py`); it holds no secrets."""
        self._path = path
        self._recipe = recipe
        self._max_bytes = max_bytes
        self._flush_s = flush_s
        self._max_pending_steps = max_pending_steps
        self._pending: deque[tuple[float, Event, Sequence[Command]]] = deque()
        self._writer = RecordingWriter()
        self._closing = threading.Event()
        self._ended_by: EndReason | None = None
        self._num_bytes = 0
        self._num_steps = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    @property
    def is_recording(self) -> bool:
        """False after `close`, and when something has ended the recording early."""
        return self._ended_by is None

    def start(self) -> None:
        """Begin. The file is made by the thread as well: a disk that hangs holds up nobody."""
        self._thread.start()

    def observe(self, now_s: float, event: Event, commands: Sequence[Command]) -> None:
        """Keep one step for the writer."""
        if self._ended_by is not None:
            return
        if len(self._pending) >= self._max_pending_steps:
            self._ended_by = "overflow"
        else:
            self._pending.append((now_s, event, tuple(commands)))

    def close(self) -> None:
        """Write what is left and end the file. Waits for the disk, some seconds at most: not for an event loop."""
        self._ended_by = self._ended_by or "stopped"
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            ended_by = self._record()
            if ended_by != "stopped":
                _log.warning("recording to %s has ended after %d steps: %s", self._path, self._num_steps, ended_by)
        except Exception as error:  # whatever it is, serving goes on (invariant 3)
            _log.warning("recording to %s has ended after %d steps: %s", self._path, self._num_steps, error)
        finally:
            self._ended_by = self._ended_by or "cut"
            self._pending.clear()

    def _record(self) -> EndReason:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            self._write(file, self._writer.header(self._header()))
            while True:
                ended_by = self._ended_by  # read before the queue is: what came until then is in it
                if not self._drain(file):
                    ended_by = self._ended_by = "truncated"
                if ended_by is not None:
                    self._write(file, self._writer.end(End(ended_by, self._num_steps)))
                    return ended_by
                self._closing.wait(self._flush_s)

    def _drain(self, file: BinaryIO) -> bool:
        """Write what is pending; False when the file is full."""
        while self._pending:
            lot: list[bytes] = []
            room_bytes = self._max_bytes - self._num_bytes - _END_LINE_BYTES
            until_s = time.monotonic() + _LOT_S
            while self._pending and time.monotonic() < until_s:
                lines = self._writer.step(*self._pending.popleft())
                room_bytes -= len(lines)
                if room_bytes < 0:
                    self._write(file, b"".join(lot))
                    return False
                lot.append(lines)
                self._num_steps += 1
            self._write(file, b"".join(lot))
            time.sleep(_PAUSE_S)
        return True

    def _write(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)
        file.flush()
        self._num_bytes += len(data)

    def _header(self) -> Header:
        return Header(
            recipe=self._recipe,
            started_at_s=time.time(),
            now_s=time.monotonic(),
            written_with=written_with(),
        )


def written_with() -> dict[str, str]:
    """What here, beside our own code, can change the last bit of a float."""
    return {
        "headrace": version("headrace"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def new_recording_path(folder: Path) -> Path:
    """A name of its own for a recording of this process."""
    return folder / f"router-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.jsonl"
