"""The admin API over HTTP, as Serve's ingress would have it; and tokens for it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from controlplane.admin import AdminApi
from controlplane.admin_routes.pools import Pools
from controlplane.config import Config
from router.admin_tokens import digest_of

VIEWER, OPERATOR = "hra-viewer", "hra-operator"


def tokens_file(folder: Path) -> Path:
    """A file in which `vic` views and `olga` operates."""
    path = folder / "tokens.yaml"
    path.write_text(
        f"{digest_of(VIEWER)}: {{name: vic, role: viewer}}\n{digest_of(OPERATOR)}: {{name: olga, role: operator}}\n"
    )
    return path


@asynccontextmanager
async def served(config: Config, redis_url: str, pools: Pools | None = None, port: int = 0) -> AsyncIterator[str]:
    """A control plane's admin API; its URL."""
    api = AdminApi(config, redis_url, pools)
    api.start()

    async def answer(request: web.Request) -> web.StreamResponse:
        found = await api.answer(request.method, request.raw_path, request.headers, await request.read())
        headers = {**found.headers, "Content-Type": found.media_type}
        if found.stream is None:
            return web.Response(body=found.body, status=found.status, headers=headers)
        response = web.StreamResponse(status=found.status, headers=headers)
        await response.prepare(request)
        async for piece in found.stream:
            await response.write(piece)
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await api.close()
        await runner.cleanup()


async def headrace(*args: str) -> tuple[int, str]:
    """Run the command; its exit code and what it printed."""
    command = "import sys; from controlplane.cli import main; sys.argv[0] = 'headrace'; main()"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", command, *args, stdout=-1, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    return child.returncode or 0, output.decode()
