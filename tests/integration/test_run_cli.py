"""`headrace run`: router, workers and control plane as processes of their own, without Ray, each with an address of its
own as in pods. The processes, Redis and the wire are real; the engine that the workers start is the fake one."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.embedded_redis import embedded_redis
from tests.fake_vllm import write_fake_vllm
from tests.stack import HEADRACE
from workers.ports import free_ports

_ROOT = Path(__file__).parents[2]


class Processes:
    """What a test starts, and asks."""

    def __init__(
        self, stack: AsyncExitStack, config: dict[str, Any], folder: Path, session: aiohttp.ClientSession
    ) -> None:
        self.stack = stack
        self.config = config
        self.path = folder / "headrace.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.session = session

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """`headrace run ...`, killed at the end if it still runs."""
        process = await asyncio.create_subprocess_exec(
            HEADRACE, "run", *arguments, "--config", str(self.path),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self.stack.push_async_callback(_end, process)
        return process

    async def start_worker(self, role: str, host: str) -> asyncio.subprocess.Process:
        """A worker whose name is its role, on an address of its own."""
        own = ("--set", f"engine.host={host}", "--set", f"health.host={host}")
        return await self.start("worker", "--role", role, "--id", role, *own)

    def health(self, host: str, path: str) -> str:
        """A URL."""
        return f"http://{host}:{self.config['health']['port']}{path}"

    async def get(self, url: str) -> tuple[int, str]:
        """Status and text; 0 where nobody answers."""
        try:
            async with self.session.get(url) as response:
                return response.status, await response.text()
        except aiohttp.ClientError as error:
            return 0, str(error)

    async def wait_for(self, url: str, status: int, holds: Callable[[str], bool] = lambda _: True) -> str:
        """Ask until it answers so."""
        answer = (0, "")
        for _ in range(600):
            answer = await self.get(url)
            if answer[0] == status and holds(answer[1]):
                return answer[1]
            await asyncio.sleep(0.05)
        raise AssertionError(f"{url}: {answer}")

    @property
    def router_url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.config['router']['http']['port']}"


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


@asynccontextmanager
async def _processes(folder: Path, plan: dict[str, Any]) -> AsyncIterator[Processes]:
    engine_path = write_fake_vllm(folder, plan)
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    http, grpc, admin, engine, health = free_ports("127.0.0.1", 5)
    async with AsyncExitStack() as stack:
        redis_url = await stack.enter_async_context(embedded_redis(folder))
        config = {
            "model": {"path": str(model), "name": "fake"},
            "redis": {"url": redis_url, "lease_s": 3, "heartbeat_s": 0.2},
            "engine": {"http_port": engine, "env": {"PYTHONPATH": engine_path}},
            "router": {"http": {"port": http}, "grpc": {"port": grpc}, "hand_off": "always"},
            "slo": {"enabled": False},
            "admin": {"port": admin},
            "health": {"host": "127.0.0.1", "port": health},
        }
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Processes(stack, config, folder, session)


def test_processes_without_ray_serve_from_addresses_of_their_own(tmp_path: Path) -> None:
    async def run() -> None:
        async with _processes(tmp_path, {}) as running:
            router = await running.start("router")
            await running.wait_for(f"{running.router_url}/readyz", 503)
            prefill = await running.start_worker("prefill", "127.0.0.2")
            decode = await running.start_worker("decode", "127.0.0.3")
            control = await running.start("control-plane")
            for host in ("127.0.0.2", "127.0.0.3"):
                await running.wait_for(running.health(host, "/readyz"), 200)
            await running.wait_for(f"{running.router_url}/readyz", 200)
            await _check_that_they_serve(running)
            for process in (router, prefill, decode, control):
                assert "_raylet" not in Path(f"/proc/{process.pid}/maps").read_text()
                process.send_signal(signal.SIGTERM)
            for process in (router, prefill, decode, control):
                output, _ = await asyncio.wait_for(process.communicate(), timeout=30)
                assert process.returncode == 0, output.decode()
                assert "Traceback" not in output.decode()

    asyncio.run(run())


async def _check_that_they_serve(running: Processes) -> None:
    body = {"model": "fake", "prompt": "hello " * 200, "max_tokens": 4}
    async with running.session.post(f"{running.router_url}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
    # What `helm test` does.
    smoke = await asyncio.create_subprocess_exec(
        sys.executable, str(_ROOT / "helm" / "headrace" / "files" / "ask.py"),
        env={"URL": running.router_url}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await smoke.communicate()
    assert smoke.returncode == 0
    assert b"ready: ['fake']" in said
    # The hand-off went from one address to the other, and blocks of both are known.
    metrics = await running.wait_for(
        f"{running.router_url}/metrics", 200, lambda text: 'headrace_index_sources{state="synced"} 2.0' in text
    )
    assert 'headrace_attempts_total{kind="hand_off"} 2.0' in metrics
    admin = f"http://127.0.0.1:{running.config['admin']['port']}"
    workers = {row["id"]: row for row in json.loads(await running.wait_for(f"{admin}/status", 200))["workers"]}
    port = running.config["engine"]["http_port"]
    assert workers["prefill"]["address"] == f"http://127.0.0.2:{port}"
    assert workers["decode"]["address"] == f"http://127.0.0.3:{port}"
    # Who scrapes a worker asks the worker, not its engine.
    assert "vllm:num_requests_running" in (await running.get(running.health("127.0.0.3", "/metrics")))[1]
    assert (await running.get(running.health("127.0.0.1", "/metrics")))[0] == 200
    assert (await running.get(running.health("127.0.0.1", "/status")))[0] == 404  # admin is elsewhere


def test_sigterm_drains_a_worker(tmp_path: Path) -> None:
    """It says so at once, and what it has begun it ends."""
    plan = {"timing": {"decode_s_per_token": 0.05}}

    async def run() -> None:
        async with _processes(tmp_path, plan) as running:
            await running.start("router")
            worker = await running.start_worker("mixed", "127.0.0.2")
            await running.wait_for(f"{running.router_url}/readyz", 200)
            body = {"model": "fake", "prompt": "hello", "max_tokens": 40, "stream": True}
            async with running.session.post(f"{running.router_url}/v1/completions", json=body) as response:
                first = await response.content.readline()
                worker.send_signal(signal.SIGTERM)
                await running.wait_for(running.health("127.0.0.2", "/readyz"), 503, lambda text: "draining" in text)
                assert (await running.get(running.health("127.0.0.2", "/healthz")))[0] == 200
                rest = await response.content.read()
            assert (first + rest).count(b"data: {") >= 40
            assert rest.rstrip().endswith(b"data: [DONE]")
            assert await asyncio.wait_for(worker.wait(), timeout=30) == 0
            await running.wait_for(f"{running.router_url}/readyz", 503, lambda text: '"workers":{}' in text)

    asyncio.run(run())


_FOLDER = {"redis": {"url": "redis://127.0.0.1:1"}, "model": {"path": "MODEL"}}


@pytest.mark.parametrize(
    ("arguments", "config", "code", "said"),
    [
        (["router"], {}, 2, "redis.url: none is given"),
        (["control-plane"], {}, 2, "redis.url: none is given"),
        (
            ["router"],
            {"redis": {"url": "redis://127.0.0.1:1"}, "model": {"path": "/nowhere"}},
            2,
            "'/nowhere' holds no",
        ),
        (["worker", "--role", "decode"], {"engine": {"host": "0.0.0.0"}}, 2, "engine.host: '0.0.0.0' is not allowed"),
        (["worker", "--role", "decode", "--id", "a/b"], {}, 2, "letters, digits"),
        (["worker", "--role", "decode"], {**_FOLDER, "engine": {"host": "node"}}, 2, "--set engine.host=ADDRESS"),
        (["control-plane"], {"redis": {"url": "redis://127.0.0.1:1"}}, 1, "127.0.0.1:1"),
        (["router"], {**_FOLDER, "identity": {"keys_file": "/nowhere/keys.yaml"}}, 1, "identity.keys_file: /nowhere/"),
    ],
)
def test_what_cannot_run_says_why(
    tmp_path: Path, arguments: list[str], config: dict[str, Any], code: int, said: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "headrace.yaml"
    path.write_text(yaml.safe_dump(config).replace("MODEL", str(tmp_path)))
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", *arguments, "--config", str(path)])
    assert result.exit_code == code, result.output
    assert said in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
