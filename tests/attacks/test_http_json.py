"""Bodies that are bombs for whoever parses them, through the whole router: 400 with a cause, and it goes on."""

import asyncio
import io
from pathlib import Path

import pytest

from tests.fleet import MODEL, fleet
from workers.types import Role

ROUTE = "/v1/completions"
BODIES = {
    "deep array": (b"[" * 1_000_000, "invalid_json"),
    "deep object": (b'{"a":' * 300_000, "invalid_json"),
    "deep, and closed": (b"[" * 300_000 + b"]" * 300_000, "invalid_json"),
    "deep prompt": (b'{"model": "fake", "prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "invalid_json"),
    "huge number": (b'{"model": ' + b"9" * 100_000 + b"}", None),
    "huge exponent": (b'{"model": 1e999999999}', None),
    "invalid UTF-8": (b'{"model": "\xff\xfe"}', "invalid_json"),
    "truncated UTF-8": (b'{"model": "\xe2\x82', "invalid_json"),
    "overlong UTF-8": (b'{"model": "\xc0\xaf"}', "invalid_json"),
    "surrogate in UTF-8": (b'{"model": "\xed\xa0\x80"}', "invalid_json"),
    "lone surrogate": (b'{"model": "\\ud800"}', "invalid_json"),
    "NUL": (b'{"model": "a\x00b"}', "invalid_json"),
    "byte order mark": (b'\xef\xbb\xbf{"model": "fake"}', "invalid_json"),
    "UTF-16": ('{"model": "fake"}'.encode("utf-16"), "invalid_json"),
    "many names": (b'{"model": "fake", ' + b",".join(b'"n%d": 1' % index for index in range(50_000)) + b"}", None),
    "a long name": (b'{"model": "fake", "' + b"n" * 1_000_000 + b'": 1}', None),
    "a long model": (b'{"model": "' + b"m" * 1_000_000 + b'"}', None),
    "compressed": (b"\x1f\x8b\x08\x00" + b"\x00" * 100, "invalid_json"),
}


@pytest.mark.timeout(120)
def test_json_bombs(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet(tmp_path) as made:
            await made.add(Role.MIXED, "m1")
            await made.start_router()
            await made.wait_for_workers(["m1"])
            for name, (body, code) in BODIES.items():
                async with made.session.post(f"{made.url}{ROUTE}", data=io.BytesIO(body)) as response:
                    error = (await response.json())["error"]
                    assert 400 <= response.status < 500, name
                    assert error["code"] == code or code is None, (name, error)
                    assert len(error["message"]) < 2000, name
            status, _ = await made.complete("hello")
            assert status == 200
            assert "headrace_requests_in_flight 0.0" in await made.metrics()
            assert "headrace_http_buffered_bytes 0.0" in await made.metrics()

    asyncio.run(test())


def test_routes_and_methods(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet(tmp_path) as made:
            await made.add(Role.MIXED, "m1")
            await made.start_router()
            await made.wait_for_workers(["m1"])
            for method, path, status, code in (
                ("POST", "/v1/nothing", 404, "unknown_route"),
                ("GET", "/v1/nothing" + "a" * 5000, 404, "unknown_route"),
                ("GET", ROUTE, 405, "method_not_allowed"),
                ("DELETE", "/healthz", 405, "method_not_allowed"),
                ("GET", "/v1/models/no%2Fne", 404, "model_not_found"),
                ("GET", "/headrace/decisions/none", 403, "decisions_closed"),
                ("GET", "/v1/models/", 404, "unknown_route"),
            ):
                async with made.session.request(method, f"{made.url}{path}") as response:
                    error = (await response.json())["error"]
                    assert (response.status, error["code"]) == (status, code), path
                    assert len(error["message"]) < 500
            for path in ("/healthz", "/metrics", "/v1/models", f"/v1/models/{MODEL}"):
                async with made.session.get(f"{made.url}{path}?x=y") as response:
                    assert response.status == 200, path
                async with made.session.head(f"{made.url}{path}") as response:
                    assert response.status == 200, path
                    assert int(response.headers["content-length"]) > 0

    asyncio.run(test())
