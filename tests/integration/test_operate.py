"""Operators at work: real routers, real Redis, fake engines, the admin API over HTTP and the commands as typed."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
import redis.asyncio

from tests.admin_server import OPERATOR, VIEWER, headrace, served, tokens_file
from tests.fleet import MODEL, Fleet, fleet
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.types import Role

SLO = {
    "classes": {
        "chat": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300},
        "batch": {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300},
    }
}
SLOW = Plan(timing=Timing(decode_s_per_token=0.01))


@dataclass
class World:
    """Two routers, their engines, and an admin API."""

    fleet: Fleet
    routers: list[str]
    admin: str
    token: Path
    audit: list[dict[str, Any]] = field(default_factory=list)

    @property
    def options(self) -> tuple[str, ...]:
        """Of commands."""
        return ("--admin", self.admin, "--token-file", str(self.token))

    async def ask(self, method: str, path: str, token: str = OPERATOR, body: Any = None) -> tuple[int, Any]:
        """Status and parsed answer."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{self.admin}{path}"
        async with self.fleet.session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def row(self, name: str) -> dict[str, Any]:
        """A worker, as /fleet has it."""
        _, found = await self.ask("GET", "/fleet")
        return next(row for row in found["workers"] if row["id"] == name)

    async def complete(self, router: str, prompt: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
        """A streamed completion: status, text, headers."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "stream": True}
        async with self.fleet.session.post(f"{router}/v1/completions", json=body, headers=headers) as response:
            return response.status, await response.text(), response.headers


def run(folder: Path, test: Callable[[World], Awaitable[None]], *names: str, **router: Any) -> None:
    async def body() -> None:
        tokens = tokens_file(folder)
        token = folder / "token"
        token.write_text(OPERATOR + "\n")
        sections = {"slo": SLO, "admin": {"port": 0, "tokens_file": str(tokens)}}
        async with fleet(folder, router={"hand_off": "never", **router}, **sections) as made:
            for name in names or ("m1", "m2"):
                await made.add(Role.MIXED, name, SLOW)
            routers = []
            for _ in range(2):
                await made.start_router()
                await made.wait_for_workers(names or ("m1", "m2"))
                routers.append(made.url)
            with audited() as lines:
                async with served(made.config, made.redis_url) as url:
                    await test(World(made, routers, url, token, lines))

    asyncio.run(body())


class audited:  # noqa: N801  reads as the function it is
    """Audit lines, parsed as they come."""

    def __enter__(self) -> list[dict[str, Any]]:
        self._lines: list[dict[str, Any]] = []
        self._handler = logging.Handler()
        self._handler.emit = lambda record: self._lines.append(json.loads(record.getMessage()))  # type: ignore[method-assign]
        self._logger = logging.getLogger("headrace.audit")
        self._logger.addHandler(self._handler)
        self._logger.setLevel(logging.INFO)
        return self._lines

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def traffic(world: World) -> AsyncIterator[list[tuple[int, str]]]:
    """Eight clients without a pause, over both routers; what each answer was."""
    answers: list[tuple[int, str]] = []
    stop = asyncio.Event()

    async def client(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            status, text, _ = await world.complete(world.routers[turn % 2], f"{number} asks for the {turn}th time")
            answers.append((status, text))

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(client(number))
        try:
            yield answers
        finally:
            stop.set()


def test_two_routers_drain_a_worker_under_traffic_and_no_request_fails(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        m1, m2 = world.fleet.engines["m1"], world.fleet.engines["m2"]
        async with traffic(world) as answers:

            async def both_work() -> bool:
                return min(m1.counters.generation_tokens, m2.counters.generation_tokens) > 100

            await until(both_work)
            code, said = await headrace("drain", "m1", *world.options, "--wait", "--reason", "a new driver")
            assert code == 0, said
            assert "m1 gets nothing new (by olga)\nm1 has nothing left to do" in said
            given = m1.counters.generation_tokens
            so_far = len(answers)
            row = await world.row("m1")
            assert row["phase"] == "draining"
            assert row["routed_seqs"] == row["running_seqs"] == 0
            assert {**row["drain"], "at_s": 0} == {
                **{"by": "olga", "at_s": 0, "reason": "a new driver", "routers_told": 2, "is_done": True}
            }
            for router in world.routers:
                world.fleet.url = router
                assert await world.fleet.ready_workers() == ["m2"]

            async def many_more() -> bool:
                return len(answers) > so_far + 50

            await until(many_more)
            assert m1.counters.generation_tokens == given, "nothing new"
            first_at_s = row["drain"]["at_s"]
            _, again = await world.ask("POST", "/workers/m1/drain", body={"reason": "me too"})
            assert (again["intent"]["at_s"], again["intent"]["reason"]) == (first_at_s, "a new driver")
            code, said = await headrace("undrain", "m1", *world.options)
            assert (code, said) == (0, "m1 gets requests again\n")

            async def works_again() -> bool:
                return m1.counters.generation_tokens > given

            await until(works_again)
        assert {status for status, _ in answers} == {200}
        assert all(text.rstrip().endswith("data: [DONE]") for _, text in answers)
        assert (await world.row("m1"))["drain"] is None

    run(tmp_path, test)


def test_a_restart_does_not_undrain_and_neither_does_a_router_that_starts_later(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert (await world.ask("POST", "/workers/m1/drain"))[0] == 200
        world.fleet.leaving["m1"].set()

        async def is_gone() -> bool:
            _, found = await world.ask("GET", "/fleet")
            return found["absent_drains"] == ["m1"] and len(found["workers"]) == 1

        await until(is_gone)
        await world.fleet.join(world.fleet.engines["m1"].address, Role.MIXED, "m1")

        async def is_back() -> bool:
            _, found = await world.ask("GET", "/fleet")
            return len(found["workers"]) == 2

        await until(is_back)
        await world.fleet.start_router()
        await world.fleet.wait_for_workers(["m2"])
        for router in (*world.routers, world.fleet.url):
            for number in range(4):
                assert (await world.complete(router, f"after the restart, {number}"))[0] == 200
        assert world.fleet.engines["m1"].counters.generation_tokens <= 8, "the probe of `worker join` at most"
        assert (await world.row("m1"))["phase"] == "draining"

    run(tmp_path, test)


def test_a_paused_class_is_turned_away_everywhere_until_it_is_resumed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        _, classes = await world.ask("GET", "/classes", VIEWER)
        assert [(one["name"], one["ttft_s"], one["is_default"]) for one in classes] == [
            ("chat", 200, True),
            ("batch", 200, False),
        ]
        code, said = await headrace("pause", "batch", *world.options, "--retry-after-s", "7")
        assert (code, said) == (0, "new requests of batch are turned away\n")

        async def statuses(name: str) -> list[int]:
            asked = [world.complete(router, "hello", **{"x-headrace-class": name}) for router in world.routers]
            return [status for status, _, _ in await asyncio.gather(*asked)]

        async def is_paused() -> bool:
            return await statuses("batch") == [503, 503]

        await until(is_paused)
        _, text, headers = await world.complete(world.routers[0], "hello", **{"x-headrace-class": "batch"})
        assert json.loads(text)["error"]["code"] == "class_paused"
        assert headers["Retry-After"] == "7"
        assert await statuses("chat") == [200, 200]

        async def is_counted() -> bool:
            _, slo = await world.ask("GET", "/slo?window_s=60")
            by_class = {one["class_name"]: one for one in slo["classes"]}
            turned_away = by_class.get("batch", {"rejected": {}})["rejected"].get("class_paused", 0)
            return bool(turned_away >= 3 and by_class.get("chat", {"met": 0})["met"] >= 2)

        await until(is_counted)
        _, found = await world.ask("GET", "/fleet")
        assert [(one["class_name"], one["by"], one["routers_told"]) for one in found["paused"]] == [
            ("batch", "olga", 2)
        ]
        assert (await headrace("resume", "batch", *world.options))[0] == 0

        async def is_open() -> bool:
            return await statuses("batch") == [200, 200]

        await until(is_open)

    run(tmp_path, test)


def test_redis_that_loses_everything_is_told_again_what_operators_want(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.ask("POST", "/workers/m1/drain")
        client = redis.asyncio.Redis(unix_socket_path=world.fleet.redis_url.removeprefix("unix://"))

        async def wanted() -> set[bytes]:
            return {bytes(name) for name in await client.hkeys("{headrace}:intents") if isinstance(name, bytes)}

        try:
            assert await wanted() == {b"drain:m1", b"kept"}
            await client.flushall()

            async def is_back() -> bool:
                return await wanted() == {b"drain:m1", b"kept"}

            await until(is_back)
        finally:
            await client.aclose()
        await until(lambda: _draining(world, "m1"))

    run(tmp_path, test)


async def _draining(world: World, name: str) -> bool:
    _, found = await world.ask("GET", "/fleet")
    return any(row["id"] == name and row["phase"] == "draining" for row in found["workers"])


def test_decisions_are_found_explained_and_streamed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        headers = {"Authorization": f"Bearer {VIEWER}"}
        async with world.fleet.session.get(f"{world.admin}/events", headers=headers) as events:
            assert events.content_type == "text/event-stream"
            for number, router in enumerate(world.routers):
                assert (await world.complete(router, "tell me", **{"x-request-id": f"mine-{number}"}))[0] == 200
            status, _, _ = await world.complete(world.routers[0], "too late", **{"x-headrace-ttft-s": "0.000001"})
            assert status == 429
            seen = await asyncio.wait_for(_until_decided(events, {"mine-0", "mine-1"}), timeout=20)
        assert seen["fleet"]["workers"][0]["id"] == "m1"
        assert "classes" in seen["slo"]

        async def found(query: str) -> list[str]:
            _, answer = await world.ask("GET", f"/decisions?{query}", VIEWER)
            return [one["public_id"] for one in answer["decisions"]]

        async def is_shipped() -> bool:
            return len(await found("limit=10")) == 3

        await until(is_shipped)
        assert set(await found("request=mine-")) == {"mine-0", "mine-1"}
        assert set(await found("outcome=done&class=chat")) == {"mine-0", "mine-1"}
        assert await found("class=batch") == []
        (rejected,) = await found("outcome=rejected")
        assert await found("outcome=ttft_infeasible") == [rejected]
        _, brief = await world.ask("GET", "/decisions?request=mine-0")
        (one,) = brief["decisions"]
        assert set(await found(f"worker={one['decode']}")) & {"mine-0"}
        assert one["ttft_s"] > 0
        for name in ("mine-0", one["request_id"]):
            status, whole = await world.ask("GET", f"/decisions/{name}", VIEWER)
            assert (status, whole["public_id"]) == (200, "mine-0")
        assert (await world.ask("GET", "/decisions/nobody"))[1]["error"]["code"] == "decision_not_found"
        assert (await world.ask("GET", "/decisions?limit=0"))[1]["error"]["code"] == "bad_query"
        code, said = await headrace("explain", rejected, *world.options)
        assert code == 0, said
        assert "rejected    ttft_infeasible" in said
        # On the clients' port it takes a token, or router.explain.public.
        url = f"{world.routers[0]}/headrace/decisions/mine-0"
        async with world.fleet.session.get(url) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "decisions_closed")
        async with world.fleet.session.get(url, headers=headers) as response:
            assert response.status == 200

    run(tmp_path, test)


def test_metrics_name_tenants_and_can_be_closed(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        for headers, wanted in (
            ({}, 403),
            ({"Authorization": "Bearer hr-client"}, 403),
            ({"Authorization": f"Bearer {VIEWER}"}, 200),
        ):
            async with world.fleet.session.get(f"{world.routers[0]}/metrics", headers=headers) as response:
                assert response.status == wanted
                assert ("metrics_closed" if wanted == 403 else "headrace_requests_total") in await response.text()
        async with world.fleet.session.get(f"{world.routers[0]}/healthz") as response:
            assert response.status == 200, "a probe has no token"

    run(tmp_path, test, public_metrics=False)


async def _until_decided(events: aiohttp.ClientResponse, wanted: set[str]) -> dict[str, Any]:
    """Read the stream until these requests were told of; the last event of each other kind."""
    last: dict[str, Any] = {}
    kind = ""
    while wanted or not {"fleet", "slo"} <= last.keys():
        line = (await events.content.readline()).decode().rstrip("\n")
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            last[kind] = json.loads(value)
            if kind == "decision":
                wanted -= {last[kind]["public_id"]}
    return last


def test_nobody_changes_anything_without_an_operators_token_and_every_attempt_is_audited(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        attempts = (
            ("", 401, "token_missing", None),
            ("hra-wrong", 401, "invalid_token", None),
            (VIEWER, 403, "not_an_operator", "vic"),
            (OPERATOR, 404, "unknown_worker", "olga"),
        )
        for token, status, code, _ in attempts:
            got, answer = await world.ask("POST", "/workers/m9/drain", token)
            assert (got, answer["error"]["code"]) == (status, code)
        assert [(line["who"], line["status"], line["code"]) for line in world.audit] == [
            (who, status, code) for _, status, code, who in attempts
        ]
        assert [line["outcome"] for line in world.audit] == ["refused", "refused", "refused", "failed"]
        world.audit.clear()
        for path in ("/fleet", "/slo", "/decisions", "/events", "/experts", "/pools", "/session"):
            assert (await world.ask("GET", path, ""))[0] == 401, path
        assert len(world.audit) == 7, "every refused attempt"
        world.audit.clear()
        assert (await world.ask("POST", "/pools/mixed/size", body={"size": 3}))[1]["error"][
            "code"
        ] == "pools_are_elsewhere"
        assert (await world.ask("POST", "/workers/m1%2F1/drain"))[1]["error"]["code"] == "a_rank"
        assert (await world.ask("POST", "/classes/nope/pause"))[1]["error"]["code"] == "unknown_class"
        assert (await world.ask("POST", "/workers/m1/drain", body={"resaon": ""}))[1]["error"]["code"] == "bad_body"
        assert (await world.ask("POST", "/workers/m1/drain"))[0] == 200
        assert {**world.audit[-1], "at_s": 0} == {
            **{"at_s": 0, "who": "olga", "action": "POST /workers/m1/drain", "outcome": "done", "status": 200}
        }
        assert not any(secret in json.dumps(world.audit) for secret in (OPERATOR, VIEWER, "hra-"))
        exit_code, said = await headrace("drain", "m2", "--admin", world.admin)
        assert (exit_code, "HEADRACE_ADMIN_TOKEN_FILE" in said) == (1, True)

    run(tmp_path, test)


def test_a_browser_trades_its_token_for_a_cookie(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address that is no name
        async with aiohttp.ClientSession(cookie_jar=jar) as browser:
            async with browser.post(f"{world.admin}/session", json={"token": "hra-wrong"}) as response:
                assert response.status == 401
            async with browser.post(f"{world.admin}/session", json={"token": OPERATOR}) as response:
                assert (response.status, await response.json()) == (
                    200,
                    {"name": "olga", "role": "operator", "is_closed": False},
                )
                cookie = response.headers["Set-Cookie"]
                assert "HttpOnly" in cookie
                assert "SameSite=Strict" in cookie
                assert OPERATOR not in cookie
                assert "Secure" not in cookie
            login: dict[str, Any] = {"json": {"token": OPERATOR}, "headers": {"x-forwarded-proto": "https"}}
            async with aiohttp.ClientSession() as other, other.post(f"{world.admin}/session", **login) as response:
                assert response.headers["Set-Cookie"].endswith("; Secure")
            async with browser.get(f"{world.admin}/fleet") as response:
                assert response.status == 200
            drain = f"{world.admin}/workers/m1/drain"
            async with browser.post(drain) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (403, "csrf_missing")
            async with browser.post(drain, headers={"x-headrace-csrf": "1"}) as response:
                assert response.status == 200
            async with browser.delete(f"{world.admin}/session") as response:
                assert response.status == 200
            async with browser.get(f"{world.admin}/fleet") as response:
                assert response.status == 401
        assert [line["who"] for line in world.audit if line["action"] == "POST /session"] == [None, "olga", "olga"]

    run(tmp_path, test)


def test_status_top_and_the_document(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        assert (await world.complete(world.routers[0], "hello"))[0] == 200

        async def is_counted() -> bool:
            return bool((await world.ask("GET", "/slo"))[1]["classes"])

        await until(is_counted)
        await world.ask("POST", "/workers/m1/drain", body={"reason": "why not"})
        code, shown = await headrace("status", *world.options)
        assert code == 0, shown
        assert "draining" in shown
        assert "by olga since" in shown
        code, shown = await headrace("top", *world.options, "--once")
        assert code == 0, shown
        assert "2 router(s)" in shown
        assert "100.0%" in shown
        code, shown = await headrace("status", *world.options, "--json")
        assert {row["id"] for row in json.loads(shown)["workers"]} == {"m1", "m2"}
        _, document = await world.ask("GET", "/openapi.json", "")
        assert document["openapi"] == "3.1.0"
        for path in ("/fleet", "/slo", "/decisions", "/session"):
            _, answer = await world.ask("GET", path)
            operation = document["paths"][path]["get"]
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer, {**schema, "components": document["components"]})
        _, history = await world.ask("GET", "/slo/history?window_s=60&points=10")
        assert len(history) == 10

    run(tmp_path, test)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_tokens_reading_is_for_this_machine_and_changing_for_nobody(tmp_path: Path, method: str) -> None:
    async def test() -> None:
        async with (
            fleet(tmp_path) as made,
            served(made.config, made.redis_url) as url,
            aiohttp.ClientSession() as session,
        ):
            path = "/fleet" if method == "GET" else "/workers/m1/drain"
            async with session.request(method, url + path) as response:
                assert response.status == (200 if method == "GET" else 403)
                if method == "POST":
                    assert (await response.json())["error"]["code"] == "admin_closed"
            # A page whose name its owner points to 127.0.0.1, in a browser on this machine.
            async with session.request(method, url + path, headers={"Host": "evil.example:8002"}) as response:
                assert response.status == 403
            async with session.get(f"{url}/healthz", headers={"Host": "evil.example"}) as response:
                assert response.status == 200

    asyncio.run(test())
