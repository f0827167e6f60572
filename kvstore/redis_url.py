"""Where Redis is, as one URL. Pure: nothing is connected to, nothing is looked up.

    redis://[user:password@]host[:port][/db]                                   one server
    unix://[user:password@]/path/to/socket[?db=N]                              one server on this machine
    redis+sentinel://[user:password@]host[:port],host[:port].../master[/db]    the master that Sentinels agree on
    redis+cluster://[user:password@]host[:port],host[:port]...                 a Cluster, asked at any of these nodes

rediss://, rediss+sentinel:// and rediss+cluster:// are the same over TLS. User name and password are percent-encoded.
Everything else (certificates, a file with the password) is a key of the `redis` section and not an option of the URL.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs, unquote

from kvstore.errors import RedisUrlError

ALLOWED = (
    "redis://host:port/db, rediss://host:port/db, unix:///path, redis[s]+sentinel://host:port,.../master/db, "
    "redis[s]+cluster://host:port,..."
)
_REDIS_PORT = 6379
_SENTINEL_PORT = 26379
_LABEL = "[A-Za-z0-9_-]{1,63}"  # of a host name


class Kind(StrEnum):
    """What answers at an address."""

    SERVER = "server"
    SOCKET = "socket"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


_SCHEMES = {
    "redis": (Kind.SERVER, False),
    "rediss": (Kind.SERVER, True),
    "unix": (Kind.SOCKET, False),
    "redis+sentinel": (Kind.SENTINEL, False),
    "rediss+sentinel": (Kind.SENTINEL, True),
    "redis+cluster": (Kind.CLUSTER, False),
    "rediss+cluster": (Kind.CLUSTER, True),
}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A URL's parts. `hosts` are Sentinels or Cluster nodes where `kind` says so, and empty for a socket."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None
    database: int = 0
    master: str = ""  # the name the Sentinels know it by
    socket_path: str = ""


def without_password(url: str) -> str:
    """The URL as it may be logged: every password replaced by `***`, also in a URL that is not valid."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    # Up to the last @: a password whose / or @ was not encoded must not show either.
    userinfo, at, place = rest.rpartition("@")
    if at and ":" in userinfo:
        userinfo = userinfo.partition(":")[0] + ":***"
    elif not at and not rest.startswith(("/", "[")):
        place = re.sub(r"^([^/?]*?):(?!\d{1,5}(?:[,/?#]|$)).*", r"\1:***", rest)  # what stands for a port is none
    masked = f"{scheme}://{userinfo}{at}{place}"
    return re.sub(r"([?&][^=&]*(?:password|auth)[^=&]*=)[^&]*", r"\1***", masked, flags=re.IGNORECASE)


def parse_redis_url(url: str) -> RedisAddress:
    """The parts of `url`; raises RedisUrlError, which says what is wrong and what is allowed."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise _error(url, f"the scheme must be one of {', '.join(_SCHEMES)}")
    kind, tls = _SCHEMES[scheme]
    rest, question, query = rest.partition("?")
    if "#" in rest:
        raise _error(url, "a # in a user name or password is written %23")
    if kind is Kind.SOCKET:
        return _socket(url, rest, query)
    if question:
        raise _error(url, "it takes no options; certificates and the like are keys of the redis section")
    authority, _, path = rest.partition("/")
    if "@" in path:
        raise _error(url, "a / or @ in a user name or password is written %2F or %40")
    userinfo, _, places = authority.rpartition("@")
    hosts = tuple(_host(url, place, kind) for place in places.split(","))
    if kind is Kind.SERVER and len(hosts) > 1:
        raise _error(url, "it names several hosts; redis+sentinel:// and redis+cluster:// may do that")
    username, password = _credentials(url, userinfo)
    master = ""
    if kind is Kind.SENTINEL:
        master, _, path = path.partition("/")
        if not master:
            raise _error(url, "it names no master: redis+sentinel://host:port,host:port/NAME")
    database = _database(url, path)
    if kind is Kind.CLUSTER and database != 0:
        raise _error(url, "a Cluster has only database 0")
    return RedisAddress(kind, tls, hosts, username, password, database, unquote(master))


def _socket(url: str, rest: str, query: str) -> RedisAddress:
    userinfo, at, path = rest.partition("@/")
    if not at or userinfo.startswith("/"):
        userinfo, path = "", rest
    else:
        path = "/" + path
    if not path.startswith("/") or len(path) < 2:
        raise _error(url, "it names no absolute path: unix:///run/redis.sock")
    options = parse_qs(query, keep_blank_values=True)
    if set(options) - {"db"}:
        raise _error(url, "it takes no option but db")
    username, password = _credentials(url, userinfo)
    database = _database(url, options.get("db", [""])[0])
    return RedisAddress(Kind.SOCKET, False, (), username, password, database, socket_path=unquote(path))


def _credentials(url: str, userinfo: str) -> tuple[str | None, str | None]:
    username, _, password = userinfo.partition(":")
    if "@" in userinfo or ":" in password:
        raise _error(url, "a : or @ in a user name or password is written %3A or %40")
    return unquote(username) or None, unquote(password) or None


def _host(url: str, place: str, kind: Kind) -> tuple[str, int]:
    matched = re.fullmatch(rf"(\[[0-9A-Fa-f:.]+\]|{_LABEL}(?:\.{_LABEL})*\.?)(?::([0-9]{{1,5}}))?", place)
    if matched is None:
        raise _error(url, "what should be host:port is not" if place else "it names no host")
    default = _SENTINEL_PORT if kind is Kind.SENTINEL else _REDIS_PORT
    port = int(matched[2]) if matched[2] else default
    if not 1 <= port <= 65535:
        raise _error(url, f"{port} is not a port")
    return matched[1].strip("[]"), port


def _database(url: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,5}", text):
        raise _error(url, f"{text!r} is not the number of a database")
    return int(text or 0)


def _error(url: str, problem: str) -> RedisUrlError:
    return RedisUrlError(without_password(url), problem, ALLOWED)
