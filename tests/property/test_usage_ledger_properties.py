"""Budgets and charges over several routers. Numbers: invariants of router/identity/usage_ledger.py."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.usage_store import ByRouter, Used, total
from router.errors import ApiError
from router.identity.caller import Allowance
from router.identity.quota import Window, fits_again_in_s
from router.identity.usage_ledger import Ticket, UsageLedger
from router.types import Usage

NOW_S = 1_800_000_000.0  # in the middle of a month
LARGEST = 40
PERIOD, TENANT = "2027-01", "acme"


@dataclass
class Redis:
    """As kvstore/usage_store.py has it: totals that only rise."""

    totals: dict[tuple[str, str], ByRouter] = field(default_factory=dict)
    board: dict[str, bytes] = field(default_factory=dict)

    def charge(self, owed: dict[tuple[str, str], ByRouter]) -> dict[tuple[str, str], ByRouter]:
        for key, by_router in owed.items():
            known = self.totals.setdefault(key, {})
            for router, used in by_router.items():
                known[router] = known.get(router, Used()).most(used)
        return {key: dict(self.totals.get(key, {})) for key in owed}


@dataclass
class World:
    """Routers that exchange a step at a time, in whatever order, and die."""

    allowance: Allowance
    redis: Redis = field(default_factory=Redis)
    routers: list[UsageLedger] = field(default_factory=list)
    open: list[list[Ticket]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pending: dict[int, dict[tuple[str, str], ByRouter]] = field(default_factory=dict)
    now_s: float = NOW_S
    charged: int = 0  # tokens of requests that ended where their router lives on, or has told of them
    requests: int = 0

    def add(self) -> None:
        name = f"r{len(self.names)}"
        self.names.append(name)
        self.routers.append(UsageLedger(name))
        self.open.append([])
        self.exchange(len(self.routers) - 1)

    def ask(self, at: int, prompt_tokens: int, output_tokens: int) -> bool:
        ticket = Ticket(TENANT, self.allowance, prompt_tokens, output_tokens)
        try:
            self.routers[at].open(ticket, self.now_s)
        except ApiError:
            return False
        self.open[at].append(ticket)
        return True

    def end(self, at: int, output_tokens: int) -> None:
        if self.open[at]:
            ticket = self.open[at].pop(0)
            ticket.usage = Usage(ticket.prompt_tokens, 0, min(output_tokens, ticket.output_tokens))
            self.routers[at].close(ticket, ticket.used(), self.now_s)
            self.routers[at].close(ticket, ticket.used(), self.now_s)  # invariant 1
            self.charged += ticket.used().tokens
            self.requests += 1

    def exchange(self, at: int, *, lose: str = "") -> None:
        """One exchange of a router, cut off after a step: what it wrote lies there, what it was to read does not."""
        ledger = self.routers[at]
        found = self.redis.charge(ledger.owed({TENANT: self.allowance}, self.now_s))
        if lose == "charge":
            return
        ledger.on_charged(found, self.now_s)
        report = ledger.report(self.now_s)
        self.redis.board[self.names[at]] = report
        if lose == "report":
            return
        ledger.on_told()
        if lose == "read":
            return
        ledger.on_reports(self.redis.board, self.now_s)

    def take(self, step: tuple[str, int, int, int], most_routers: int = 0) -> None:
        """One step of a history."""
        what, which, prompt_tokens, output_tokens = step
        at = which % len(self.routers)
        if what == "ask":
            self.ask(at, prompt_tokens, output_tokens)
        elif what == "end":
            self.end(at, output_tokens)
        elif what == "wait":
            self.now_s += 3.0
        elif what != "join":
            self.exchange(at, lose="" if what == "exchange" else what)
        elif len(self.routers) < most_routers:
            self.add()

    def outstanding(self) -> int:
        """Tokens that have been used or may yet be, by everybody."""
        held = sum(t.prompt_tokens + t.output_tokens for tickets in self.open for t in tickets)
        return self.charged + held


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask"] * 8 + ["end", "exchange", "charge", "report", "read", "join", "wait"]),
        st.integers(0, 3),
        st.integers(1, LARGEST // 2),
        st.integers(1, LARGEST // 2),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 200), st.integers(1, 4), STEPS)
def test_invariant_4_a_budget_is_exceeded_by_no_more_than_is_said(
    budget: int, routers: int, steps: list[tuple[str, int, int, int]]
) -> None:
    world = World(Allowance(budget_tokens=budget))
    for _ in range(routers):
        world.add()
    for at in range(routers):  # all know of each other before the first request
        world.exchange(at)
    bound = budget + (routers - 1) * max(budget / routers, LARGEST)
    for step in steps:
        world.take(step)
        assert world.outstanding() <= bound
    one_after_another = World(Allowance(budget_tokens=budget))
    one_after_another.add()
    while one_after_another.ask(0, 1, 1):
        pass
    assert budget - 1 <= one_after_another.outstanding() <= budget, "one router alone keeps it to the token"


@given(st.integers(1, 2000), st.integers(1, 5), st.integers(1, LARGEST // 2))
def test_invariant_4_routers_that_hear_nothing_of_each_other_keep_to_their_shares(
    budget: int, routers: int, size: int
) -> None:
    world = World(Allowance(budget_tokens=budget))
    for _ in range(routers):
        world.add()
    for at in range(routers):
        world.ask(at, 1, 1)
    for at in [*range(routers), *range(routers)]:
        world.exchange(at)
    known = world.outstanding()
    for at in range(routers):
        while world.ask(at, size, size):
            pass
    left = max(0, budget - known)
    assert left - routers * 2 * size < world.outstanding() - known <= max(left, routers * min(2 * size, left))


@settings(max_examples=200, deadline=None)
@given(STEPS, st.lists(st.integers(0, 3), max_size=2, unique=True))
def test_invariant_2_each_request_is_charged_once_whatever_dies(
    steps: list[tuple[str, int, int, int]], dead: list[int]
) -> None:
    world = World(Allowance(budget_tokens=10_000_000))
    for _ in range(4):
        world.add()
    for step in steps:
        world.take(step, most_routers=6)
    for at in dead:  # their last report was heard by the others; then they are gone before they could charge it
        report = world.routers[at].report(world.now_s)
        world.redis.board[world.names[at]] = report
    living = [at for at in range(len(world.routers)) if at not in dead]
    for at in living:
        world.exchange(at)
    for at in dead:
        del world.redis.board[world.names[at]]
    for _ in range(3):
        for at in living:
            world.exchange(at)
    used = total(world.redis.totals.get((PERIOD, TENANT), {}))
    assert (used.tokens, used.requests) == (world.charged, world.requests)
    for at in living:
        held = sum(t.prompt_tokens + t.output_tokens for t in world.open[at])
        others = sum(t.prompt_tokens + t.output_tokens for o in living if o != at for t in world.open[o])
        assert world.routers[at].use(TENANT, "month", world.now_s) == world.charged + held + others, "invariant 3"


def test_a_quiet_tenant_is_forgotten_and_goes_on_from_what_redis_has() -> None:
    redis, ledger, allowance = Redis(), UsageLedger("r"), Allowance()

    def exchange(now_s: float) -> None:
        ledger.on_charged(redis.charge(ledger.owed({}, now_s)), now_s)
        ledger.report(now_s)
        ledger.on_told()
        ledger.on_reports({}, now_s)

    for turn in range(3):
        now_s = NOW_S + turn * 2000.0
        ticket = Ticket(TENANT, allowance, 10, 5)
        ledger.open(ticket, now_s)
        exchange(now_s)
        ticket.usage = Usage(10, 0, 5)
        ledger.close(ticket, ticket.used(), now_s)
        for _ in range(2):
            exchange(now_s + 1)
        assert redis.totals[PERIOD, TENANT]["r"] == Used(turn + 1, 10 * (turn + 1), 0, 5 * (turn + 1))
        assert ledger.use(TENANT, "month", now_s + 1) == 15 * (turn + 1)
        exchange(now_s + 1000.0)
        assert ledger.use(TENANT, "month", now_s + 1000.0) == 0, "forgotten"


@given(STEPS)
def test_a_redis_that_loses_its_memory_is_told_again(steps: list[tuple[str, int, int, int]]) -> None:
    world = World(Allowance(budget_tokens=10_000_000))
    for _ in range(3):
        world.add()
    for step in steps:
        world.take(step)
    for at in (0, 1, 2, 0):
        world.exchange(at)
    dead = world.names[2]
    del world.redis.board[dead]
    for _ in range(2):
        world.now_s += 21.0  # until it is read again
        for at in (0, 1):
            world.exchange(at)
    world.redis.totals.clear()
    for _ in range(2):
        world.now_s += 21.0
        for at in (0, 1):
            world.exchange(at)
    used = total(world.redis.totals.get((PERIOD, TENANT), {}))
    assert (used.tokens, used.requests) == (world.charged, world.requests), "that of the dead one too"


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(1, 20)), max_size=60), st.integers(1, 60), st.integers(1, 20))
def test_retry_after_is_when_it_fits(asked: list[tuple[float, int]], limit: int, need: int) -> None:
    own, others, now_s = Window(), Window(), NOW_S
    for gap_s, count in asked:
        now_s += gap_s
        for window in (own, others):
            window.turn(int(now_s // 60))
        own.add(count)
    left_s = fits_again_in_s(own, others, need, limit, now_s)
    if left_s is None:
        assert need > limit
        return
    later_s = now_s + left_s + 0.01
    own.turn(int(later_s // 60))
    assert own.over_last_minute(later_s) + need <= limit + 0.02 * max(own.before, 1), "not a moment too early"


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 20)), max_size=100))
def test_requests_a_minute_hold_over_routers_by_the_sliding_minute(asked: list[tuple[int, float]]) -> None:
    limit, routers = 12, 3
    world = World(Allowance(requests_per_min=limit))
    for _ in range(routers):
        world.add()
    let_in: list[float] = []
    for at, gap_s in asked:
        world.now_s += gap_s
        if gap_s > 0.25:
            for other in (0, 1, 2, 0, 1):
                world.exchange(other)
        if world.ask(at, 1, 1):
            let_in.append(world.now_s)
        minute = world.now_s // 60
        assert sum(at_s // 60 == minute for at_s in let_in) <= limit + (routers - 1) * max(limit / routers, 1)
