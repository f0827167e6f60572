"""Two tenants on the real stack, two routers before a prefill and a decode engine, and an operator at the page."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from playwright.sync_api import Page, expect

from router._generated.headrace.v1 import inference_pb2 as pb
from router._generated.headrace.v1 import inference_pb2_grpc as pb_grpc
from router.admin_tokens import digest_of
from tests.admin_server import OPERATOR, tokens_file
from tests.dashboard.browser import chromium
from tests.engine_counters import wait_until
from tests.stack import HEADRACE, Stack, running_stack

pytestmark = [pytest.mark.cluster, pytest.mark.own_cluster, pytest.mark.timeout(600)]

ACME, OTHER, SMALL, EXPIRED = "hr-acme", "hr-other", "hr-small", "hr-expired"
BUDGET_TOKENS = 240
BLOCK_SIZE_TOKENS = 32


@dataclass(frozen=True)
class World:
    """The stack, as its clients and its operators have it."""

    stack: Stack
    model: str
    folder: Path

    def post(self, key: str | None, route: str = "/v1/completions", **fields: Any) -> httpx.Response:
        """One request, on a connection of its own: the kernel gives it to either router."""
        headers = {"x-request-id": fields.pop("request_id", ""), **fields.pop("headers", {})}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        body = {"model": self.model, "max_tokens": 4, "temperature": 0, **fields}
        return httpx.post(f"{self.stack.http_url}{route}", json=body, headers=headers, timeout=120)

    def status(self, key: str | None) -> int:
        """Of a small completion."""
        return self.post(key, prompt="one two").status_code

    def call(self, key: str | None) -> str:
        """The same over gRPC: how it ends."""
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        with grpc.insecure_channel(self.stack.grpc_target) as channel:
            try:
                pb_grpc.InferenceStub(channel).ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=60)
                request = pb.GenerateRequest(model=self.model, prompt="one two")
                list(pb_grpc.InferenceStub(channel).Generate(request, metadata=metadata, timeout=120))
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    def ask(self, path: str, token: str = OPERATOR) -> httpx.Response:
        """The admin API."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.get(f"{self.stack.admin_url}{path}", headers=headers, timeout=30)

    def headrace(self, *arguments: str) -> str:
        """An operator's command; what it prints."""
        options = ("--admin", self.stack.admin_url, "--token-file", str(self.folder / "token"))
        done = subprocess.run([HEADRACE, *arguments, *options], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    def made_key(self, *arguments: str, name: str) -> str:
        """A key from `headrace keys create` or `rotate`."""
        self.headrace("keys", *arguments, "--into", str(self.folder / name))
        return (self.folder / name).read_text().strip()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tenants")
    (folder / "token").write_text(OPERATOR)
    patient = {"ttft_s": 200, "tpot_s": 20, "deadline_s": 300}
    config = {
        "engine": {"dtype": "float32", "max_model_len_tokens": 2304},
        "router": {"hand_off": "always", "replicas": 2},
        "slo": {"classes": {"chat": patient, "interactive": patient}, "default_class": "chat"},
        "admin": {"tokens_file": str(tokens_file(folder))},
        "identity": {
            "required": True,
            "keys": {
                digest_of(ACME): {"tenant": "acme"},
                digest_of(OTHER): {"tenant": "other"},
                digest_of(SMALL): {"tenant": "small"},
                digest_of(EXPIRED): {"tenant": "acme", "expires_at": "2026-01-01T00:00:00Z"},
            },
            "tenants": {"small": {"budget_tokens": BUDGET_TOKENS}},
        },
    }
    with running_stack(folder / "headrace.yaml", config, "--pools", "1P1D") as stack:
        stack.wait_for_ready()
        headers = {"authorization": f"Bearer {ACME}"}
        cards = httpx.get(f"{stack.http_url}/v1/models", headers=headers, timeout=30).json()
        yield World(stack, cards["data"][0]["id"], folder)


def test_keys_are_enforced_and_admin_routes_are_closed(world: World) -> None:
    revoked = world.made_key("create", "acme", name="revoked")
    wait_until(lambda: {world.status(revoked) for _ in range(4)} == {200}, "both routers know the key")
    (made,) = [row for row in world.ask("/keys").json() if row["source"] == "redis"]
    assert "is revoked" in world.headrace("keys", "revoke", made["id"])
    wait_until(lambda: {world.status(revoked) for _ in range(6)} == {401}, "no router takes it any more")
    bodies = set()
    for key in (None, "hr-wrong", EXPIRED, revoked):
        response = world.post(key, prompt="one two")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        bodies.add(json.dumps(response.json()))
        assert world.call(key) == "UNAUTHENTICATED"
    assert len(bodies) == 1, "nobody learns what is wrong with a key"
    for key in (ACME, OTHER):
        assert (world.status(key), world.call(key)) == (200, "OK")
    for path in ("/keys", "/tenants", "/fleet", "/decisions", "/events"):
        assert world.ask(path, token="").status_code == 401
        assert world.ask(path, token=ACME).status_code == 401, "a client's key operates nothing"


def test_keys_are_rotated_without_a_failed_request(world: World) -> None:
    old = world.made_key("create", "acme", name="old")
    wait_until(lambda: {world.status(old) for _ in range(4)} == {200}, "both routers know the key")
    key, statuses, stop = [old], [], threading.Event()

    def client() -> None:
        while not stop.is_set():
            statuses.append(world.status(key[0]))

    clients = [threading.Thread(target=client) for _ in range(2)]
    for one in clients:
        one.start()
    try:
        made = next(row for row in world.ask("/keys").json() if row["source"] == "redis" and row["state"] == "active")
        new = world.made_key("rotate", made["id"], name="new")
        wait_until(lambda: {world.status(new) for _ in range(4)} == {200}, "both routers know the new one")
        key[0] = new
        time.sleep(2.0)  # what is under way with the old one ends
        world.headrace("keys", "revoke", made["id"])
        wait_until(lambda: {world.status(old) for _ in range(4)} == {401}, "the old one is refused")
    finally:
        stop.set()
        for one in clients:
            one.join()
    assert len(statuses) > 5 and set(statuses) == {200}


def prompts(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same question in each form that computes keys and values."""
    text = f"{name}: " + " ".join(f"fact {number} is {number * 7 % 13}." for number in range(40))
    yield "/v1/completions", {"prompt": text}
    yield "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}


def test_no_tenant_finds_what_another_has_cached(world: World) -> None:
    def ask(key: str, route: str, **fields: Any) -> tuple[int, str]:
        answer = world.post(key, route, **fields).json()
        choice = answer["choices"][0]
        cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return cached, choice["text"] if "text" in choice else choice["message"]["content"]

    for route, fields in prompts("a"):
        first, answer = ask(ACME, route, **fields)
        assert first < BLOCK_SIZE_TOKENS
        theirs, same_answer = ask(OTHER, route, **fields)
        assert theirs < BLOCK_SIZE_TOKENS, "found what another tenant sent"
        assert same_answer == answer, "a salt changes where blocks are found, not what is answered"
        again, _ = ask(ACME, route, **fields)
        assert again >= 4 * BLOCK_SIZE_TOKENS, "its own it finds"
        guess, _ = ask(OTHER, route, cache_salt="a-guess", **fields)
        assert guess < BLOCK_SIZE_TOKENS


def test_a_budget_holds_over_both_routers_and_each_request_is_charged_once(world: World) -> None:
    spent, ids = 0, []
    for turn in range(100):
        response = world.post(SMALL, prompt=f"number {turn} is", request_id=f"small-{turn}")
        if response.status_code == 200:
            spent += response.json()["usage"]["total_tokens"]
            ids.append(f"small-{turn}")
            continue
        assert (response.status_code, response.json()["error"]["code"]) == (429, "insufficient_quota")
        if int(response.headers["retry-after"]) > 1:  # a 1 is for what the other router has not told yet
            break
    one = spent // len(ids) + 4
    assert BUDGET_TOKENS - 2 * one <= spent <= BUDGET_TOKENS + BUDGET_TOKENS // 2
    assert world.call(SMALL) == "RESOURCE_EXHAUSTED"
    assert world.status(OTHER) == 200

    def used() -> Any:
        return world.ask("/tenants/small").json()["used"]

    wait_until(lambda: used()["prompt_tokens"] + used()["output_tokens"] >= spent, "all of it is charged")
    charged = used()
    assert (charged["requests"], charged["prompt_tokens"] + charged["output_tokens"]) == (len(ids), spent)
    routers = {world.ask(f"/decisions/{name}").json()["router"] for name in ids}
    assert len(routers) == 2, "both had a part in it"


def test_an_operator_walks_the_page(world: World) -> None:
    """Load is seen, a worker is drained and comes back, and a rejected request says why."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        said: list[str] = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{world.stack.admin_url}/")
        page.get_by_label("Token").fill(OPERATOR)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Live", exact=True)).to_be_visible(timeout=30_000)
        assert world.post(OTHER, prompt="see this", request_id="seen").status_code == 200
        seen = page.get_by_role("table", name="Newest decisions").get_by_role("row").filter(has_text="seen")
        expect(seen).to_contain_text("done", timeout=30_000)
        _drain(world, page)
        late = {"x-headrace-class": "interactive", "x-headrace-ttft-s": "0.000001"}
        assert world.post(ACME, prompt="too late", request_id="too-late", headers=late).status_code == 429
        page.get_by_role("link", name="first token too late").click(timeout=30_000)
        page.get_by_role("button", name="too-late").click()
        story = page.get_by_role("dialog", name="Request too-late")
        expect(story).to_contain_text("Rejected: first token too late")
        expect(story).to_contain_text("acme")
        assert said == []


def _drain(world: World, page: Page) -> None:
    worker = page.get_by_role("table", name="Decode workers").get_by_role("row").nth(1)
    for button, status in (("Drain", 503), ("Undrain", 200)):
        worker.get_by_role("button", name=button).click()
        page.get_by_role("dialog").get_by_role("button", name=button, exact=True).click()
        expect(worker).to_contain_text("draining" if button == "Drain" else "ready", timeout=30_000)
        wait_until(lambda: {world.status(ACME) for _ in range(4)} == {status}, "both routers know")  # noqa: B023
