"""Keys of a provider over HTTP, files and Redis, followed into memory."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm

from kvstore.key_store import KeyRecord, KeyStore, open_keys
from router.admin_tokens import digest_of
from router.errors import ApiError
from router.identity.cache_salts import CacheSalts
from router.identity.doorkeeper import Doorkeeper
from router.identity.follower import IdentityFollower
from router.identity.sources import IdentityError
from router.identity_settings import IdentitySettings
from tests.redis_servers import Servers, plain_server

PRIVATE = ed25519.Ed25519PrivateKey.generate()


class Followed:
    """A door and what keeps it informed."""

    def __init__(self, store: KeyStore, **settings: Any) -> None:
        self.salts = CacheSalts()
        tree = {"required": True, "poll_s": 0.05, **settings}
        made = IdentitySettings.model_validate(tree)
        self.door = Doorkeeper(made, time.time)
        self.follower = IdentityFollower(made, store, self.door, self.salts)

    def tenant_of(self, key: str) -> str | None:
        try:
            return self.door.ask({"authorization": f"Bearer {key}"}).tenant
        except ApiError:
            return None


def run(folder: Path, test: Callable[[Servers, KeyStore], Awaitable[None]]) -> None:
    async def body() -> None:
        async with plain_server(folder) as servers, open_keys(servers.url, "ns") as store:
            await test(servers, store)

    asyncio.run(asyncio.wait_for(body(), 60))


def token(kid: str) -> str:
    claims = {"iss": "i", "aud": "a", "sub": "joan", "exp": 4_000_000_000}
    return jwt.encode(claims, PRIVATE, "EdDSA", {"kid": kid})


def jwks(kid: str) -> str:
    return json.dumps({"keys": [{**json.loads(OKPAlgorithm.to_jwk(PRIVATE.public_key())), "kid": kid}]})


def test_a_providers_keys_are_fetched_again_and_a_provider_that_fails_changes_nothing(tmp_path: Path) -> None:
    async def test(_: Servers, store: KeyStore) -> None:
        served: list[tuple[int, str]] = [(200, jwks("one"))]

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=served[-1][0], text=served[-1][1])

        app = web.Application()
        app.router.add_get("/keys", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
        try:
            made = Followed(store, jwt={"issuer": "i", "audience": "a", "jwks_url": url, "refresh_s": 1})
            await made.follower.start()
            assert made.tenant_of(token("one")) == "joan"
            assert made.tenant_of(token("two")) is None
            assert made.salts.is_on, "a provider has more than one tenant"
            following = asyncio.create_task(made.follower.run())
            for bad in ((500, jwks("two")), (200, "{"), (302, ""), (200, jwks("two"))):
                served.append(bad)
                await asyncio.sleep(1.2)
                assert made.tenant_of(token("one")) == ("joan" if bad[1] != jwks("two") or bad[0] == 500 else None)
            assert made.tenant_of(token("two")) == "joan"
            made.follower.stop()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        finally:
            await runner.cleanup()

    run(tmp_path, test)


def test_keys_made_elsewhere_are_heard_of_outlive_redis_and_come_back_into_it(tmp_path: Path) -> None:
    async def test(servers: Servers, store: KeyStore) -> None:
        made = Followed(store)
        await made.follower.start()
        following = asyncio.create_task(made.follower.run())
        async with open_keys(servers.url, "ns") as operators:
            await operators.add_key(digest_of("hr-one"), KeyRecord("acme"))
            await operators.put_tenant("acme", b'{"weight": 5}')
            await operators.put_tenant("odd", b'{"from": "the future"}')

            async def until(condition: Callable[[], bool]) -> None:
                while not condition():
                    await asyncio.sleep(0.01)

            await until(lambda: made.tenant_of("hr-one") == "acme")
            await until(lambda: made.door.ask({"x-api-key": "hr-one"}).allowance.weight == 5.0)
            await servers.flush()
            found = await operators.read_all()
            while not found.keys:
                found = await operators.read_all()
                await asyncio.sleep(0.01)
            assert made.tenant_of("hr-one") == "acme"
            assert set(found.keys) == {digest_of("hr-one")}
            await operators.end_key(digest_of("hr-one"), at_s=1.0, revoke=True)
            await until(lambda: made.tenant_of("hr-one") is None)
        made.follower.stop()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keys_file": "NONE"}, "identity.keys_file: "),
        ({"keys_file": "BAD"}, "2 mistake(s)"),
        ({"salt_secret_file": "BAD"}, "allowed: 16 or more"),
        ({"jwt": {"issuer": "i", "audience": "a", "jwks_file": "BAD"}}, "it is no JWK set"),
    ],
)
def test_files_that_cannot_be_used_are_said_at_the_start_without_what_is_in_them(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    (tmp_path / "bad").write_text("hr-secret: 1")
    named = json.loads(
        json.dumps(settings).replace("NONE", str(tmp_path / "none")).replace("BAD", str(tmp_path / "bad"))
    )

    async def test(_: Servers, store: KeyStore) -> None:
        with pytest.raises(IdentityError) as caught:
            await Followed(store, **named).follower.start()
        assert words in str(caught.value)
        assert "hr-secret" not in str(caught.value)

    run(tmp_path, test)


def test_a_secret_of_a_file_is_not_given_to_redis(tmp_path: Path) -> None:
    async def test(servers: Servers, store: KeyStore) -> None:
        (tmp_path / "secret").write_text("sixteen bytes at least\n")
        made = Followed(store, salt_secret_file=str(tmp_path / "secret"), isolate_caches="on")
        await made.follower.start()
        await store.add_key(digest_of("hr-one"), KeyRecord("acme"))
        await made.follower.look()
        await servers.flush()
        await made.follower.look()
        found = await store.read_all()
        assert found.keys and found.secret is None
        plain = CacheSalts()
        plain.set_secret(b"sixteen bytes at least")
        assert made.salts.of("acme") == plain.of("acme")
        assert hashlib.sha256(b"hr-one").hexdigest() in found.keys

    run(tmp_path, test)
