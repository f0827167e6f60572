"""The published OpenAPI document against a running router: schemathesis makes requests of it and checks the answers.

The same by hand, against real engines, where a request takes its time (start them with a short context):

    schemathesis --config-file tests/integration/schemathesis.toml run http://127.0.0.1:8000/openapi.json \\
        -n 12 --continue-on-failure --request-timeout 120
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.fleet import Fleet, fleet
from workers.engine_metrics import FORWARDED_ROUTES
from workers.types import Role

CONFIG = Path(__file__).with_name("schemathesis.toml")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE")


def run(folder: Path, test: Callable[[Fleet], Awaitable[None]], **sections: object) -> None:
    """Run one test in a 1P1D fleet of its own, with an adapter."""

    async def body() -> None:
        async with fleet(folder, **sections) as made:
            await made.add(Role.PREFILL, "p1", adapters=("ad/1",))
            await made.add(Role.DECODE, "d1", adapters=("ad/1",))
            await made.start_router()
            await made.wait_for_workers(["p1", "d1"])
            await test(made)

    asyncio.run(body())


async def document(made: Fleet) -> dict[str, Any]:
    async with made.session.get(f"{made.url}/openapi.json") as response:
        assert response.status == 200
        read: dict[str, Any] = await response.json()
        return read


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        program = Path(sys.executable).with_name("schemathesis")
        command = [
            *(str(program), "--config-file", str(CONFIG), "run", f"{made.url}/openapi.json"),
            *("-n", "5", "--seed", "5", "--no-color", "--phases", "examples,fuzzing,coverage"),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()[-6000:]
        # What it did is no proof unless it got through to the engines.
        assert made.engines["d1"].counters.transferred_bytes > 0
        assert made.engines["d1"].requests_seen > 500

    # Targets that a fake engine on a busy machine keeps: 429 would hide what is behind it.
    run(tmp_path, test, slo={"classes": {"chat": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}}})


def test_every_described_route_is_served_with_its_methods(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        for path, operations in (await document(made))["paths"].items():
            url = f"{made.url}{path.format(model='nobody', id='nobody')}"
            for method in METHODS:
                async with made.session.request(method, url) as response:
                    if method.lower() not in operations:
                        assert response.status == 405, (method, path)
                        assert {*response.headers["allow"].split(", ")} - {"HEAD"} == {*map(str.upper, operations)}
                        continue
                    assert response.status != 405, (method, path)
                    if response.status == 404:
                        assert (await response.json())["error"]["code"] != "unknown_route", path

    run(tmp_path, test)


def test_the_document_is_about_this_fleet(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        paths = (await document(made))["paths"]
        assert {path for path in paths if "post" in paths[path]} == FORWARDED_ROUTES
        schema = paths["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"]["model"]["enum"] == ["fake", "ad/1"]
        assert "prompt_embeds" in schema["properties"], "a field that only the engine knows"
        assert schema["additionalProperties"] is False

    run(tmp_path, test)


def test_health_has_the_name_that_engines_have_for_it(tmp_path: Path) -> None:
    """guidellm asks it before it begins."""

    async def test(made: Fleet) -> None:
        for path in ("/health", "/healthz"):
            async with made.session.get(f"{made.url}{path}") as response:
                assert (response.status, await response.json()) == (200, {"status": "ok"})

    run(tmp_path, test)
