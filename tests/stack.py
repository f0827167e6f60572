"""The real thing for tests: `headrace up` as a child process, on ports of its own."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from workers.ports import free_ports

HEADRACE = str(Path(sys.executable).with_name("headrace"))
START_TIMEOUT_S = 420.0


@dataclass
class Stack:
    """A running `headrace up`."""

    process: "subprocess.Popen[str]"
    http_url: str
    grpc_target: str
    admin_url: str
    output: list[str] = field(default_factory=list)

    @functools.cached_property
    def model(self) -> str:
        """The model it serves."""
        with urllib.request.urlopen(f"{self.http_url}/v1/models", timeout=30) as response:
            return str(json.load(response)["data"][0]["id"])

    @property
    def redis_url(self) -> str:
        """The Redis it started."""
        match = re.search(r"redis: (unix://\S+)", "\n".join(self.output))
        assert match is not None, self.text()
        return match[1]

    @property
    def log_dir(self) -> Path:
        """Where the engines' logs are."""
        match = re.search(r"logs: (\S+)", "\n".join(self.output))
        assert match is not None, self.text()
        return Path(match[1])

    def text(self) -> str:
        """Everything it printed."""
        return "\n".join(self.output)

    def workers(self, role: str | None = None) -> list[dict[str, Any]]:
        """Rows of /status."""
        with urllib.request.urlopen(f"{self.admin_url}/status", timeout=30) as response:
            rows: list[dict[str, Any]] = json.load(response)["workers"]
        return [row for row in rows if role in (None, row["role"])]

    def wait_for_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for the line that begins with `ready:`."""
        deadline_s = time.monotonic() + timeout_s
        while not any(line.startswith("ready:") for line in self.output):
            assert self.process.poll() is None, f"headrace up ended early:\n{self.text()}"
            assert time.monotonic() < deadline_s, f"not ready after {timeout_s} s:\n{self.text()}"
            time.sleep(0.2)


@contextmanager
def running_stack(config_path: Path, config: dict[str, Any], *arguments: str) -> Iterator[Stack]:
    """Run `headrace up` with `config` (ports are filled in); stop it like Ctrl-C and check that nothing is left."""
    http, grpc, admin = free_ports("127.0.0.1", 3)
    router = {**config.get("router", {}), "http": {"port": http}, "grpc": {"port": grpc}}
    config = {**config, "router": router, "admin": {**config.get("admin", {}), "port": admin}}
    config_path.write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        [HEADRACE, "up", "--config", str(config_path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    stack = Stack(process, f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"http://127.0.0.1:{admin}")
    reader = threading.Thread(target=_read_lines, args=(process, stack.output), daemon=True)
    reader.start()
    try:
        yield stack
    finally:
        left = stop_and_list_survivors(process)
        reader.join(timeout=10)
        assert process.stdout is not None
        process.stdout.close()
    assert not left, f"processes left behind: {left}\n{stack.text()}"
    assert process.returncode == 0, f"headrace up ended with {process.returncode}:\n{stack.text()}"


def stop_and_list_survivors(process: "subprocess.Popen[str]", timeout_s: float = 120.0) -> list[str]:
    """SIGINT, wait for the end; command lines of descendants that outlive it by more than a few seconds."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    _, alive = psutil.wait_procs(family, timeout=5)
    left = [describe(child) for child in alive]
    for child in alive:
        child.kill()
    return left


def describe(process: psutil.Process) -> str:
    """Pid and command line, also of a process that ends meanwhile."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:160]}"
    except psutil.Error:
        return f"{process.pid} (ended)"


def _read_lines(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
