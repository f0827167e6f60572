"""Keys and charges against a real server. Numbers: invariants of kvstore/key_store.py and usage_store.py."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controlplane.admin_routes.tenants import UsageReader
from kvstore.errors import RedisUnavailableError
from kvstore.key_store import KeyRecord, KeyStore, key_id, open_keys
from kvstore.usage_store import UsageStore, Used, open_usage, total
from tests.redis_servers import Servers, plain_server

ONE, TWO = "1" * 64, "2" * 64
ACME = KeyRecord("acme", "batch", None, 1.0, "olga", "for tests")


def run(folder: Path, test: Callable[[Servers, KeyStore, UsageStore], Awaitable[None]]) -> None:
    async def body() -> None:
        async with (
            plain_server(folder) as servers,
            open_keys(servers.url, "ns") as keys,
            open_usage(servers.url, "ns") as usage,
        ):
            await test(servers, keys, usage)

    asyncio.run(body())


def test_charges_count_once_however_often_and_in_whatever_order_they_come(tmp_path: Path) -> None:
    async def test(servers: Servers, _: KeyStore, usage: UsageStore) -> None:
        totals = [Used(1, 10, 0, 5), Used(2, 20, 4, 9), Used(3, 20, 4, 30)]
        for number, order in enumerate(itertools.permutations([*totals, totals[1]])):
            tenant = f"t{number}"
            for used in order:
                await usage.charge("2027-01", tenant, {"r1": used})
            found = await usage.charge("2027-01", tenant, {"r2": Used(1, 1, 0, 1)})
            assert found == {"r1": totals[-1], "r2": Used(1, 1, 0, 1)}
            assert total(found).tokens == 52
        assert await usage.charge("2027-02", "t0", {}) == {}
        both = await usage.charge_all({("2027-01", "t0"): {}, ("2027-01", "nobody"): {}})
        assert {name: total(found) for (_, name), found in both.items()} == {"t0": Used(4, 21, 4, 31), "nobody": Used()}
        at_once = [usage.charge("d", "x", {f"r{n % 3}": Used(n, n, 0, n)}) for n in range(60)]
        await asyncio.gather(*at_once)
        assert total(await usage.charge("d", "x", {})) == Used(174, 174, 0, 174)
        async with servers.servers[0].client() as client:
            assert 0 < await client.ttl("ns:usage:2027-01:t0") <= 100 * 86_400

    run(tmp_path, test)


def test_charges_without_a_server_say_so_and_leave_nothing_running(tmp_path: Path) -> None:
    async def test(servers: Servers, _: KeyStore, usage: UsageStore) -> None:
        servers.servers[0].kill()
        with pytest.raises(RedisUnavailableError):
            await usage.charge_all({("2027-01", f"t{n}"): {"r": Used(1)} for n in range(5)})

    run(tmp_path, test)


def test_invariant_2_a_revoked_key_stays_so(tmp_path: Path) -> None:
    async def test(_: Servers, keys: KeyStore, __: UsageStore) -> None:
        await keys.add_key(ONE, ACME)
        before = await keys.read_all()
        assert before.keys == {ONE: ACME} and not before.lost_keys and before.lost_tenants
        assert await keys.end_key(TWO, at_s=5.0, revoke=True) is None
        ending = await keys.end_key(ONE, at_s=9e9, revoke=False)
        assert ending is not None and ending.expires_at_s == 9e9 and ending.holds(9e9 - 1) and not ending.holds(9e9)
        sooner, later = await keys.end_key(ONE, at_s=8e9, revoke=False), await keys.end_key(ONE, at_s=9e9, revoke=False)
        assert sooner == later and sooner is not None and sooner.expires_at_s == 8e9, "never longer"
        revoked = await keys.end_key(ONE, at_s=7e9, revoke=True)
        assert revoked is not None and not revoked.holds(0.0)
        await keys.restore(before)
        await keys.add_key(ONE, ACME)
        assert (await keys.end_key(ONE, at_s=9e9, revoke=False)) == revoked
        assert (await keys.read_all()).keys == {ONE: revoked}

    run(tmp_path, test)


def test_invariants_2_and_3_what_redis_has_lost_comes_back_and_revocations_win(tmp_path: Path) -> None:
    async def test(servers: Servers, keys: KeyStore, _: UsageStore) -> None:
        await keys.add_key(ONE, ACME)
        await keys.put_tenant("acme", b'{"weight":2}')
        secret = await keys.secret()
        stale = await keys.read_all()
        await keys.end_key(ONE, at_s=7e9, revoke=True)
        known = await keys.read_all()
        for order in ((stale, known), (known, stale)):
            await servers.flush()
            lost = await keys.read_all()
            assert lost.lost_keys and lost.lost_tenants and lost.secret is None
            for one in order:
                await keys.restore(one)
            assert await keys.read_all() == known
            assert await keys.secret(b"another") == secret, "invariant 4"

    run(tmp_path, test)


def test_old_records_are_forgotten_and_what_others_wrote_is_left_out(tmp_path: Path) -> None:
    async def test(servers: Servers, keys: KeyStore, _: UsageStore) -> None:
        await keys.add_key(ONE, KeyRecord("acme", expires_at_s=5.0))
        async with servers.servers[0].client() as client:
            await client.hset("{ns}:keys", "3" * 64, "not JSON")
        await keys.add_key(TWO, ACME)
        assert (await keys.read_all()).keys == {TWO: ACME}
        assert await keys.remove_tenant("acme") is False
        assert key_id(TWO) == "2" * 16

    run(tmp_path, test)


def test_use_is_read_once_a_second_whoever_looks(tmp_path: Path) -> None:
    async def test(_: Servers, __: KeyStore, usage: UsageStore) -> None:
        clock = [0.0]
        reader = UsageReader(usage, lambda: clock[0])
        acme, other = ("2027-01", "acme"), ("2027-01", "other")
        for spent, now_s, known in ((5, 0.0, 5), (6, 0.9, 5), (7, 1.0, 7)):
            clock[0] = now_s
            await usage.charge(*acme, {"r1": Used(1, spent)})
            pages = await asyncio.gather(*(reader.read([acme, other]) for _ in range(3)))
            assert [total(found[acme]).tokens for found in pages] == [known] * 3
            assert total(pages[0][other]) == Used()
        clock[0] = 9.0
        assert (await reader.read([other])).keys() == {other}, "what nobody asks for is forgotten"

    run(tmp_path, test)
