"""Tenants on two real routers, real Redis and fake engines: keys, limits, budgets, rotation, caches of their own."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
import redis.asyncio
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from router.admin_tokens import digest_of
from tests.admin_server import OPERATOR, VIEWER, headrace, served, tokens_file
from tests.fleet import MODEL, Fleet, fleet
from tests.grpc_door import make_request
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.types import Role

ACME, OTHER, FILED = "hr-acme", "hr-other", "hr-filed"
SLO = {"classes": {"chat": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}}}
IDENTITY: dict[str, Any] = {
    "required": True,
    "poll_s": 0.1,
    "keys": {digest_of(ACME): {"tenant": "acme"}, digest_of(OTHER): {"tenant": "other"}},
}


@dataclass
class World:
    """Two routers and their engine."""

    fleet: Fleet
    routers: list[str]
    targets: list[str]
    admin: str
    folder: Path
    stack: AsyncExitStack
    audit: list[dict[str, Any]] = field(default_factory=list)

    @property
    def options(self) -> tuple[str, ...]:
        """Of commands."""
        return ("--admin", self.admin, "--token-file", str(self.folder / "token"))

    async def complete(self, key: str | None, at: int = 0, **fields: Any) -> tuple[int, Any, dict[str, str]]:
        """Status, answer and headers of one completion that is not streamed."""
        body = {"model": MODEL, "prompt": "hello there", "max_tokens": 4, **fields}
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with self.fleet.session.post(
            f"{self.routers[at]}/v1/completions", json=body, headers=headers
        ) as response:
            names = {name.lower(): value for name, value in response.headers.items()}
            return response.status, await response.json(), names

    async def call(self, key: str | None, at: int = 0) -> str:
        """The same over gRPC: what it ends with."""
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        async with grpc.aio.insecure_channel(self.targets[at]) as channel:
            request = make_request(prompt="hello there", sampling={"maxTokens": 4})
            try:
                async for _ in pb_grpc.InferenceStub(channel).Generate(request, metadata=metadata):
                    pass
                await pb_grpc.InferenceStub(channel).ListModels(pb.ListModelsRequest(), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                trailing = dict(error.trailing_metadata())
                return f"{error.code().name} {trailing['x-headrace-error-code']}"
        return "OK"

    async def ask(self, method: str, path: str, body: Any = None, token: str = OPERATOR) -> tuple[int, Any]:
        """The admin API's status and answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.fleet.session.request(method, f"{self.admin}{path}", json=body, headers=headers) as response:
            return response.status, await response.json()

    async def used(self, tenant: str) -> dict[str, Any]:
        """What Redis has of it."""
        _, view = await self.ask("GET", f"/tenants/{tenant}")
        found: dict[str, Any] = view["used"]
        return found

    def bodies(self) -> list[Any]:
        """What the engine was sent of completions."""
        sent = [seen.body for seen in self.fleet.engines["m1"].requests if seen.route == "/v1/completions"]
        return [body for body in map(json.loads, sent) if body["prompt"] != "a"]  # which probes ask


def run(
    folder: Path, test: Callable[[World], Awaitable[None]], identity: dict[str, Any] | None = None, **sections: Any
) -> None:
    async def body() -> None:
        tokens = tokens_file(folder)
        (folder / "token").write_text(OPERATOR + "\n")
        made = {
            "slo": SLO,
            "identity": {**IDENTITY, **(identity or {})},
            "admin": {"port": 0, "tokens_file": str(tokens)},
            "board": {"report_interval_s": 0.05},
            "router": {"hand_off": "never"},
            **sections,
        }
        async with fleet(folder, **made) as running:
            await running.add(Role.MIXED, "m1", Plan(timing=Timing(decode_s_per_token=0.001)))
            routers, targets = [], []
            for _ in range(2):
                await running.start_router()
                await running.wait_for_workers(["m1"])
                routers.append(running.url)
                targets.append(running.grpc_target)
            async with served(running.config, running.redis_url) as url, AsyncExitStack() as stack:
                await test(World(running, routers, targets, url, folder, stack))

    asyncio.run(asyncio.wait_for(body(), 120))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


def test_keys_are_enforced_over_http_and_grpc_and_wrong_expired_and_revoked_ones_look_alike(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        _, expiring = await world.ask("POST", "/keys", {"tenant": "acme", "expires_s": 0.5})
        _, revoked = await world.ask("POST", "/keys", {"tenant": "acme"})

        async def is_known() -> bool:
            return (await world.complete(revoked["key"], 1))[0] == (await world.complete(revoked["key"]))[0] == 200

        await until(is_known)
        assert (await world.ask("DELETE", f"/keys/{revoked['id']}"))[1]["state"] == "revoked"

        async def is_refused() -> bool:
            bad = [await world.complete(key, at) for key in (expiring["key"], revoked["key"]) for at in (0, 1)]
            return {status for status, _, _ in bad} == {401}

        await until(is_refused)
        answers = []
        for at in (0, 1):
            for key in (None, "hr-wrong", expiring["key"], revoked["key"], "a.b.c"):
                status, answer, headers = await world.complete(key, at)
                answers.append((status, json.dumps(answer), headers["www-authenticate"]))
                assert await world.call(key, at) == "UNAUTHENTICATED invalid_api_key"
            assert (await world.complete(ACME, at))[0] == 200
            assert await world.call(ACME, at) == "OK"
        assert len(set(answers)) == 1, answers
        error = json.loads(answers[0][1])["error"]
        assert (answers[0][0], error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
        for path, wanted in (("/v1/models", 401), ("/openapi.json", 401), ("/healthz", 200), ("/metrics", 200)):
            async with world.fleet.session.get(f"{world.routers[0]}{path}") as response:
                assert response.status == wanted, path
        assert (await world.used("acme"))["requests"] > 0

    run(tmp_path, test)


def test_models_and_classes_that_are_not_open_are_403(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        status, answer, _ = await world.complete(ACME)
        assert (status, answer["error"]["code"]) == (403, "model_not_allowed")
        assert await world.call(ACME) == "PERMISSION_DENIED model_not_allowed"
        headers = {"Authorization": f"Bearer {ACME}"}
        async with world.fleet.session.get(f"{world.routers[0]}/v1/models", headers=headers) as response:
            assert (await response.json())["data"] == []
        headers = {"Authorization": f"Bearer {OTHER}", "x-headrace-class": "batch"}
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 2}
        async with world.fleet.session.post(
            f"{world.routers[0]}/v1/completions", json=body, headers=headers
        ) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "class_not_allowed")
        status, refused = await world.ask("POST", "/keys", {"tenant": "other", "class": "batch"})
        assert (status, refused["error"]["code"]) == (422, "class_not_open"), "its requests would run as another"

    classes = {**SLO["classes"], "batch": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}}
    tenants = {"acme": {"models": ["large"]}, "other": {"classes": ["chat"]}}
    run(tmp_path, test, {"tenants": tenants}, slo={"classes": classes})


def test_a_budget_is_global_over_routers_and_counts_each_request_once(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        spent, turn = 0, 0
        refused: list[tuple[int, str]] = []
        while len(refused) < 4:  # each of the two, twice
            status, answer, headers = await world.complete(ACME, turn % 2)
            turn += 1
            if status == 200:
                spent += answer["usage"]["total_tokens"]
                assert turn < 100
                continue
            assert (status, answer["error"]["type"]) == (429, "insufficient_quota")
            if int(headers["retry-after"]) > 1:  # a "1" is for what the other router has not told yet
                refused.append((turn % 2, answer["error"]["code"]))
            await asyncio.sleep(0.06)
        one = 20
        assert 300 - 2 * one <= spent <= 300 + max(150, one), "(routers - 1) x the larger of a share and a request"
        assert {at for at, _ in refused} == {0, 1}
        assert await world.call(ACME) == "RESOURCE_EXHAUSTED insufficient_quota"
        assert (await world.complete(OTHER))[0] == 200

        async def is_charged() -> bool:
            used = await world.used("acme")
            return bool(used["prompt_tokens"] + used["output_tokens"] == spent)

        await until(is_charged)
        used = await world.used("acme")
        assert used["left_tokens"] == max(0, 300 - spent)
        assert (await world.ask("PUT", "/tenants/acme", {"budget_tokens": 100_000}))[0] == 200

        async def has_more() -> bool:
            return {(await world.complete(ACME, at))[0] for at in (0, 1)} == {200}

        await until(has_more)

    run(tmp_path, test, {"tenants": {"acme": {"budget_tokens": 300}}})


def test_requests_a_minute_are_global_over_routers(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        statuses = []
        for turn in range(20):
            status, answer, headers = await world.complete(ACME, turn % 2)
            statuses.append(status)
            if status == 429:
                assert answer["error"]["code"] == "rate_limit_exceeded"
                assert 1 <= int(headers["retry-after"]) <= 120
            await asyncio.sleep(0.1)
        assert 5 <= statuses.count(200) <= 6 + 3
        assert (await world.complete(OTHER))[0] == 200

    run(tmp_path, test, {"tenants": {"acme": {"requests_per_min": 6}}})


def test_what_is_refused_is_counted_once_whichever_way_it_came(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async def counted() -> dict[str, float]:
            async with world.fleet.session.get(f"{world.routers[0]}/metrics") as response:
                lines = (await response.text()).splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
            return {name.removeprefix("headrace_"): float(value) for name, value in values.items()}

        _, answer, _ = await world.complete(ACME)
        spent = answer["usage"]["total_tokens"]
        assert await world.call(None) == "UNAUTHENTICATED invalid_api_key"
        assert (await world.complete("hr-wrong"))[0] == 401
        async with world.fleet.session.get(f"{world.routers[0]}/v1/models") as response:
            assert response.status == 401
        for _ in range(2):  # when it begins: a smaller one would have been let in
            assert (await world.complete(ACME, max_tokens=500))[1]["error"]["code"] == "insufficient_quota"
        assert (await world.ask("PUT", "/tenants/acme", {"budget_tokens": spent}))[0] == 200

        async def is_over() -> bool:
            return bool((await counted()).get('tenant_budget_tokens{tenant="acme"}') == spent)

        await until(is_over)
        assert (await world.complete(ACME))[0] == 429  # before the work: nothing would be let in
        assert await world.call(ACME) == "RESOURCE_EXHAUSTED insufficient_quota"
        assert (await world.complete(OTHER))[1]["error"]["code"] == "model_not_allowed"
        assert (await world.complete(OTHER, model=7))[0] == 400
        found = await counted()
        rejected = {name: value for name, value in found.items() if name.startswith("rejected_total") and value}
        assert rejected == {
            'rejected_total{reason="invalid_api_key",service_class="none"}': 3,
            'rejected_total{reason="insufficient_quota",service_class="chat"}': 4,
            'rejected_total{reason="model_not_allowed",service_class="chat"}': 1,
        }
        statuses = {
            name.split('status="')[1][:3]: value for name, value in found.items() if name.startswith("requests_total")
        }
        assert statuses == {"200": 1, "400": 1, "401": 2, "403": 1, "429": 4}
        assert found['tenant_requests_total{outcome="rejected",tenant="acme"}'] == 4
        assert found['tenant_refused_total{reason="insufficient_quota",tenant="acme"}'] == 4
        assert found['tenant_refused_total{reason="model_not_allowed",tenant="other"}'] == 1
        kinds = {kind: found[f'tenant_tokens_total{{kind="{kind}",tenant="acme"}}'] for kind in ("prompt", "output")}
        assert sum(kinds.values()) == spent and kinds["output"] == answer["usage"]["completion_tokens"]
        assert found['tenant_budget_left_tokens{tenant="acme"}'] == 0
        assert not any(name.startswith("identity_up") for name in found), "nothing is read from files"

        async def is_told() -> bool:
            _, view = await world.ask("GET", "/tenants/acme")
            _, report = await world.ask("GET", "/slo")
            chat = [one["rejected"] for one in report["classes"] if one["class_name"] == "chat"]
            told = [rejected.get("insufficient_quota") for rejected in chat]
            return bool(view["refused"] == {"insufficient_quota": 4} and told == [4])

        await until(is_told)

    run(tmp_path, test, {"tenants": {"acme": {"budget_tokens": 300}, "other": {"models": ["large"]}}})


def test_a_stream_that_its_client_leaves_is_charged_for_what_was_sent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.fleet.engines["m1"].set_plan(Plan(timing=Timing(decode_s_per_token=0.02)))
        body = {"model": MODEL, "prompt": "hello there", "max_tokens": 500, "stream": True}
        headers = {"Authorization": f"Bearer {ACME}"}
        async with world.fleet.session.post(
            f"{world.routers[0]}/v1/completions", json=body, headers=headers
        ) as response:
            for _ in range(10):
                await response.content.readline()
            response.close()

        async def is_charged() -> bool:
            return bool((await world.used("acme"))["requests"] == 1)

        await until(is_charged)
        used = await world.used("acme")
        assert used["prompt_tokens"] == len("hello there") or used["prompt_tokens"] > 0
        assert 4 <= used["output_tokens"] < 400

    run(tmp_path, test)


def test_keys_are_rotated_without_a_failed_request(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        code, text = await headrace("keys", "create", "acme", *world.options, "--into", str(tmp_path / "key"))
        assert code == 0, text
        key = [(tmp_path / "key").read_text().strip()]

        async def is_known() -> bool:
            return {(await world.complete(key[0], at))[0] for at in (0, 1)} == {200}

        await until(is_known)
        statuses: list[int] = []
        stop = asyncio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                statuses.append((await world.complete(key[0], number % 2))[0])

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        _, listed = await world.ask("GET", "/keys")
        old = next(view for view in listed if view["source"] == "redis")
        code, text = await headrace("keys", "rotate", old["id"], *world.options, "--into", str(tmp_path / "new"))
        assert code == 0, text
        old_key, new_key = key[0], (tmp_path / "new").read_text().strip()

        async def is_new_known() -> bool:
            return {(await world.complete(new_key, at))[0] for at in (0, 1)} == {200}

        await until(is_new_known)
        key[0] = new_key
        await asyncio.sleep(0.2)
        before = len(statuses)
        code, text = await headrace("keys", "revoke", old["id"], *world.options)
        assert code == 0 and "acme is revoked" in text

        async def is_old_refused() -> bool:
            return {(await world.complete(old_key, at))[0] for at in (0, 1)} == {401}

        await until(is_old_refused)
        stop.set()
        await asyncio.gather(*clients)
        assert len(statuses) > before and set(statuses) == {200}
        code, text = await headrace("keys", "list", *world.options)
        assert code == 0 and "revoked" in text and "active" in text and old_key not in text and new_key not in text
        code, text = await headrace("tenants", "set", "acme", "requests_per_min=1000", *world.options)
        assert (code, text.strip()) == (0, "acme: requests_per_min=1000")
        code, text = await headrace("tenants", "set", "acme", "models=[fake]", "requests_per_min=", *world.options)
        assert (code, text.strip()) == (0, "acme: models=[fake]")
        code, text = await headrace("tenants", "usage", *world.options)
        assert code == 0 and "acme" in text

    run(tmp_path, test)


def test_a_mounted_secret_and_a_provider_are_read_again_when_they_change(tmp_path: Path) -> None:
    keys, jwks = tmp_path / "keys.yaml", tmp_path / "jwks.json"
    keys.write_text("{}")
    private = ec.generate_private_key(ec.SECP256R1())

    def write_jwks(kid: str) -> None:
        jwks.write_text(json.dumps({"keys": [{**json.loads(ECAlgorithm.to_jwk(private.public_key())), "kid": kid}]}))

    def token(kid: str) -> str:
        claims = {"iss": "i", "aud": "a", "sub": "joan", "exp": 4_000_000_000}
        return jwt.encode(claims, private, "ES256", {"kid": kid})

    write_jwks("one")

    async def test(world: World) -> None:
        async def status(key: str, wanted: int) -> None:
            async def is_so() -> bool:
                return {(await world.complete(key, at))[0] for at in (0, 1)} == {wanted}

            await until(is_so)

        await status(FILED, 401)
        keys.write_text(yaml.safe_dump({digest_of(FILED): {"tenant": "filed"}}))
        await status(FILED, 200)
        (listed,) = (key for key in (await world.ask("GET", "/keys"))[1] if key["tenant"] == "filed")
        assert (listed["source"], listed["state"]) == ("config", "active")
        assert (await world.ask("DELETE", f"/keys/{listed['id']}"))[1]["error"]["code"] == "key_in_file"
        assert {view["name"]: view["num_keys"] for view in (await world.ask("GET", "/tenants"))[1]}["filed"] == 1
        keys.write_text("not: [valid")
        await asyncio.sleep(0.3)
        await status(FILED, 200)
        assert (await world.ask("GET", "/keys"))[0] == 503
        keys.write_text("{}")
        await status(FILED, 401)
        await status(token("one"), 200)
        await status(token("two"), 401)
        write_jwks("two")
        await status(token("two"), 200)
        await status(token("one"), 401)

    provider = {"issuer": "i", "audience": "a", "jwks_file": str(jwks)}
    run(tmp_path, test, {"keys_file": str(keys), "jwt": provider})


PROMPT = "a long text that many would like to have cached already, " * 12


async def cached(world: World, key: str | None, at: int = 0, **fields: Any) -> int:
    status, answer, _ = await world.complete(key, at, prompt=PROMPT, **fields)
    assert status == 200, answer
    tokens: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_no_tenant_finds_what_another_has_cached_and_each_finds_its_own(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert await cached(world, ACME) == 0
        assert await cached(world, OTHER) == 0, "the same text of another tenant"
        assert await cached(world, ACME, 1) > 500, "its own, by the other router too: their salts are the same"
        assert await cached(world, OTHER, 1) > 500
        stolen = world.bodies()[0]["cache_salt"]
        assert len(stolen) == 22
        assert await cached(world, OTHER, cache_salt=stolen) == 0, "who knows a salt cannot use it"
        assert await cached(world, OTHER, cache_salt="team-2") == 0, "a client's own salt divides its tenant's cache"
        assert await cached(world, OTHER, cache_salt="team-2") > 500
        assert await cached(world, ACME, cache_salt="team-2") == 0
        async with redis.asyncio.Redis.from_url(world.fleet.redis_url) as client:
            secret = await client.hget("{headrace}:salt", "secret")
            await client.flushdb()

            async def is_back() -> bool:
                return bool(await client.hget("{headrace}:salt", "secret") == secret)

            await until(is_back)
        assert await cached(world, ACME) > 500

    run(tmp_path, test)


def test_the_routers_index_has_the_salts_that_engines_are_sent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        num_blocks = len(PROMPT) // 32
        for number, (key, salt) in enumerate([(ACME, None), (OTHER, None), (OTHER, "a"), (ACME, "a")]):
            fields = {} if salt is None else {"cache_salt": salt}
            assert await cached(world, key, 1, **fields) == 0
            await world.fleet.wait_for_metric("headrace_index_blocks", (number + 1) * num_blocks)
            assert await cached(world, key, 1, **fields) == num_blocks * 32
        text = await world.fleet.metrics()
        assert 'headrace_parity_error{model="fake"} 0.0' in text
        assert 'headrace_parity_trusted{model="fake"} 1.0' in text

    run(tmp_path, test)


@pytest.mark.parametrize("isolate", ["auto", "off"])
def test_one_tenant_alone_and_those_who_want_it_share(tmp_path: Path, isolate: str) -> None:
    async def test(world: World) -> None:
        assert await cached(world, ACME) == 0
        assert await cached(world, ACME, 1) > 500
        assert not any("cache_salt" in body for body in world.bodies())
        if isolate == "auto":
            _, made = await world.ask("POST", "/keys", {"tenant": "new"})

            async def is_known() -> bool:
                return {(await world.complete(made["key"], at))[0] for at in (0, 1)} == {200}

            await until(is_known)
            assert await cached(world, made["key"]) == 0, "isolated from the moment there are two"

    keys = {digest_of(ACME): {"tenant": "acme"}}
    if isolate == "off":
        keys[digest_of(OTHER)] = {"tenant": "other"}
    run(tmp_path, test, {"keys": keys, "isolate_caches": isolate})


def test_admin_routes_are_closed_by_default_and_changes_are_audited_without_keys(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("headrace.audit")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            for token, status in (("", 401), ("hra-wrong", 401), (VIEWER, 403), (ACME, 401)):
                assert (await world.ask("POST", "/keys", {"tenant": "acme"}, token))[0] == status
                assert (await world.ask("PUT", "/tenants/acme", {}, token))[0] == status
            assert (await world.ask("GET", "/keys", token=""))[0] == 401
            assert (await world.ask("GET", "/tenants", token=VIEWER))[0] == 200
            status, made = await world.ask("POST", "/keys", {"tenant": "acme", "note": "for tests"})
            assert status == 200
            assert (await world.ask("POST", "/keys", {"tenant": "acme", "class": "gold"}))[0] == 400
            assert (await world.ask("POST", "/keys", {"tenant": "a b"}))[0] == 400
            assert (await world.ask("DELETE", f"/keys/{digest_of(ACME)[:16]}"))[1]["error"]["code"] == "key_in_file"
            assert (await world.ask("DELETE", "/keys/none"))[0] == 404
            assert (await world.ask("PUT", "/tenants/acme", {"budget_tokens": -1}))[0] == 400
            closed_to = {"classes": ["other"]}
            assert (await world.ask("PUT", "/tenants/acme", closed_to))[0] == 400, "there is no such class"
            assert (await world.ask("PUT", "/tenants/acme", {"weight": 2}))[1]["source"] == "admin"
            assert (await world.ask("DELETE", "/tenants/acme"))[1]["source"] == "default"
            _, listed = await world.ask("GET", "/keys", token=VIEWER)
            assert made["key"] not in json.dumps(listed) and digest_of(made["key"]) not in json.dumps(listed)
        finally:
            logger.removeHandler(handler)
        parsed = [json.loads(line) for line in lines]
        done = {"who": "olga", "action": "POST /keys", "outcome": "done", "tenant": "acme", "key": made["id"]}
        assert done.items() <= next(line for line in parsed if line["status"] == 200).items()
        assert sum(line["outcome"] == "refused" for line in parsed) >= 8
        assert made["key"] not in "".join(lines)
        async with redis.asyncio.Redis.from_url(world.fleet.redis_url) as client:
            dumped = str(await client.hgetall("{headrace}:keys"))
        assert made["key"] not in dumped and digest_of(made["key"]) in dumped

    run(tmp_path, test)
    asyncio.run(closed(tmp_path))


async def closed(folder: Path) -> None:
    async with fleet(folder / "closed", admin={"port": 0}) as made, served(made.config, made.redis_url) as url:
        for method, path in (("POST", "/keys"), ("DELETE", "/keys/x"), ("PUT", "/tenants/x"), ("DELETE", "/tenants/x")):
            async with made.session.request(method, f"{url}{path}", json={"tenant": "x"}) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (403, "admin_closed")
