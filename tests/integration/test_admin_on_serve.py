"""The admin API behind Ray Serve's own ingress: TLS, a stream, sizes of pools, the audit file."""

import asyncio
import json
import ssl
import sys
from pathlib import Path

import aiohttp
import yaml

from controlplane.embedded_redis import embedded_redis
from tests.admin_server import OPERATOR, tokens_file
from tests.certificates import make_certificates
from workers.ports import free_ports


def test_behind_serve(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "tls")
    (port,) = free_ports("127.0.0.1", 1)
    tls = {"cert_file": str(certificates.server_cert_path), "key_file": str(certificates.server_key_path)}
    admin = {"port": port, "tls": tls, "tokens_file": str(tokens_file(tmp_path))}
    config = tmp_path / "headrace.yaml"
    pools = {"prefill": 0, "decode": 0, "mixed": 1, "max_size": 3}
    config.write_text(yaml.safe_dump({"admin": admin, "pools": pools}))

    async def test() -> None:
        async with embedded_redis(tmp_path) as redis_url:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.serve_stand_in", str(config), redis_url, str(tmp_path / "logs")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                async with asyncio.timeout(120):
                    assert await child.stdout.readline() == b"ready\n"
                context = ssl.create_default_context(cafile=str(certificates.ca_path))
                headers = {"Authorization": f"Bearer {OPERATOR}"}
                connector = aiohttp.TCPConnector(ssl=context)
                async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
                    await _use(session, f"https://127.0.0.1:{port}")
            finally:
                child.stdin.close()
                await child.wait()
        assert child.returncode == 0

    asyncio.run(test())
    lines = [json.loads(line) for line in (tmp_path / "logs" / "audit.jsonl").read_text().splitlines()]
    assert [(line["who"], line["action"], line["status"]) for line in lines] == [
        ("olga", "POST /pools/mixed/size", 400),
        ("olga", "POST /pools/mixed/size", 400),
        ("olga", "POST /pools/prefill/size", 409),
        ("olga", "POST /pools/mixed/size", 200),
        ("olga", "POST /pools/mixed/size", 200),
        ("olga", "POST /classes/chat/pause", 200),
    ]


async def _use(session: aiohttp.ClientSession, url: str) -> None:
    async def resize(role: str, size: int) -> int:
        async with session.post(f"{url}/pools/{role}/size", json={"size": size}) as response:
            return response.status

    async def size() -> int:
        async with session.get(f"{url}/pools") as response:
            (pool,) = await response.json()
            assert (pool["role"], pool["configured"], pool["most"]) == ("mixed", 1, 3)
            return int(pool["size"])

    assert await size() == 1
    assert [await resize("mixed", 4), await resize("mixed", 0), await resize("prefill", 1)] == [400, 400, 409]
    for wanted in (3, 2):
        assert await resize("mixed", wanted) == 200
        async with asyncio.timeout(60):
            while await size() != wanted:
                await asyncio.sleep(0.2)
    async with session.get(f"{url}/events") as events:
        assert events.content_type == "text/event-stream"
        async with asyncio.timeout(20):
            while not (await events.content.readline()).startswith(b"event: fleet"):
                pass
    async with session.get(f"{url}/") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "Content-Security-Policy" in response.headers
        same = {"If-None-Match": response.headers["ETag"]}
    async with session.get(f"{url}/", headers=same) as response:
        assert response.status == 304
    async with session.get(f"{url}/decisions/a%2Fb?x=y") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "decision_not_found")
    async with session.post(f"{url}/classes/chat/pause") as response:
        assert response.status == 200
