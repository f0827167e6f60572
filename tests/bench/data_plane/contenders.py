"""Who is measured, and how each is started. One that is not installed says so and is skipped by name.

All run with their defaults, but for the policy, and for logs of single requests, which are off. Headrace's router is
the production composition without Ray around it; its Redis counts as part of it. Dynamo's frontend drives its own
mocker: there is no `direct` to compare it with, and the mocker does not count.
"""

import asyncio
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from controlplane.app import demo_model_path
from controlplane.config import Config
from tests.bench.data_plane.cases import CASES, HAND_OFF_CASES, MODELS, Case
from tests.bench.data_plane.fleet import COUNTED_ENV
from tests.bench.data_plane.processes import DidNotStartError, Processes
from workers.ports import free_ports

_HERE = "tests.bench.data_plane"
_START_S = 90.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders are given."""

    folder: Path  # for logs
    workload: Path
    engines: tuple[int, int]  # ports of the mock engines; in hand-off the first prefills, the second decodes
    peers: Path  # a virtual environment of their own


@dataclass(frozen=True, slots=True)
class Contender:
    """`start` returns the port to send requests to. `missing` says why it cannot run here."""

    name: str
    start: Callable[[Setting, Processes], Awaitable[int]]
    missing: Callable[[Setting], str | None] = lambda _: None
    cases: tuple[Case, ...] = CASES
    own_engines: bool = False
    drops_user: bool = False  # the field `user` of requests

    def model(self, case: Case) -> str:
        """The model to ask for."""
        return MODELS[1] if self.own_engines and case.kind == "stream-64-paced" else MODELS[0]

    def max_tokens(self, case: Case) -> int:
        """Length of answers: a mocker makes every token, mock engines answer in one piece whatever it is."""
        return 64 if case.streams else 1 if self.own_engines else 16


def _python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"{_HERE}.{module}", *map(str, arguments)]


async def _direct(setting: Setting, _: Processes) -> int:
    return setting.engines[0]


async def _relay(setting: Setting, processes: Processes) -> int:
    (port,) = free_ports("127.0.0.1", 1)
    await processes.start_speaking(_python("relay", port, *setting.engines))
    return port


def _headrace(router: dict[str, Any], *, admission: bool, tokens: bool = True) -> Contender:
    hand_off = router["hand_off"] != "never"
    name = "headrace " + ("round robin" if router["policy"] == "round_robin" else "full")
    name += " P/D" if hand_off else "" if tokens else ", no tokenizer"

    async def start(setting: Setting, processes: Processes) -> int:
        config = setting.folder / f"{processes.mark}.yaml"
        listen = {"host": "127.0.0.1", "port": 0}
        tree = {
            "model": {"name": MODELS[0] if tokens else "another"},
            "router": {**router, "http": listen, "grpc": listen},
            "slo": {"enabled": admission},
        }
        config.write_text(yaml.safe_dump(tree))
        roles = ("prefill", "decode") if hand_off else ("mixed", "mixed")
        engines = [f"{port}:{role}:{at}" for at, (port, role) in enumerate(zip(setting.engines, roles, strict=True))]
        logs = setting.folder / processes.mark
        redis_url = await processes.start_speaking(
            _python("fleet", config, setting.workload, logs, *engines), env={COUNTED_ENV: processes.mark}, counts=False
        )
        line = await processes.start_speaking(_python("router", config, redis_url, logs))
        port = int(line.split()[0])
        await _until(processes, f"http://127.0.0.1:{port}/readyz")
        return port

    return Contender(name, start, cases=HAND_OFF_CASES if hand_off else CASES)


def _rust(command: str, name: str, policy: str, cases: tuple[Case, ...] = CASES, hand_off: str = "") -> Contender:
    async def start(setting: Setting, processes: Processes) -> int:
        port, metrics = free_ports("127.0.0.1", 2)
        first, second = (f"http://127.0.0.1:{each}" for each in setting.engines)
        argv = [str(setting.peers / "bin" / command), *(("launch",) if command == "sglang-router" else ())]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
        argv += ["--log-level", "error", "--policy", policy]
        argv += [hand_off, "--prefill", first, "--decode", second] if hand_off else ["--worker-urls", first, second]
        await processes.start(argv)
        await _until(processes, f"http://127.0.0.1:{port}/v1/chat/completions", asks=True)
        return port

    def missing(setting: Setting) -> str | None:
        return None if (setting.peers / "bin" / command).exists() else f"{command} is not in {setting.peers}"

    return Contender(name, start, missing, cases, drops_user=command == "sglang-router")


def _dynamo(*, hand_off: bool) -> Contender:
    async def start(setting: Setting, processes: Processes) -> int:
        (port,) = free_ports("127.0.0.1", 1)
        python = str(setting.peers / "bin" / "python")
        env = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(setting.folder / f"{processes.mark}-kv")}
        env |= {"DYN_REQUEST_PLANE": "tcp", "DYN_EVENT_PLANE": "zmq", "DYN_LOG": "error", "HF_HUB_OFFLINE": "1"}
        mocker = [python, "-m", "dynamo.mocker", "--model-path", str(demo_model_path(Config())), "--block-size", "32"]
        mocker += ["--num-gpu-blocks-override", "200000", "--max-num-seqs", "1024"]
        for model, speed in ((MODELS[0], "0"), (MODELS[1], "2")):
            endpoint = f"dyn://{model}."
            if hand_off:
                prefill = ["--disaggregation-mode", "prefill", "--endpoint", f"{endpoint}prefill.generate"]
                decode = ["--disaggregation-mode", "decode", "--endpoint", f"{endpoint}backend.generate"]
                roles = [prefill, decode]
            else:
                roles = [["--num-workers", "2", "--endpoint", f"{endpoint}backend.generate"]]
            for role in roles:
                argv = [*mocker, "--model-name", model, "--speedup-ratio", speed, *role]
                await processes.start(argv, env=env, counts=False)
        argv = [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        await processes.start([*argv, "--router-mode", "kv"], env=env)
        for model in MODELS:
            await _until(processes, f"http://127.0.0.1:{port}/v1/chat/completions", asks=True, model=model)
        return port

    def missing(setting: Setting) -> str | None:
        found = list(setting.peers.glob("lib/python*/site-packages/dynamo/mocker"))
        return None if found else f"ai-dynamo is not in {setting.peers}"

    cases = HAND_OFF_CASES if hand_off else CASES
    return Contender("dynamo frontend" + (" P/D" if hand_off else ""), start, missing, cases, own_engines=True)


async def _ray_serve(setting: Setting, processes: Processes) -> int:
    (port,) = free_ports("127.0.0.1", 1)
    await processes.start_speaking(_python("serve_proxy", port, *setting.engines))
    return port


def _ray_missing(_: Setting) -> str | None:
    return None if importlib.util.find_spec("ray") else "ray is not installed"


async def _until(processes: Processes, url: str, *, asks: bool = False, model: str = MODELS[0]) -> None:
    """Wait until a GET, or a request for one token, is answered with 200 a few times in a row."""
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}
    answered, last = 0, "no answer"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for _ in range(int(_START_S / 0.2)):
            try:
                async with session.post(url, json=body) if asks else session.get(url) as response:
                    last = f"{response.status}: {(await response.read())[:300]!r}"
                    answered = answered + 1 if response.status == 200 else 0
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                answered, last = 0, repr(error)
            if answered >= 4:
                return
            processes.check()
            await asyncio.sleep(0.02 if answered else 0.2)
    raise DidNotStartError(f"{url}: {last}")


_RUST = (("vllm-router", "--vllm-pd-disaggregation"), ("sglang-router", "--pd-disaggregation"))
_AFFINITY_CASES = tuple(case for case in CASES if case.kind in ("unary-400", "multi-turn"))
_FEW_CASES = tuple(case for case in CASES if case.kind in ("unary-400", "stream-64-paced") and case.connections < 256)
CONTENDERS = (
    Contender("direct", _direct),
    Contender("bare relay", _relay),
    _headrace({"policy": "round_robin", "hand_off": "never"}, admission=False, tokens=False),
    _headrace({"policy": "round_robin", "hand_off": "never"}, admission=False),
    _headrace({"policy": "least_cost", "hand_off": "never"}, admission=True),
    *(_rust(command, command, "round_robin") for command, _ in _RUST),
    *(_rust(command, f"{command} cache_aware", "cache_aware", _AFFINITY_CASES) for command, _ in _RUST),
    _dynamo(hand_off=False),
    Contender("ray serve proxy", _ray_serve, _ray_missing, _FEW_CASES),
    _headrace({"policy": "round_robin", "hand_off": "always"}, admission=False),
    _headrace({"policy": "least_cost", "hand_off": "always"}, admission=True),
    *(_rust(command, f"{command} P/D", "round_robin", HAND_OFF_CASES, flag) for command, flag in _RUST),
    _dynamo(hand_off=True),
)


def job(contender: Contender, case: Case, port: int, *, warm_s: float, seconds: float) -> dict[str, Any]:
    """What the load generator is told; the processes to look at are still to be added."""
    carrier = "" if contender.own_engines else "stop" if contender.drops_user else "user"
    return {
        "port": port,
        "kind": case.kind,
        "connections": case.connections,
        "model": contender.model(case),
        "max_tokens": contender.max_tokens(case),
        "carrier": carrier,
        "warm_s": warm_s,
        "seconds": seconds,
    }
