"""What tenants use: in flight and ended here, as others say of themselves, and as Redis has it. Pure.

Invariants
 1. A request counts once: its ticket is opened once and closed once, at whatever end it comes to.
 2. A router's total for a period only rises; Redis takes the larger of what it has and what it is told
    (`kvstore/usage_store.py`). Who has forgotten a quiet tenant goes on from what Redis has. What a router last said of
    its total before it died is charged by those who heard it.
 3. Of another router counts the larger of what Redis has and what it says itself: nothing is missed on its way from
    the one to the other, and nothing counts twice.
 4. A request is let in by what is known here (`router/identity/quota.py` bounds the error); nobody waits for Redis.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from kvstore.usage_store import ByRouter, Used
from router.errors import ApiError
from router.identity.caller import Allowance
from router.identity.quota import MINUTE_S, Window, fits, fits_again_in_s, period_of, seconds_left
from router.identity.usage_report import TenantReport, decode, encode
from router.types import Usage

_RETRY_S = 1.0  # where another router's next report decides
_REPORTED_S = 90.0  # a tenant is told of for so long after its last request: longer than until all have read Redis
_READ_AGAIN_S = 20.0
_MOST_READ_AT_ONCE = 64
_FORGOTTEN_S = 900.0  # nobody has asked for it since, here or elsewhere
_ANY_PERIOD = "month"


class Ticket(Struct):
    """One request's account. `usage` and `events` are filled in as the answer goes by."""

    tenant: str
    allowance: Allowance
    prompt_tokens: int  # counted, or estimated from the size
    output_tokens: int  # at most
    period: str = ""
    minute: int = 0
    is_open: bool = False
    usage: Usage | None = None  # the engine's word
    events: int = 0  # of a stream, sent to the client: each has a token or more

    def used(self) -> Used:
        """What it has used by now: the engine's word, else what was seen."""
        if self.usage is None:
            return Used(1, self.prompt_tokens, 0, self.events)
        usage = self.usage
        return Used(1, usage.prompt_tokens or self.prompt_tokens, usage.cached_tokens or 0, usage.output_tokens)


class _Tenant(Struct):
    """One tenant, in one period."""

    period: str
    touched_at_s: float  # its last request, here or elsewhere
    seen_at_s: float = float("-inf")  # its last request here
    is_named: bool = False  # has a budget in the settings: known before it asks
    base: Used | None = None  # what Redis had of this router before; None: not read yet
    ended: Used = Used()  # since then
    num_open: int = 0
    held_tokens: int = 0
    told_tokens: int = 0  # ended and held, when the others were told last
    others_tokens: int = 0
    durable: ByRouter = field(default_factory=dict)
    heard: dict[str, tuple[Used, int]] = field(default_factory=dict)  # by router, ended and held, as they last said
    read_at_s: float = float("-inf")  # from Redis
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    other_requests: Window = field(default_factory=Window)
    other_tokens: Window = field(default_factory=Window)
    told_minute: int = 0
    told_minute_requests: float = 0.0
    told_minute_tokens: float = 0.0

    @property
    def own(self) -> Used:
        """This router's total for the period."""
        return self.ended if self.base is None else self.base.plus(self.ended)


_Key = tuple[str, str]  # period and tenant


class UsageLedger:
    """One router's. Times are Unix seconds."""

    def __init__(self, replica_id: str) -> None:
        self._replica_id = replica_id
        self._tenants: dict[_Key, _Tenant] = {}
        self._periods: dict[str, tuple[float, str]] = {}  # by kind: until when which
        self._live: frozenset[str] = frozenset()
        self._told: list[tuple[_Key, int, int, float, float]] = []
        self.num_routers = 1

    def check(self, name: str, allowance: Allowance, need: int, now_s: float) -> None:
        """Raise ApiError 429 where not even the smallest request would be let in; it says when `need` would fit."""
        tenant = self._tenants.get((self._period_of(allowance, now_s), name))
        if tenant is not None:
            minute = int(now_s // MINUTE_S)
            if minute != tenant.requests.minute:
                _turn(tenant, minute)
            try:
                self._check(allowance, tenant, 1, now_s)
            except ApiError:
                self._check(allowance, tenant, max(1, need), now_s)  # what is too much for one is too much for more

    def open(self, ticket: Ticket, now_s: float) -> None:
        """Let the request in. Raises ApiError 429 where a limit does not allow it; then nothing has changed."""
        assert not ticket.is_open, "invariant 1: opened twice"
        allowance = ticket.allowance
        period = self._period_of(allowance, now_s)
        key = (period, ticket.tenant)
        tenant = self._tenants.get(key)
        if tenant is None:
            tenant = self._tenants[key] = _new_tenant(period, now_s)
        minute = int(now_s // MINUTE_S)
        need = ticket.prompt_tokens + ticket.output_tokens
        if minute != tenant.requests.minute:
            _turn(tenant, minute)
        if allowance.is_limited:
            self._check(allowance, tenant, need, now_s)
        ticket.period, ticket.minute, ticket.is_open = period, minute, True
        tenant.requests.now += 1
        tenant.tokens.now += need
        tenant.held_tokens += need
        tenant.num_open += 1
        tenant.seen_at_s = tenant.touched_at_s = now_s

    def close(self, ticket: Ticket, used: Used | None, now_s: float) -> None:
        """The request has ended. None: it cost its tenant nothing. A second call changes nothing (invariant 1)."""
        if not ticket.is_open:
            return
        ticket.is_open = False
        tenant = self._tenants[ticket.period, ticket.tenant]
        estimate = ticket.prompt_tokens + ticket.output_tokens
        tenant.held_tokens -= estimate
        tenant.num_open -= 1
        if used is not None:
            tenant.ended = tenant.ended.plus(used)
        tenant.seen_at_s = tenant.touched_at_s = now_s
        minute = int(now_s // MINUTE_S)
        more = (used.tokens if used is not None else 0) - estimate
        if more > 0 or minute == ticket.minute:  # an estimate of a minute that has gone is left as it was
            _turn(tenant, minute)
            tenant.tokens.add(more)

    def owed(self, named: Mapping[str, Allowance], now_s: float) -> dict[_Key, ByRouter]:
        """What Redis has to be told, and asked: the empty ones. `named`: tenants with limits, known in advance."""
        for name, allowance in named.items():
            if allowance.budget_tokens is not None:
                period = self._period(allowance.budget_period, now_s)
                if (period, name) not in self._tenants:
                    self._tenants[period, name] = _new_tenant(period, now_s)
                self._tenants[period, name].is_named = True
        owed: dict[_Key, ByRouter] = {}
        num_read = 0
        for key, tenant in self._tenants.items():
            missing = {
                router: used for router, used in self._ended(tenant) if _most(tenant.durable, router, used) is not None
            }
            if missing:
                owed[key] = missing
            elif now_s - tenant.read_at_s >= _READ_AGAIN_S and num_read < _MOST_READ_AT_ONCE:
                owed[key] = {}
                num_read += 1
        return owed

    def on_charged(self, found: Mapping[_Key, ByRouter], now_s: float) -> None:
        """What Redis has now."""
        for key, durable in found.items():
            tenant = self._tenants.get(key)
            if tenant is not None:
                # One that has lost its memory is told again, of all whom we know (invariant 2).
                lost = {name: used for name, used in tenant.durable.items() if _most(durable, name, used) is not None}
                for name, used in lost.items():
                    if name != self._replica_id:
                        ended, held = tenant.heard.get(name, (Used(), 0))
                        tenant.heard[name] = (ended.most(used), held)
                if tenant.base is None:
                    tenant.base = durable.get(self._replica_id, Used())
                tenant.durable = durable
                tenant.read_at_s = now_s
                self._count_others(tenant)

    def report(self, now_s: float) -> bytes:
        """What the others are to know. `on_told` once they can read it."""
        minute = int(now_s // MINUTE_S)
        reports: list[TenantReport] = []
        self._told = []
        for key, tenant in list(self._tenants.items()):
            if self._is_over(key, tenant, now_s):
                del self._tenants[key]
                continue
            if tenant.held_tokens == 0 and now_s - tenant.seen_at_s > _REPORTED_S:
                continue
            _turn(tenant, minute)
            requests, tokens = tenant.requests, tenant.tokens
            reports.append(
                TenantReport(
                    key[1], key[0], tenant.own, tenant.held_tokens, requests.minute,
                    requests.now, requests.before, tokens.now, tokens.before,
                )
            )  # fmt: skip
            own = tenant.own.tokens + tenant.held_tokens
            self._told.append((key, own, requests.minute, requests.now, tokens.now))
        return encode(reports)

    def on_told(self) -> None:
        """The last report lies where the others find it."""
        for key, own, minute, requests, tokens in self._told:
            tenant = self._tenants.get(key)
            if tenant is not None:
                tenant.told_tokens = own
                tenant.told_minute, tenant.told_minute_requests, tenant.told_minute_tokens = minute, requests, tokens

    def on_reports(self, records: Mapping[str, bytes], now_s: float) -> None:
        """What every router that is there says, this one included or not."""
        others = {name: decode(data) for name, data in records.items() if name != self._replica_id}
        self._live = frozenset(others)
        self.num_routers = len(others) + 1
        minute = int(now_s // MINUTE_S)
        for tenant in self._tenants.values():
            _turn(tenant, minute)
            for window in (tenant.other_requests, tenant.other_tokens):
                window.now = window.before = 0.0
        for name, reports in others.items():
            for report in reports:
                self._hear(name, report, now_s)
        for tenant in self._tenants.values():
            self._count_others(tenant)

    def use(self, tenant: str, kind: str, now_s: float) -> int:
        """Tokens of a tenant in a period, as this router knows it: all routers, requests in flight too."""
        found = self._tenants.get((self._period(kind, now_s), tenant))
        return 0 if found is None else found.own.tokens + found.held_tokens + found.others_tokens

    def _check(self, allowance: Allowance, tenant: _Tenant, need: int, now_s: float) -> None:
        if allowance.requests_per_min is not None:
            is_told = tenant.told_minute == tenant.requests.minute
            unseen = tenant.requests.now - (tenant.told_minute_requests if is_told else 0.0)
            _check_window(
                "requests", 1, allowance.requests_per_min, tenant.requests, tenant.other_requests,
                unseen, self.num_routers, now_s,
            )  # fmt: skip
        if allowance.tokens_per_min is not None:
            is_told = tenant.told_minute == tenant.tokens.minute
            unseen = tenant.tokens.now - (tenant.told_minute_tokens if is_told else 0.0)
            _check_window(
                "tokens", need, allowance.tokens_per_min, tenant.tokens, tenant.other_tokens,
                unseen, self.num_routers, now_s,
            )  # fmt: skip
        if allowance.budget_tokens is not None:
            own = tenant.own.tokens + tenant.held_tokens
            used = own + tenant.others_tokens
            if not fits(need, allowance.budget_tokens, used, own - tenant.told_tokens, self.num_routers):
                raise _over_budget(allowance, used, need, seconds_left(tenant.period, now_s))

    def _hear(self, name: str, report: TenantReport, now_s: float) -> None:
        minute = int(now_s // MINUTE_S)
        key = (report.period, report.tenant)
        tenant = self._tenants.get(key)
        if tenant is None:
            tenant = self._tenants[key] = _new_tenant(report.period, now_s)
            _turn(tenant, minute)
        tenant.touched_at_s = now_s
        ended, _ = tenant.heard.get(name, (Used(), 0))
        tenant.heard[name] = (ended.most(report.ended), report.held_tokens)
        for window, now, before in (
            (tenant.other_requests, report.requests, report.requests_before),
            (tenant.other_tokens, report.tokens, report.tokens_before),
        ):
            if report.minute >= minute:  # a clock that is ahead of ours is taken as it is
                window.now += now
                window.before += before
            elif report.minute == minute - 1:
                window.before += now

    def _ended(self, tenant: _Tenant) -> Iterable[tuple[str, Used]]:
        """Our own total, and of those that have gone what they said last."""
        if tenant.ended.requests and tenant.base is not None:
            yield self._replica_id, tenant.own
        for name, (ended, _) in tenant.heard.items():
            if name not in self._live:
                yield name, ended

    def _count_others(self, tenant: _Tenant) -> None:
        """Invariant 3."""
        counted = 0
        for name in {*tenant.durable, *tenant.heard}:
            if name == self._replica_id:
                continue
            ended, held = tenant.heard.get(name, (Used(), 0))
            said = ended.tokens + (held if name in self._live else 0)
            counted += max(tenant.durable.get(name, Used()).tokens, said)
        tenant.others_tokens = counted

    def _is_over(self, key: _Key, tenant: _Tenant, now_s: float) -> bool:
        """Its period has gone, or nobody asks, and Redis has all of it."""
        is_quiet = not tenant.is_named and now_s - tenant.touched_at_s > _FORGOTTEN_S
        is_past = key[0] not in (self._period("day", now_s), self._period("month", now_s))
        if tenant.num_open or not (is_past or is_quiet) or (tenant.ended.requests and tenant.base is None):
            return False
        return all(_most(tenant.durable, router, used) is None for router, used in self._ended(tenant))

    def _period_of(self, allowance: Allowance, now_s: float) -> str:
        return self._period(allowance.budget_period if allowance.budget_tokens else _ANY_PERIOD, now_s)

    def _period(self, kind: str, now_s: float) -> str:
        known = self._periods.get(kind)
        if known is None or not known[0] > now_s >= known[0] - 60.0:
            # A minute at a time: a clock may be set back.
            known = self._periods[kind] = ((now_s // 60.0 + 1) * 60.0, period_of(kind, now_s))
        return known[1]


def _new_tenant(period: str, now_s: float) -> _Tenant:
    return _Tenant(period, now_s)


def _turn(tenant: _Tenant, minute: int) -> None:
    for window in (tenant.requests, tenant.tokens, tenant.other_requests, tenant.other_tokens):
        window.turn(minute)


def _most(durable: ByRouter, router: str, used: Used) -> Used | None:
    """What Redis should have of a router; None: it has it."""
    known = durable.get(router)
    if known is None:
        return used
    most = known.most(used)
    return None if most == known else most


def _check_window(
    what: str, need: int, limit: int, own: Window, others: Window, unseen: float, routers: int, now_s: float
) -> None:
    """Raise ApiError 429 where the last minute has no room for `need` more."""
    used = own.over_last_minute(now_s) + others.over_last_minute(now_s)
    if fits(need, limit, used, unseen, routers):
        return
    retry_s = fits_again_in_s(own, others, need, limit, now_s)
    if retry_s is None:
        detail = f"this request asks for up to {need}: make it shorter, or its max_tokens less"
    else:
        detail = f"{round(used)} in the last minute, and this request asks for up to {need}"
        retry_s = max(_RETRY_S, retry_s)
    message = f"your limit is {limit} {what} a minute; {detail}"
    raise ApiError(429, "rate_limit_error", "rate_limit_exceeded", message, retry_after_s=retry_s)


def _over_budget(allowance: Allowance, used: int, need: int, left_s: float) -> ApiError:
    assert allowance.budget_tokens is not None
    retry_s: float | None = left_s
    if need > allowance.budget_tokens:
        retry_s = None
    elif used + need <= allowance.budget_tokens:  # what other routers let in meanwhile is not known yet
        retry_s = _RETRY_S
    message = (
        f"your budget is {allowance.budget_tokens} tokens a {allowance.budget_period}; {used} are used or asked "
        f"for, and this request asks for up to {need}"
    )
    return ApiError(429, "insufficient_quota", "insufficient_quota", message, retry_after_s=retry_s)
