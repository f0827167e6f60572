"""Follows what decides who may ask into memory: files, Redis, the identity provider's keys. No request waits for it.

What cannot be read leaves what was known before in force, and the log says so, once. Keys and tokens are never logged.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp

from kvstore.errors import RedisUnavailableError
from kvstore.key_store import Kept, KeyStore
from router.identity.cache_salts import CacheSalts
from router.identity.doorkeeper import Doorkeeper
from router.identity.jwt_tokens import JwksError, JwtTokens
from router.identity.sources import IdentityError, made_settings, parse_keys, read_secret, read_text
from router.identity_settings import IdentitySettings, TenantSettings

_log = logging.getLogger(__name__)
_JWKS_TIMEOUT_S = 10.0
_MOST_JWKS_BYTES = 1 << 20
_NEW_KEY_WAIT_S = 10.0  # between two fetches for a key that a token names and nobody knows, or after a failure


class IdentityFollower:
    """One router's. `start` before the first request, then `run()` as a task, ended with `stop()`."""

    def __init__(self, settings: IdentitySettings, store: KeyStore, doorkeeper: Doorkeeper, salts: CacheSalts) -> None:
        self._settings = settings
        self._store = store
        self._doorkeeper = doorkeeper
        self._salts = salts
        self._secret: bytes | None = None
        self._known: Kept | None = None
        self._refused: set[str] = set()
        self._jwt = JwtTokens(settings.jwt) if settings.jwt is not None else None
        self._jwks_at_s = float("-inf")
        self._keys_text: str | None = None
        self._stopping = False

    async def start(self) -> None:
        """Know everything once. Raises IdentityError, and RedisUnavailableError where Redis has the salts' secret."""
        settings = self._settings
        if settings.keys_file is not None:
            self._take_keys(read_text(settings.keys_file, "identity.keys_file"))
        if settings.salt_secret_file is not None:
            self._secret = read_secret(settings.salt_secret_file)
        elif settings.isolate_caches != "off":
            self._secret = await self._store.secret()
        self._doorkeeper.tokens = self._jwt
        if settings.jwt is not None and settings.jwt.jwks_file is not None:
            self._take_jwks(read_text(settings.jwt.jwks_file, "identity.jwt.jwks_file").encode())
        elif settings.jwt is not None:
            await self._fetch_jwks()
        if self._follows_redis:
            self._take_kept(await self._store.read_all())
        self._isolate()

    async def run(self) -> None:
        """Look whenever there is news, at the latest every `poll_s`, until `stop` and a cancellation."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_files())
            if self._follows_redis:
                group.create_task(self._follow_redis())

    def stop(self) -> None:
        """Let `run` end at its next step, also when redis-py swallows the cancellation that was to end it now."""
        self._stopping = True

    async def look(self) -> None:
        """One look at Redis."""
        try:
            found = await self._store.read_all()
            if self._has_lost(found):
                assert self._known is not None
                _log.warning("Redis has lost API keys and tenants: writing them again")
                secret = self._secret if self._has_shared_secret else None
                await self._store.restore(Kept(self._known.keys, self._known.tenants, secret))
                found = await self._store.read_all()
            elif found.secret is None and self._has_shared_secret:
                await self._store.secret(self._secret)
        except RedisUnavailableError:
            return  # the lease follower says so
        self._take_kept(found)
        self._isolate()

    async def look_at_files(self) -> None:
        """One look at the files, and at the provider where it is time."""
        settings = self._settings
        with _logged(self._refused, "identity.keys_file"):
            if settings.keys_file is not None:
                self._take_keys(await asyncio.to_thread(read_text, settings.keys_file, "identity.keys_file"))
        if settings.jwt is not None and settings.jwt.jwks_file is not None:
            with _logged(self._refused, "identity.jwt.jwks_file"):
                raw = await asyncio.to_thread(read_text, settings.jwt.jwks_file, "identity.jwt.jwks_file")
                self._take_jwks(raw.encode())
        elif settings.jwt is not None and self._jwt is not None:
            is_urgent = self._jwt.wants_keys or "identity.jwt.jwks_url" in self._refused
            wait_s = _NEW_KEY_WAIT_S if is_urgent else settings.jwt.refresh_s
            if time.monotonic() - self._jwks_at_s >= min(wait_s, settings.jwt.refresh_s):
                await self._fetch_jwks()
        self._isolate()

    @property
    def sources(self) -> dict[str, bool]:
        """Files and addresses that are configured, and whether the last look at each worked."""
        jwt = self._settings.jwt
        named = {
            "keys_file": ("identity.keys_file", self._settings.keys_file),
            "jwks_file": ("identity.jwt.jwks_file", jwt and jwt.jwks_file),
            "jwks_url": ("identity.jwt.jwks_url", jwt and jwt.jwks_url),
        }
        return {name: what not in self._refused for name, (what, where) in named.items() if where is not None}

    @property
    def _follows_redis(self) -> bool:
        return self._settings.keys_in_redis or self._has_shared_secret

    @property
    def _has_shared_secret(self) -> bool:
        return self._settings.isolate_caches != "off" and self._settings.salt_secret_file is None

    def _has_lost(self, found: Kept) -> bool:
        known = self._known
        if known is None or not self._settings.keys_in_redis:
            return False
        return (found.lost_keys and bool(known.keys)) or (found.lost_tenants and bool(known.tenants))

    async def _follow_redis(self) -> None:
        async for _ in self._store.changes(self._settings.poll_s):
            if self._stopping:
                return
            await _survived(self.look())

    async def _follow_files(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._settings.poll_s)
            await _survived(self.look_at_files())

    def _take_kept(self, found: Kept) -> None:
        if found.secret is not None and self._has_shared_secret:
            self._secret = found.secret
        if not self._settings.keys_in_redis or found == self._known:
            return
        known, self._known = self._known, found
        self._doorkeeper.set_made(found.keys, self._tenants(found))
        if known is not None or found.keys or found.tenants:
            _log.info("%d API keys and %d tenants are kept in Redis", len(found.keys), len(found.tenants))

    def _tenants(self, found: Kept) -> dict[str, TenantSettings]:
        """Those of another version are as the configuration has them."""
        tenants = made_settings(found.tenants)
        for name in found.tenants.keys() - tenants.keys() - self._refused:
            _log.error("what Redis has of the tenant %s is not understood: its settings are the file's", name)
            self._refused.add(name)
        return tenants

    def _take_keys(self, text: str) -> None:
        if text == self._keys_text:
            return
        keys = parse_keys(text, self._settings.keys_file or "")
        self._keys_text = text
        self._doorkeeper.set_file_keys(keys)
        _log.info("identity.keys_file: %d API keys", len(keys))

    def _take_jwks(self, raw: bytes) -> None:
        assert self._jwt is not None
        try:
            self._jwt.set_jwks(raw)
        except JwksError as error:
            raise IdentityError(f"identity.jwt: {error}") from None
        self._jwt.wants_keys = False

    async def _fetch_jwks(self) -> None:
        assert self._settings.jwt is not None and self._settings.jwt.jwks_url is not None
        url, self._jwks_at_s = self._settings.jwt.jwks_url, time.monotonic()
        with _logged(self._refused, "identity.jwt.jwks_url"):
            try:
                timeout = aiohttp.ClientTimeout(total=_JWKS_TIMEOUT_S)
                async with (
                    aiohttp.ClientSession(timeout=timeout) as session,
                    session.get(url, allow_redirects=False) as response,
                ):
                    raw = await response.content.read(_MOST_JWKS_BYTES)
                    while not response.content.at_eof() and len(raw) < _MOST_JWKS_BYTES:
                        raw += await response.content.read(_MOST_JWKS_BYTES - len(raw))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise IdentityError(f"identity.jwt.jwks_url: {url}: {error!r}") from None
            if response.status != 200:
                raise IdentityError(f"identity.jwt.jwks_url: {url} answers {response.status}")
            self._take_jwks(raw)

    def _isolate(self) -> None:
        """Salt from now on, or not, as the settings and the tenants there are have it."""
        wanted = self._settings.isolate_caches
        is_on = wanted == "on" or (wanted == "auto" and self._doorkeeper.has_many_tenants)
        if is_on != self._salts.is_on:
            _log.info("cached prefixes are %s between tenants", "isolated" if is_on else "shared")
        self._salts.set_secret(self._secret if is_on else None)


async def _survived(look: Coroutine[Any, Any, None]) -> None:
    """A bug of ours must not end the following: keys would then never be revoked."""
    try:
        await look
    except Exception:
        _log.exception("following keys and tenants: this look failed")


class _logged(contextlib.AbstractContextManager[None]):  # noqa: N801  reads as the function it is
    """Log an IdentityError once, until the same thing has worked again."""

    def __init__(self, refused: set[str], what: str) -> None:
        self._refused = refused
        self._what = what

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if error is None:
            self._refused.discard(self._what)
            return False
        if not isinstance(error, IdentityError):
            return False
        if self._what not in self._refused:
            _log.error("%s; going on with what was known before", error)
        self._refused.add(self._what)
        return True
