"""The engine under contract: the fake as a process of its own, or a real vLLM (marker `cluster`)."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from workers.ports import free_ports

_ROOT = Path(__file__).parents[2]
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """Where the engine is. The fixture `real_engine` hands out an object with the same attributes.

    `kv_events_endpoint` is the engine's own setting; None where somebody else already listens there.
    """

    address: str
    model: str
    kv_events_endpoint: str | None
    kv_replay_endpoint: str | None
    is_real: bool


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.cluster)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One engine for a module's tests."""
    if request.param == "real":
        yield request.getfixturevalue("real_engine")
    else:
        yield from _fake_engine(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def http(engine: EngineUnderTest) -> Iterator[httpx.Client]:
    """A client of the engine; a real one on a laptop makes about ten tokens a second."""
    with httpx.Client(base_url=engine.address, timeout=60.0) as client:
        yield client


def _fake_engine(folder: Path) -> Iterator[EngineUnderTest]:
    plan = folder / "plan.json"
    plan.write_text('{"timing": {"prefill_s_per_token": 0.0001, "decode_s_per_token": 0.03}}')
    port, events, replay = free_ports(_HOST, 3)
    engine = EngineUnderTest(
        f"http://{_HOST}:{port}", "fake-model", f"tcp://{_HOST}:{events}", f"tcp://{_HOST}:{replay}", is_real=False
    )
    command = [
        sys.executable, "-m", "workers.fake", "--host", _HOST, "--port", str(port), "--model", engine.model,
        "--plan", str(plan), "--kv-events-endpoint", str(engine.kv_events_endpoint),
        "--kv-replay-endpoint", str(engine.kv_replay_endpoint), "--shutdown-timeout", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=_ROOT)
    try:
        _wait_until_healthy(engine.address, process)
        yield engine
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


def _wait_until_healthy(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + 30
    while True:
        assert process.poll() is None, "the fake engine did not start"
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline_s, "the fake engine is not healthy"
        time.sleep(0.05)
