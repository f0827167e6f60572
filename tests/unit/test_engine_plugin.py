"""What the plugin changes in an engine's processes, seen at the installed vLLM's own parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.engine_plugin import PAUSE_ENV

pytest.importorskip("vllm")

# A message through one of vLLM's queues, whose reader has begun to wait before the message is there: first as vLLM has
# it, then with the plugin. Prints what was read and how often somebody called sched_yield, for both.
QUEUE = """
import json, os, threading, time
from vllm.distributed.device_communicators import shm_broadcast
from workers.engine_plugin import register

yields, looks = 0, 0
native_yield, native_wait = os.sched_yield, shm_broadcast.SpinCondition.wait

def count_yield():
    global yields
    yields += 1
    native_yield()

def count_wait(self, timeout_ms=None):
    global looks
    looks += 1
    native_wait(self, timeout_ms)

os.sched_yield, shm_broadcast.SpinCondition.wait = count_yield, count_wait

def one_message():
    global yields, looks
    yields = looks = 0
    writer = shm_broadcast.MessageQueue(1, 1)
    reader = shm_broadcast.MessageQueue.create_from_handle(writer.export_handle(), 0)

    def send_when_the_reader_waits():
        while looks < 3:
            time.sleep(0.001)
        writer.enqueue("a step")

    sender = threading.Thread(target=send_when_the_reader_waits)
    sender.start()
    message = reader.dequeue(timeout=60)
    sender.join()
    return [message, yields]

before = one_message()
register()
register()
print(json.dumps([before, one_message()]))
"""


def test_who_waits_at_a_queue_sleeps_and_does_not_yield() -> None:
    """In a process of its own, as an engine's: what the plugin changes stays changed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", QUEUE],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "VLLM_NO_USAGE_STATS": "1", PAUSE_ENV: "500"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (message, yields), paused = json.loads(done.stdout.splitlines()[-1])
    assert message == "a step"
    assert yields > 0, "vLLM waits in another way: is the pause still needed?"
    assert paused == ["a step", 0]
