"""The one place that makes a Redis client, from any URL of `kvstore/redis_url.py`.

Keys and Redis Cluster. A Cluster runs a command on several keys only when all lie in one hash slot. Keys that are used
together therefore carry a hash tag, the part in braces:
    {namespace}:...             leases and the board: small, read together with MGET
    {namespace:kv}:...          the KV log and the set of its sources
    namespace:kv:{source}:...   snapshots: large, so they spread over the slots
Names are the same with every kind of server. Nothing here uses MULTI: redis-py 8 starts a thread and an event loop for
each command of a Cluster transaction. What must be atomic is one command or one script on one key.

A failover or the death of a node shows as RedisUnavailableError until the others have taken over; the client finds the
new topology by itself.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisClusterException, RedisError

from kvstore.errors import RedisUnavailableError
from kvstore.redis_url import Kind, RedisAddress, parse_redis_url, without_password
from kvstore.settings import RedisSettings

RedisClient = redis.asyncio.Redis | redis.asyncio.RedisCluster

# Everything that a dead, restarting, refusing or unreachable server makes redis-py raise.
_FAILURES = (RedisError, RedisClusterException, OSError, asyncio.TimeoutError)
# The Cluster client raises these too while its table of nodes is being made again: a slot that nobody serves is a
# KeyError, a default node that is not known yet an AttributeError.
_CLUSTER_FAILURES = (*_FAILURES, LookupError, AttributeError)

ANSWER_TIMEOUT_S = 5.0
_CONNECT_TIMEOUT_S = 3.0
_SENTINEL_TIMEOUT_S = 1.0
_CLUSTER_RETRIES = 2


class RedisLink:
    """A client for one URL; raises RedisUrlError if it is none. Nothing is connected before the first command."""

    def __init__(self, url: str, settings: RedisSettings | None = None) -> None:
        address = parse_redis_url(url)
        self.url = without_password(url)
        self._seeds = address.hosts if address.kind is Kind.CLUSTER else ()
        self._failures = _CLUSTER_FAILURES if self._seeds else _FAILURES
        self._sentinel: Sentinel | None = None
        settings = settings or RedisSettings()
        match address.kind:
            case Kind.SENTINEL:
                self._sentinel = _sentinel(address, settings)
                self.client: RedisClient = self._sentinel.master_for(address.master)
            case Kind.CLUSTER:
                self.client = _cluster(address, settings)
            case _:
                self.client = _single(address, settings)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn any failure of the client library into RedisUnavailableError."""
        try:
            yield
        except self._failures as error:
            self._remember_seeds()
            raise RedisUnavailableError(self.url, str(error) or type(error).__name__) from error

    async def ping(self) -> None:
        """Raise RedisUnavailableError unless the server answers."""
        with self.translated():
            await self.client.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        if isinstance(self.client, redis.asyncio.RedisCluster):  # which does nothing while it looks for the topology
            await self.client.nodes_manager.aclose()
            await self.client.nodes_manager.aclose("startup_nodes")
        if self._sentinel is not None:
            await self._sentinel.aclose()

    def _remember_seeds(self) -> None:
        """The Cluster client replaces the URL's nodes by those it has found, which may all have moved meanwhile."""
        if isinstance(self.client, redis.asyncio.RedisCluster):
            nodes = self.client.nodes_manager
            for host, port in self._seeds:
                seed = ClusterNode(host, port, **nodes.connection_kwargs)
                nodes.startup_nodes.setdefault(seed.name, seed)


class _PasswordFile(CredentialProvider):
    """The password as the file has it now, so that it can be changed under a running process."""

    def __init__(self, username: str | None, path: Path) -> None:
        self._username = username
        self._path = path

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """(password,) or (user, password); an OSError counts as Redis being unavailable."""
        password = self._path.read_text(encoding="utf-8", errors="replace").rstrip("\r\n")
        return (password,) if self._username is None else (self._username, password)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same: the file is a line long."""
        return self.get_credentials()


def _single(address: RedisAddress, settings: RedisSettings) -> redis.asyncio.Redis:
    options = _options(address, settings)
    if address.kind is Kind.SOCKET:
        options |= {"connection_class": UnixDomainSocketConnection, "path": address.socket_path}
    else:
        (host, port) = address.hosts[0]
        options |= {"host": host, "port": port}
        if options.pop("ssl", False):
            options["connection_class"] = SSLConnection
    return redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(db=address.database, **options))


def _sentinel(address: RedisAddress, settings: RedisSettings) -> Sentinel:
    # No retries on a Sentinel: the next one is asked instead.
    with_password = settings.sentinels_have_password
    asking = _options(address, settings, with_password=with_password) | {
        "socket_timeout": _SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": _SENTINEL_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    options = _options(address, settings)
    return Sentinel(address.hosts, sentinel_kwargs=asking, db=address.database, **options)  # type: ignore[no-untyped-call]


def _cluster(address: RedisAddress, settings: RedisSettings) -> redis.asyncio.RedisCluster:
    options = _options(address, settings) | {"retry": Retry(ExponentialWithJitterBackoff(), _CLUSTER_RETRIES)}
    seeds = [ClusterNode(host, port) for host, port in address.hosts]
    # Slots of a node that died without a replica fail; the others go on.
    return redis.asyncio.RedisCluster(startup_nodes=seeds, require_full_coverage=False, **options)


def _options(address: RedisAddress, settings: RedisSettings, *, with_password: bool = True) -> dict[str, Any]:
    """What all three kinds of client take."""
    options: dict[str, Any] = {
        "protocol": 2,  # nothing here needs 3, with which redis-py asks for maintenance notices on every connection
        "socket_timeout": ANSWER_TIMEOUT_S,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 3),
    }
    if with_password and settings.password_file is not None:
        options["credential_provider"] = _PasswordFile(address.username, Path(settings.password_file).expanduser())
    elif with_password:
        options |= {"username": address.username, "password": address.password}
    if address.tls:
        options |= {
            "ssl": True,
            "ssl_ca_certs": settings.tls_ca_path,
            "ssl_certfile": settings.tls_cert_path,
            "ssl_keyfile": settings.tls_key_path,
            "ssl_check_hostname": settings.tls_check_hostname,
        }
    return options


def text_of(value: bytes | str) -> str:
    """A name or number as Redis gave it: bytes, or text with some protocols."""
    return value if isinstance(value, str) else value.decode(errors="replace")
