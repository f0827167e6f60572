"""Claim: under twice the load that the fleet can serve, promised requests keep their targets, the rest is told when to
come back and is let in then, and tenants get their fair shares; without admission everybody is late.

    python -m tests.bench.overload [--seconds 30]

A real router, Redis and fake engines, over HTTP, in one process. The same arrivals are sent twice: with admission and
without. Clients that get 429 with a place come back once, when they were told to. Targets are seconds of wall time: run
it on a quiet machine.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from router.admission.fairness import fair_level
from tests.fleet import MODEL, Fleet, fleet
from workers.fake import Plan
from workers.fake.plan import Timing
from workers.types import Role

WORKERS = 4
PROMPT_TOKENS = 400
OUTPUT_TOKENS = 16
PREFILL_S = 0.2
CAPACITY_PER_S = WORKERS / PREFILL_S
OVERLOAD = 2.0
ENGINE = Plan(timing=Timing(prefill_s_per_token=PREFILL_S / PROMPT_TOKENS, decode_s_per_token=0.01))
CLASSES: dict[str, dict[str, Any]] = {
    "interactive": {"ttft_s": 1.0, "tpot_s": 0.25, "value": 4.0, "deadline_s": 30.0},
    "chat": {"ttft_s": 3.0, "tpot_s": 0.25, "value": 2.0, "deadline_s": 60.0},
    "batch": {"ttft_s": 15.0, "tpot_s": 1.0, "value": 1.0, "deadline_s": 120.0, "on_overload": "best_effort"},
}
MIX = {"interactive": 0.4, "chat": 0.4, "batch": 0.2}
TENANTS = {"loud": 0.8, "quiet": 0.2}  # of the offered load; together twice what there is
WARM_UP = 12  # requests that teach the router its engines


@dataclass(frozen=True)
class Arrival:
    """One request of the trace."""

    at_s: float
    number: int
    service_class: str
    tenant: str


@dataclass
class Answer:
    """What became of it."""

    arrival: Arrival
    status: int = 0
    promised: bool = False
    ttft_s: float = float("inf")
    tpot_s: float = 0.0
    retry_after_s: float | None = None
    has_place: bool = False
    answered_at_s: float = float("inf")  # of the trace
    came_back: "Answer | None" = None

    @property
    def met(self) -> bool:
        """Both targets were met."""
        target = CLASSES[self.arrival.service_class]
        in_time = self.ttft_s <= target["ttft_s"] and self.tpot_s <= target["tpot_s"]
        return self.status == 200 and bool(in_time)


@dataclass
class Row:
    """One class in one run."""

    admission: str
    service_class: str
    offered: int
    served: int
    promised: int
    promises_kept: float
    met_both_targets: int
    ttft_p50_s: float
    ttft_p99_s: float
    rejected: int
    told_when: int
    came_back_admitted: float


def arrivals(seconds: float, seed: int = 7) -> list[Arrival]:
    """Poisson, the same for both runs."""
    rng = random.Random(seed)
    made: list[Arrival] = []
    at_s = 0.0
    while at_s < seconds:
        at_s += rng.expovariate(CAPACITY_PER_S * OVERLOAD)
        service_class = rng.choices(list(MIX), list(MIX.values()))[0]
        tenant = rng.choices(list(TENANTS), list(TENANTS.values()))[0]
        made.append(Arrival(at_s, len(made), service_class, tenant))
    return made


async def ask(made: Fleet, arrival: Arrival, began_s: float) -> Answer:
    """One streamed request, timed by its client; one that is told when comes back then."""
    answer = last = Answer(arrival)
    await once(made, arrival, answer)
    if answer.status == 429 and answer.retry_after_s is not None and answer.has_place:
        await asyncio.sleep(answer.retry_after_s)
        answer.came_back = last = Answer(arrival)
        await once(made, arrival, last)
    if last.status == 200:
        answer.answered_at_s = time.perf_counter() - began_s
    return answer


async def once(made: Fleet, arrival: Arrival, answer: Answer) -> None:
    """Send it and note what comes."""
    prompt = f"{arrival.number:08}".ljust(PROMPT_TOKENS, "x")
    body = {"model": MODEL, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "stream": True}
    headers = {
        "x-headrace-class": arrival.service_class,
        "x-headrace-tenant": arrival.tenant,
        "x-headrace-explain": "1",
    }
    began_s = time.perf_counter()
    async with made.session.post(f"{made.url}/v1/completions", json=body, headers=headers) as response:
        answer.status = response.status
        answer.promised = response.headers.get("x-headrace-promised") == "yes"
        if response.status != 200:
            retry = response.headers.get("retry-after")
            answer.retry_after_s = float(retry) if retry else None
            answer.has_place = "a place is kept" in (await response.json())["error"]["message"]
            return
        first_s = last_s = 0.0
        async for _ in response.content.iter_any():
            last_s = time.perf_counter()
            first_s = first_s or last_s
        answer.ttft_s = first_s - began_s
        answer.tpot_s = (last_s - first_s) / (OUTPUT_TOKENS - 1)


async def run(trace: Sequence[Arrival], *, admission: bool) -> list[Answer]:
    """Send the whole trace to a fresh fleet."""
    slo = {"enabled": admission, "classes": CLASSES, "default_class": "chat", "trust_tenant_header": True}
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(Path(folder), router={"hand_off": "cost"}, slo=slo) as made:
            # Hundreds of waiting clients are the point here; aiohttp's default is a hundred.
            await made.session.close()
            connector = aiohttp.TCPConnector(limit=0)
            made.session = await made.stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            names = [f"m{index}" for index in range(WORKERS)]
            for name in names:
                await made.add(Role.MIXED, name, ENGINE)
            await made.start_router()
            await made.wait_for_workers(names)
            for number in range(WARM_UP):
                await once(made, Arrival(0.0, 10_000_000 + number, "batch", "warm"), Answer(trace[0]))
            began_s = time.perf_counter()
            tasks = []
            for arrival in trace:
                await asyncio.sleep(max(0.0, arrival.at_s - (time.perf_counter() - began_s)))
                tasks.append(asyncio.create_task(ask(made, arrival, began_s)))
            return list(await asyncio.gather(*tasks))


def rows(answers: Sequence[Answer], admission: str) -> list[Row]:
    """The table of one run."""
    made = []
    for service_class in CLASSES:
        first = [answer for answer in answers if answer.arrival.service_class == service_class]
        every = first + [answer.came_back for answer in first if answer.came_back is not None]
        served = [answer for answer in every if answer.status == 200]
        promised = [answer for answer in served if answer.promised]
        rejected = [answer for answer in first if answer.status == 429]
        back = [answer.came_back for answer in first if answer.came_back is not None]
        ttfts_s = sorted(answer.ttft_s for answer in served)
        made.append(
            Row(
                admission=admission,
                service_class=service_class,
                offered=len(first),
                served=len(served),
                promised=len(promised),
                promises_kept=round(sum(a.met for a in promised) / len(promised), 3) if promised else float("nan"),
                met_both_targets=sum(answer.met for answer in every),
                ttft_p50_s=round(ttfts_s[len(ttfts_s) // 2], 2) if ttfts_s else float("nan"),
                ttft_p99_s=round(ttfts_s[int(len(ttfts_s) * 0.99)], 2) if ttfts_s else float("nan"),
                rejected=len(rejected),
                told_when=sum(answer.retry_after_s is not None for answer in rejected),
                came_back_admitted=round(sum(a.status == 200 for a in back) / len(back), 3) if back else float("nan"),
            )
        )
    return made


def shares(answers: Sequence[Answer], admission: str) -> list[dict[str, Any]]:
    """By tenant, of what it had asked by the end of the arrivals: what was answered by then, and what max-min gives it.

    And the part of its requests for a promise that got one when they first came.
    """
    until_s = max(answer.arrival.at_s for answer in answers)
    asked = {tenant: [a for a in answers if a.arrival.tenant == tenant] for tenant in TENANTS}
    answered = {tenant: sum(a.answered_at_s <= until_s for a in asked[tenant]) for tenant in TENANTS}
    level = fair_level([(float(len(asked[tenant])), 1.0) for tenant in TENANTS], float(sum(answered.values())))
    made = []
    for tenant in TENANTS:
        promises = [a for a in asked[tenant] if a.arrival.service_class != "batch"]
        at_once = round(sum(a.status == 200 for a in promises) / max(1, len(promises)), 2)
        fair = round(min(level, len(asked[tenant])))
        made.append(
            {"admission": admission, "tenant": tenant, "asked": len(asked[tenant]), "answered": answered[tenant],
             "max_min": fair, "let_in_at_once": at_once}
        )  # fmt: skip
    return made


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    trace = arrivals(parser.parse_args().seconds)
    table: list[Row] = []
    tenants: list[dict[str, Any]] = []
    for admission in (True, False):
        answers = asyncio.run(run(trace, admission=admission))
        name = "on" if admission else "off"
        table += rows(answers, name)
        tenants += shares(answers, name)
    print(
        f"{WORKERS} workers, {CAPACITY_PER_S:g} prompts/s at most, {OVERLOAD:g} times that offered; of it"
        f" {TENANTS['loud']:.0%} by one tenant and {TENANTS['quiet']:.0%} by another"
    )
    print(
        f"{'admission':<10}{'class':<12}{'offered':>8}{'served':>8}{'promised':>9}{'kept':>7}{'met both':>9}"
        f"{'TTFT p50':>9}{'p99':>8}{'429':>6}{'told':>6}{'back in':>8}"
    )
    for row in table:
        print(
            f"{row.admission:<10}{row.service_class:<12}{row.offered:>8}{row.served:>8}{row.promised:>9}"
            f"{row.promises_kept:>7.3f}{row.met_both_targets:>9}{row.ttft_p50_s:>9.2f}{row.ttft_p99_s:>8.2f}"
            f"{row.rejected:>6}{row.told_when:>6}{row.came_back_admitted:>8.3f}"
        )
    print(
        "\nBy the end of the arrivals; max-min: the fair part of what was answered by then. Batch is never turned away."
    )
    print(f"{'admission':<10}{'tenant':<12}{'asked':>8}{'answered':>9}{'max-min':>9}{'let in at once':>16}")
    for item in tenants:
        print(
            f"{item['admission']:<10}{item['tenant']:<12}{item['asked']:>8}{item['answered']:>9}{item['max_min']:>9}"
            f"{item['let_in_at_once']:>16.2f}"
        )
    print(json.dumps({"bench": "overload", "rows": [vars(row) for row in table], "tenants": tenants}))


if __name__ == "__main__":
    main()
