"""Claims: who asks costs a request microseconds, however many keys there are; a guess at a key learns nothing by time.

    python -m tests.bench.tenants

CPU microseconds of each step that tenants add to a request, medians of blocks in turn. Then wrong, expired and revoked
keys are refused in turn, and for each two kinds it says how often one took longer than the other: 0.5 is what guessing
gives. Prints a table and one JSON line.
"""

import contextlib
import gc
import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import combinations
from random import Random
from statistics import median
from typing import Any

from kvstore.key_store import KeyRecord
from router.admin_tokens import digest_of
from router.errors import ApiError
from router.identity.cache_salts import CacheSalts, spliced
from router.identity.caller import Allowance
from router.identity.doorkeeper import Doorkeeper
from router.identity.usage_ledger import Ticket, UsageLedger
from router.identity_settings import IdentitySettings
from router.types import Usage

ROUNDS, CALLS, REFUSED = 60, 500, 20_000
NOW_S = 1_800_000_000.0
KEY, EXPIRED, REVOKED, WRONG = ("hr-" + letter * 43 for letter in "kerw")
LIMITED = Allowance(requests_per_min=10**9, tokens_per_min=10**12, budget_tokens=10**15)


def door(num_keys: int) -> Doorkeeper:
    """With as many valid keys of as many tenants, one that is over and one that was revoked."""
    keeper = Doorkeeper(IdentitySettings(required=True), lambda: NOW_S)
    names = [KEY, *(f"hr-{number:043d}" for number in range(num_keys - 1))]
    made = {digest_of(name): KeyRecord(f"tenant-{number}") for number, name in enumerate(names)}
    made[digest_of(EXPIRED)] = KeyRecord("late", expires_at_s=NOW_S - 1)
    made[digest_of(REVOKED)] = KeyRecord("out", revoked_at_s=NOW_S - 1)
    keeper.set_made(made, {})
    return keeper


def steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """What is measured, by name."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    nobody = Doorkeeper(IdentitySettings(), lambda: NOW_S)
    yield "nothing configured", lambda: nobody.ask(headers)
    for num_keys in (1, 1_000, 100_000):
        keeper = door(num_keys)
        yield f"a key among {num_keys:,}", lambda keeper=keeper: keeper.ask(headers)  # type: ignore[misc]
    salts = CacheSalts()
    salts.set_secret(b"s" * 32)
    body = json.dumps({"model": "m", "prompt": "x" * 8_000, "max_tokens": 64}).encode()
    yield "a salt in a body of 8 KB", lambda: spliced(body, salts.of("acme"), None)
    ledger = UsageLedger("one")
    yield "an account with three limits", lambda: _account(ledger, LIMITED)
    yield "an account without limits", lambda: _account(ledger, Allowance())


def _account(ledger: UsageLedger, allowance: Allowance) -> None:
    ticket = Ticket("acme", allowance, 400, 64)
    ledger.open(ticket, NOW_S)
    ticket.usage = Usage(400, 64, 0)
    ledger.close(ticket, ticket.used(), NOW_S)


def cpu_us() -> dict[str, float]:
    """Of each step, the median block."""
    blocks: dict[str, list[float]] = {}
    measured = list(steps())
    for _ in range(ROUNDS):
        for name, step in measured:
            began_ns = time.process_time_ns()
            for _ in range(CALLS):
                step()
            blocks.setdefault(name, []).append((time.process_time_ns() - began_ns) / CALLS / 1000)
    return {name: median(taken) for name, taken in blocks.items()}


def refusals() -> dict[str, list[int]]:
    """Nanoseconds of each refusal by kind, in an order drawn anew each time."""
    keeper, random = door(1_000), Random(1)
    kinds = {
        name: {"authorization": f"Bearer {key}"}
        for name, key in (
            ("wrong", WRONG),
            ("expired", EXPIRED),
            ("revoked", REVOKED),
            ("nearly right", KEY[:-1] + "x"),
        )
    }
    taken: dict[str, list[int]] = {name: [] for name in kinds}
    for _ in range(REFUSED):
        for name in random.sample(list(kinds), len(kinds)):
            headers = kinds[name]
            began_ns = time.perf_counter_ns()
            with contextlib.suppress(ApiError):
                keeper.ask(headers)
            taken[name].append(time.perf_counter_ns() - began_ns)
    return taken


def longer(one: list[int], other: list[int]) -> float:
    """How often one of the first takes longer than one of the second; equals count half (Mann, Whitney 1947)."""
    ordered = sorted(other)
    wins = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in one)
    return wins / 2 / len(one) / len(other)


def main() -> None:
    """Measure and print."""
    gc.disable()
    rows = cpu_us()
    for name, taken_us in rows.items():
        print(f"{name:32s} {taken_us:7.2f} us")
    taken = refusals()
    told: dict[str, Any] = {name: median(each) for name, each in taken.items()}
    print("\nrefused, median ns: " + ", ".join(f"{name} {taken_ns:.0f}" for name, taken_ns in told.items()))
    pairs = {f"{one} > {other}": round(longer(taken[one], taken[other]), 4) for one, other in combinations(taken, 2)}
    for name, share in pairs.items():
        print(f"{name:32s} {share:7.4f}")
    print(json.dumps({"bench": "tenants", "cpu_us": rows, "refused_ns": told, "takes_longer": pairs}))


if __name__ == "__main__":
    main()
