"""What a real router shows is what rules and dashboards read; a real Prometheus scrapes it, and an alert fires."""

import asyncio
import fnmatch
import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controlplane.expert_metrics import ExpertMetrics
from tests.documents import documents
from tests.fleet import MODEL, Fleet, fleet
from tests.prometheus import RULES, dashboard_queries, installed, rules, running_prometheus, selectors, shown_series
from workers.fake import Plan
from workers.fake.plan import Action, Fault, Match, Timing
from workers.types import Role

CLASSES = {
    "chat": {"ttft_s": 60.0, "tpot_s": 10.0, "deadline_s": 120.0},
    "hasty": {"ttft_s": 2.0, "tpot_s": 10.0, "deadline_s": 10.0},
}
SLO = {"classes": CLASSES, "default_class": "chat", "trust_tenant_header": True}
PROMPT = "a prompt that is long enough to fill several blocks of the cache " * 6
ADDED_BY_THE_SCRAPE = {"instance", "job", "namespace"}
ADDED_BY_RULES = re.compile(r"namespace_service_class:")


async def stream(made: Fleet, prompt: str, headers: dict[str, str] | None = None, max_tokens: int = 6) -> int:
    """Status of a streamed completion, read to its end."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
    async with made.session.post(f"{made.url}/v1/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status


def run(folder: Path, test: Callable[[Fleet], Awaitable[None]], slo: dict[str, Any]) -> None:
    async def body() -> None:
        async with fleet(folder, slo=slo) as made:
            await test(made)

    asyncio.run(body())


async def eventful(made: Fleet) -> None:
    """A fleet that has seen hand-offs, a failed one, two tenants, cached prompts and an impossible request."""
    fails = Fault(match=Match(route="/v1/completions", nth=3), action=Action.STATUS)
    await made.add(Role.PREFILL, "p1", Plan(faults=(fails,)))
    await made.add(Role.PREFILL, "p2", Plan(faults=(fails,)))
    await made.add(Role.DECODE, "d1")
    await made.start_router()
    await made.wait_for_workers(["p1", "p2", "d1"])
    for number in range(12):
        assert await stream(made, f"{number % 3} {PROMPT}", {"x-headrace-tenant": "acme"}) == 200
    assert (await made.complete(PROMPT))[0] == 200
    assert await stream(made, PROMPT, {"x-headrace-ttft-s": "0.000001"}) == 429


def test_rules_dashboards_and_documents_name_only_what_is_shown(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await eventful(made)
        shown = shown_series([await made.metrics(), ExpertMetrics(lambda: ()).exposition().decode()])
        queries = [(str(rule.get("alert", rule.get("record"))), rule["expr"]) for rule in rules()] + dashboard_queries()
        for where, expression in queries:
            for selector in selectors(expression):
                if ADDED_BY_RULES.match(selector.name or ""):
                    continue
                assert selector.name in shown, f"{where}: nothing is named {selector.name}"
                asked = {matcher.name for matcher in selector.matchers.matchers} - ADDED_BY_THE_SCRAPE
                assert asked <= shown[selector.name] or not shown[selector.name], f"{where}: labels of {selector.name}"

        names = {re.sub("_(bucket|sum|count|created)$", "", name) for name in shown} | set(shown)
        for page in documents():
            unknown = [name for name in page.metrics() if not fnmatch.filter(names, name)]
            assert unknown == [], page

    run(tmp_path, test, SLO)


def test_what_happened_is_counted(tmp_path: Path) -> None:
    async def test(made: Fleet) -> None:
        await eventful(made)
        values = dict(line.rsplit(" ", 1) for line in (await made.metrics()).splitlines() if line[0] != "#")
        count = {name: float(value) for name, value in values.items()}
        failed = count['headrace_failed_hand_offs_total{step="prefill"}']
        assert 1 <= failed <= 2
        assert count['headrace_retries_total{reason="error"}'] == failed
        assert count['headrace_queue_seconds_count{service_class="chat"}'] == 13
        acme = 'headrace_tenant_requests_total{outcome="met",tenant="acme"}'
        assert count[acme] == count['headrace_slo_requests_total{met="yes",promised="yes",service_class="chat"}'] == 12
        assert count['headrace_tenant_requests_total{outcome="not_judged",tenant="default"}'] == 1
        assert count['headrace_tenant_requests_total{outcome="rejected",tenant="default"}'] == 1
        directions = [f'headrace_ttft_error_seconds_count{{direction="{name}"}}' for name in ("early", "late")]
        assert sum(count.get(name, 0.0) for name in directions) == count["headrace_ttft_seconds_count"] == 12
        prompt, reported = (
            count[f'headrace_{name}_total{{model="{MODEL}"}}'] for name in ("prompt_tokens", "cached_tokens_reported")
        )
        assert 0 < reported < prompt
        assert count["headrace_loop_cpu_seconds_total"] > 0
        assert count["headrace_process_cpu_seconds_total"] > 0
        assert count["headrace_loop_turn_seconds_count"] > 0
        assert count['headrace_worker_phase{phase="ready",role="decode",worker="d1"}'] == 1
        assert count["headrace_index_lag_seconds"] >= 0
        await made.wait_for_metric('headrace_worker_nixl_bytes_total{role="decode",worker="d1"}', at_least=1.0)
        address = made.engines["d1"].address.partition("://")[2]
        assert f'headrace_worker_info{{address="{address}",model="{MODEL}",role="decode",worker="d1"}} 1.0' in (
            await made.metrics()
        )

    run(tmp_path, test, SLO)


def hurried(text: str) -> str:
    """The rules with 5 s for each 10 minutes."""
    in_ms = {"m": 500, "h": 30_000}
    return re.sub(r"(\[|for: )(\d+)([mh])\b", lambda found: f"{found[1]}{int(found[2]) * in_ms[found[3]]}ms", text)


def test_overload_makes_prometheus_alert(tmp_path: Path) -> None:
    """More than the fleet can promise: HeadraceRejections fires, of the shipped rules with shorter times."""
    program = installed("prometheus")

    async def test(made: Fleet) -> None:
        slow = Plan(timing=Timing(prefill_s_fixed=0.4, decode_s_per_token=0.001))
        await made.add(Role.MIXED, "m1", slow)
        await made.start_router()
        await made.wait_for_workers(["m1"])
        for number in range(4):  # the router learns how slow it is
            assert await stream(made, f"{number} {PROMPT}", max_tokens=2) == 200
        hurried_rules = tmp_path / "rules.yaml"
        hurried_rules.write_text(hurried(RULES.read_text()))
        with running_prometheus(program, tmp_path, made.url, hurried_rules) as url:
            clients = [asyncio.create_task(hurry(made, number)) for number in range(12)]
            try:
                alert = await wait_for(made.session, url, 'ALERTS{alertname="HeadraceRejections", alertstate="firing"}')
                assert alert["service_class"] == "hasty"
                await wait_for(made.session, url, dict(dashboard_queries())["headrace-slos: Promises kept"])
                for title, expression in dashboard_queries():
                    status, answer = await query(made.session, url, expression)
                    assert status == 200, f"{title}: {answer}"
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    run(tmp_path, test, SLO)


async def hurry(made: Fleet, number: int) -> None:
    """A client that asks again and again, however it is answered. Two have time: they are served in any case."""
    for turn in itertools.count():
        await stream(
            made, f"{number} {turn} {PROMPT}", {"x-headrace-class": "hasty" if number > 1 else "chat"}, max_tokens=2
        )
        await asyncio.sleep(0.05)


async def query(session: aiohttp.ClientSession, url: str, expression: str) -> tuple[int, Any]:
    async with session.get(f"{url}/api/v1/query", params={"query": expression}) as response:
        return response.status, await response.json()


async def wait_for(session: aiohttp.ClientSession, url: str, expression: str) -> dict[str, str]:
    """Labels of the first series, once there is one."""
    answer: Any = None
    for _ in range(600):
        try:
            _, answer = await query(session, url, expression)
        except (aiohttp.ClientConnectionError, aiohttp.ContentTypeError):
            pass  # it starts: 503, in plain text
        if answer and answer["data"]["result"]:
            labels: dict[str, str] = answer["data"]["result"][0]["metric"]
            return labels
        await asyncio.sleep(0.1)
    _, shown = await query(session, url, '{__name__=~"ALERTS|headrace_rejected_total|headrace_slo_requests_total"}')
    pytest.fail(f"{expression} stays empty: {shown}")
