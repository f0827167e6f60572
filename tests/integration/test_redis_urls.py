"""Every kind of server that a URL can name, for real: what the stores do on each, and what they do when it fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio.cluster import ClusterNode, RedisCluster

from kvstore.board import Board, open_board
from kvstore.connection import RedisLink
from kvstore.errors import RedisUnavailableError
from kvstore.intents import Intent, IntentStore, Kind, open_intents
from kvstore.kv_log import LOG_START, KvLog, open_kv_log
from kvstore.kv_record import decode_deltas
from kvstore.kv_types import KvChange, KvDelta, KvSnapshot, Op, SourceId, Tier
from kvstore.leases import LeaseStore, open_leases
from kvstore.settings import IndexSettings, RedisSettings
from kvstore.types import RequestId, WorkerId
from tests.redis_servers import (
    HOST,
    PASSWORD_IN_URL,
    Servers,
    cluster_servers,
    password_server,
    plain_server,
    sentinel_servers,
    tls_server,
)

Start = Callable[[Path], AbstractAsyncContextManager[Servers]]
KINDS: dict[str, Start] = {
    "plain": plain_server,
    "password": password_server,
    "tls": tls_server,
    "sentinel": sentinel_servers,
    "sentinel over tls": lambda folder: sentinel_servers(folder, tls=True),
    "cluster": cluster_servers,
    "cluster over tls": lambda folder: cluster_servers(folder, tls=True),
}
SOURCES = [SourceId(WorkerId(f"w{number}"), number % 2) for number in range(30)]  # in all slots of a Cluster


@dataclass(frozen=True)
class Stores:
    """Everything that is kept in Redis."""

    leases: LeaseStore
    log: KvLog
    board: Board
    intents: IntentStore

    async def use(self, seq: int) -> None:
        """Write to all of them and read it back. Raises RedisUnavailableError."""
        record = f"record {seq}".encode()
        for number in range(3):
            await self.leases.renew(WorkerId(f"w{number}"), record, 30.0)
            await self.board.publish(f"router-{number}", record, 30.0)
        assert await self.leases.read_all() == {f"w{number}": record for number in range(3)}
        assert (await self.leases.remaining_s([WorkerId("w1"), WorkerId("nobody")])).keys() == {"w1"}
        await self.leases.announce()
        assert await self.board.read_all() == {f"router-{number}": record for number in range(3)}
        await self._use_log(seq)
        assert await self.board.decisions.put([(RequestId(f"r{number}"), record) for number in range(9)], 30.0) == 9
        assert await self.board.decisions.get(RequestId("r7")) == record
        newest = await self.board.decisions.newest(0, 100)
        assert sorted(newest) == [(f"r{number}", record) for number in range(9)]
        await self.board.standings.put("router-1", record, 30.0)
        assert await self.board.standings.read_all() == {"router-1": record}
        wish = Intent("olga", float(seq))
        assert await self.intents.put(Kind.DRAIN, "w1", wish) == wish
        assert (await self.intents.read_all()).drained == {"w1": wish}
        assert await self.intents.remove(Kind.DRAIN, "w1")

    async def _use_log(self, seq: int) -> None:
        await self.log.publish([make_delta(source, seq) for source in SOURCES])
        batch = await self.log.read(LOG_START, 1.0)
        seen = [(delta.source, delta.seq) for record in batch.records for delta in decode_deltas(record)]
        assert seen[-len(SOURCES) :] == [(source, seq) for source in SOURCES]
        for source in SOURCES:
            await self.log.request_resync(source)
            assert (await self.log.touch(source, 30.0)).resync_wanted
            await self.log.write_snapshot(KvSnapshot(source, 1, seq, {Tier.DEVICE: [seq]}), 30.0)
            status = await self.log.touch(source, 30.0)
            assert (status.has_snapshot, status.snapshot_seq, status.resync_wanted) == (True, seq, False)
        assert await self.log.read_heads() == {source: (1, seq) for source in SOURCES}
        assert {snapshot.source async for snapshot in self.log.read_snapshots()} == set(SOURCES)


def make_delta(source: SourceId, seq: int) -> KvDelta:
    return KvDelta(source, 1, seq, (KvChange(Op.STORE, Tier.DEVICE, (seq,)),))


def run(start: Start, folder: Path, test: Callable[[Servers, Stores], Awaitable[None]]) -> None:
    """Run `test` with all stores on fresh servers."""

    async def body() -> None:
        async with start(folder) as servers, AsyncExitStack() as stack:
            await test(servers, await open_stores(stack, servers))

    asyncio.run(body())


async def open_stores(stack: AsyncExitStack, servers: Servers) -> Stores:
    url, settings = servers.url, servers.settings
    return Stores(
        await stack.enter_async_context(open_leases(url, "ns", settings)),
        await stack.enter_async_context(open_kv_log(url, "ns", IndexSettings(), settings)),
        await stack.enter_async_context(open_board(url, "ns", settings)),
        await stack.enter_async_context(open_intents(url, "ns", settings)),
    )


async def until_usable(stores: Stores, seq: int, timeout_s: float = 30.0) -> None:
    """Use the stores until it works; nothing but RedisUnavailableError may come of it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            await stores.use(seq)
        except RedisUnavailableError:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("kind", KINDS)
def test_all_stores_work(tmp_path: Path, kind: str) -> None:
    async def test(_: Servers, stores: Stores) -> None:
        await stores.use(1)
        await stores.use(2)
        await stores.log.drop(SOURCES[0])
        assert SOURCES[0] not in await stores.log.read_heads()

    run(KINDS[kind], tmp_path, test)


@pytest.mark.parametrize("kind", ["plain", "sentinel", "cluster"])
def test_an_announcement_arrives(tmp_path: Path, kind: str) -> None:
    async def test(_: Servers, stores: Stores) -> None:
        changes = stores.leases.changes(poll_s=60.0)
        waiting = asyncio.ensure_future(anext(changes))
        while not waiting.done():  # the subscription takes a moment
            await stores.leases.announce()
            await asyncio.wait([waiting], timeout=0.05)
        await waiting
        await changes.aclose()

    run(KINDS[kind], tmp_path, test)


@pytest.mark.parametrize("kind", ["plain", "tls", "sentinel", "cluster"])
def test_flushed_servers_are_filled_again(tmp_path: Path, kind: str) -> None:
    async def test(servers: Servers, stores: Stores) -> None:
        await stores.use(1)
        await servers.flush()
        assert await stores.leases.read_all() == {}
        assert await stores.log.read_heads() == {}
        await stores.use(2)

    run(KINDS[kind], tmp_path, test)


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_server_is_killed_and_comes_back(tmp_path: Path, kind: str) -> None:
    async def test(servers: Servers, stores: Stores) -> None:
        await stores.use(1)
        servers.servers[0].kill()
        with pytest.raises(RedisUnavailableError) as caught:
            await stores.use(2)
        assert "s3cret" not in str(caught.value)
        await servers.servers[0].start()
        await until_usable(stores, 3)

    run(KINDS[kind], tmp_path, test)


def test_sentinels_fail_over(tmp_path: Path) -> None:
    async def test(servers: Servers, stores: Stores) -> None:
        await stores.use(1)
        servers.sentinels[0].kill()  # the first that would be asked
        (await servers.server_of("any")).kill()
        await until_usable(stores, 2)
        async with AsyncExitStack() as stack:  # and one who connects only now
            await (await open_stores(stack, servers)).use(3)

    run(KINDS["sentinel over tls"], tmp_path, test)


def test_a_node_of_a_cluster_dies_and_comes_back(tmp_path: Path) -> None:
    async def test(servers: Servers, stores: Stores) -> None:
        await stores.use(1)
        for key in ("{ns:kv}:log", "ns:kv:{w0/0}:snapshot"):
            node = await servers.server_of(key)
            node.kill()
            with pytest.raises(RedisUnavailableError):
                await stores.use(2)
            await node.start()
            await until_usable(stores, 3)

    run(cluster_servers, tmp_path, test)


def test_a_whole_cluster_dies_and_comes_back(tmp_path: Path) -> None:
    async def test(servers: Servers, stores: Stores) -> None:
        await stores.use(1)
        for node in servers.servers:
            node.kill()
        for _ in range(3):
            with pytest.raises(RedisUnavailableError):
                await stores.use(2)
        for node in servers.servers:
            await node.start()
        await until_usable(stores, 3)

    run(cluster_servers, tmp_path, test)


def test_a_cluster_whose_nodes_have_all_moved_is_found_again_by_its_url(tmp_path: Path) -> None:
    async def test(servers: Servers, _: Stores) -> None:
        link = RedisLink(servers.url)
        await link.ping()
        assert isinstance(link.client, RedisCluster)
        await link.client.aclose()
        nodes = link.client.nodes_manager
        nodes.startup_nodes = {f"{HOST}:9": ClusterNode(HOST, 9, **nodes.connection_kwargs)}
        with pytest.raises(RedisUnavailableError):
            await link.ping()
        await link.ping()
        await link.close()

    run(cluster_servers, tmp_path, test)


def test_a_password_file_is_read_again(tmp_path: Path) -> None:
    async def test(servers: Servers, stores: Stores) -> None:
        await stores.use(1)
        (server,) = servers.servers
        async with server.client() as client:
            await client.config_set("requirepass", "changed")
            await client.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(RedisUnavailableError, match=r"AUTH|password|WRONGPASS"):
            await stores.use(2)
        (tmp_path / "password").write_text("changed")
        await until_usable(stores, 3)
        (tmp_path / "password").unlink()
        async with AsyncExitStack() as stack:
            with pytest.raises(RedisUnavailableError, match="No such file"):
                await open_stores(stack, servers)

    run(tls_server, tmp_path, test)


WRONG: dict[str, tuple[Start, Callable[[Servers], tuple[str, RedisSettings]], str]] = {
    "no password": (
        password_server,
        lambda servers: (servers.url.replace(f"router:{PASSWORD_IN_URL}@", ""), RedisSettings()),
        "uthentication",
    ),
    "wrong password": (
        password_server,
        lambda servers: (servers.url.replace("s3cret", "secret"), RedisSettings()),
        "WRONGPASS|invalid",
    ),
    "plain to a TLS port": (
        tls_server,
        lambda servers: (servers.url.replace("rediss", "redis"), RedisSettings()),
        "127.0.0.1",
    ),
    "unknown authority": (
        tls_server,
        lambda servers: (servers.url, servers.settings.model_copy(update={"tls_ca_path": None})),
        "CERTIFICATE_VERIFY_FAILED",
    ),
    "no certificate of one's own": (
        tls_server,
        lambda servers: (
            servers.url,
            servers.settings.model_copy(update={"tls_cert_path": None, "tls_key_path": None}),
        ),
        "127.0.0.1",
    ),
    "another host's certificate": (
        tls_server,
        lambda servers: (servers.url.replace(HOST, "localhost"), servers.settings),
        "CERTIFICATE_VERIFY_FAILED",
    ),
    "no such authority file": (
        tls_server,
        lambda servers: (servers.url, servers.settings.model_copy(update={"tls_ca_path": "/nowhere/ca.pem"})),
        "No such file",
    ),
    "no such database": (plain_server, lambda servers: (servers.url + "/9999", RedisSettings()), "out of range"),
    "no such master": (
        sentinel_servers,
        lambda servers: (servers.url.replace("/main", "/other"), RedisSettings()),
        "other",
    ),
    "a server that is no Sentinel": (
        plain_server,
        lambda servers: (servers.url.replace("redis://", "redis+sentinel://") + "/main", RedisSettings()),
        "127.0.0.1",
    ),
    "a server that is no Cluster": (
        plain_server,
        lambda servers: (servers.url.replace("redis://", "redis+cluster://"), RedisSettings()),
        "Cluster mode is not enabled",
    ),
    "nobody there": (plain_server, lambda servers: ("redis://127.0.0.1:9", RedisSettings()), "127.0.0.1:9"),
    "no such host": (plain_server, lambda servers: ("redis://no-such-host.invalid", RedisSettings()), "no-such-host"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_one_error_without_the_password(tmp_path: Path, what: str) -> None:
    start, change, said = WRONG[what]

    async def test(servers: Servers, _: Stores) -> None:
        url, settings = change(servers)
        with pytest.raises(RedisUnavailableError, match=said) as caught:
            async with open_leases(url, "ns", settings):
                pass
        assert "s3cret" not in str(caught.value)

    run(start, tmp_path, test)


def test_without_checking_the_name_another_hosts_certificate_will_do(tmp_path: Path) -> None:
    async def test(servers: Servers, _: Stores) -> None:
        settings = servers.settings.model_copy(update={"tls_check_hostname": False})
        async with open_leases(servers.url.replace(HOST, "localhost"), "ns", settings) as leases:
            await leases.announce()

    run(tls_server, tmp_path, test)
