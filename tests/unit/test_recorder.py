"""The recorder's file. Numbers are invariants of `router/replay/recorder.py`."""

import logging
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.types import RequestId
from router.events import FirstToken, RequestArrived, Woken, WorkerChanged
from router.replay.recorder import Recorder, new_recording_path, written_with
from router.replay.recording import End, Recording, Step
from tests.builders import make_request, make_worker

RECIPE = {"seed": 3, "max_attempts": 2}


def read(path: Path) -> Recording:
    """The recording in a file."""
    return Recording(path.read_bytes().splitlines(keepends=True))


def wait_until_over(recorder: Recorder) -> None:
    """Until the recorder has noticed that it cannot go on."""
    while recorder.is_recording:
        time.sleep(0.01)
    recorder.close()


def test_what_is_observed_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet.jsonl"
    recorder = Recorder(path, RECIPE, max_bytes=1 << 20, flush_s=0.01)
    recorder.start()
    steps = [Step(0.0, WorkerChanged(make_worker()), ()), Step(1.0, RequestArrived(make_request()), ())]
    steps += [Step(2.0 + at, FirstToken(RequestId("r1"), at), ()) for at in range(100)]
    for step in steps:
        recorder.observe(step.now_s, step.event, list(step.commands))
    recorder.close()
    assert not recorder.is_recording
    recorder.observe(9.0, Woken(), [])
    recording = read(path)
    assert list(recording) == steps
    assert recording.end == End("stopped", len(steps))
    assert recording.header.recipe == RECIPE
    assert recording.header.written_with == written_with()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("max_bytes", [2000, 3000, 5001])
def test_the_file_ends_at_its_size_and_says_so(tmp_path: Path, max_bytes: int) -> None:
    """Invariants 2 and 4."""
    path = tmp_path / "small.jsonl"
    recorder = Recorder(path, RECIPE, max_bytes=max_bytes, flush_s=0.01)
    recorder.start()
    for at in range(200):
        recorder.observe(float(at), RequestArrived(make_request(f"r{at}")), [])
    wait_until_over(recorder)
    assert path.stat().st_size <= max_bytes
    recording = read(path)
    found = list(recording)
    assert found == [Step(float(at), RequestArrived(make_request(f"r{at}")), ()) for at in range(len(found))]
    assert 0 < len(found) < 200
    assert recording.end == End("truncated", len(found))


def test_a_disk_that_is_too_slow_ends_the_recording_without_a_gap(tmp_path: Path) -> None:
    """Invariants 1 and 2: what came before the overflow is there, in order."""
    path = tmp_path / "slow.jsonl"
    recorder = Recorder(path, RECIPE, max_bytes=1 << 20, flush_s=0.01, max_pending_steps=10)
    for at in range(50):  # the thread has not begun: as slow as can be
        recorder.observe(float(at), Woken(), [])
    assert not recorder.is_recording
    recorder.start()
    recorder.close()
    recording = read(path)
    assert [step.now_s for step in recording] == [float(at) for at in range(10)]
    assert recording.end == End("overflow", 10)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Invariant 3."""
    path = tmp_path / "precious.jsonl"
    path.write_text("precious")
    recorder = Recorder(path, RECIPE, max_bytes=1 << 20)
    with caplog.at_level(logging.WARNING, logger="router.replay.recorder"):
        recorder.start()
        wait_until_over(recorder)
    recorder.observe(1.0, Woken(), [])
    assert path.read_text() == "precious"
    (line,) = caplog.messages
    assert str(path) in line


def test_what_cannot_be_written_ends_the_recording_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Invariant 3: once, in the log."""
    recorder = Recorder(tmp_path / "odd.jsonl", RECIPE, max_bytes=1 << 20, flush_s=0.01)
    with caplog.at_level(logging.WARNING, logger="router.replay.recorder"):
        recorder.start()
        recorder.observe(1.0, FirstToken(RequestId("\ud800"), 1), [])
        wait_until_over(recorder)
    recorder.observe(2.0, Woken(), [])
    assert len(caplog.messages) == 1
    assert list(read(tmp_path / "odd.jsonl")) == []


# In a process of its own: the limit is on all that a process writes, and tests are reported to a file.
_ON_A_FULL_DISK = """
import logging, resource, sys, time
from pathlib import Path
from kvstore.types import RequestId
from router.events import FirstToken
from router.replay.recorder import Recorder

logging.basicConfig(stream=sys.stdout, format="LOGGED %(message)s")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
recorder = Recorder(Path(sys.argv[1]), {"seed": 7}, max_bytes=1 << 20, flush_s=0.01)
recorder.start()
for at in range(200):
    recorder.observe(float(at), FirstToken(RequestId("r1"), at), [])
while recorder.is_recording:
    time.sleep(0.01)
recorder.close()
"""


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    """Invariants 2 and 3: what fitted is there, and can be read."""
    path = tmp_path / "full.jsonl"
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("LOGGED") == 1
    recording = read(path)
    found = list(recording)
    assert found == [Step(float(at), FirstToken(RequestId("r1"), at), ()) for at in range(len(found))]
    assert recording.end == End("cut", len(found))


def test_closing_what_never_began_is_fine(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "never.jsonl", RECIPE, max_bytes=1 << 20)
    recorder.close()
    assert not (tmp_path / "never.jsonl").exists()


def test_each_process_has_a_path_of_its_own(tmp_path: Path) -> None:
    path = new_recording_path(tmp_path)
    assert path.parent == tmp_path
    assert path.suffix == ".jsonl"
