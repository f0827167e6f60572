"""Who has had more than its share: usage of tenants against the max-min fair level. Pure.

Usage is admitted work in seconds and demand is asked work; both decay with a half-life. What was admitted of late is
what there was to share out. The level L of max-min fairness with weights solves sum(min(demand, weight * L)) = sum of
usage over the active tenants: those who ask for less than weight * L get what they ask for, the others get that much.

That is made true by trunk reservation (Key 1990, "Optimal control and trunk reservation in loss networks"): a tenant
that asks for more than weight * L may fill a part of the waiting room only, and less of it once it has had that much.
So one that asks for no more always finds room. Nothing is refused for fairness while there is room for all.

Sums are kept undecayed, in units that grow with time instead ("forward decay", Cormode et al. 2009): an entry is
written once, and all tenants are compared without touching them.

Invariants
 1. Usage and demand are never negative; a refund takes back at most what its charge added.
 2. At most `max_tenants` are remembered; the one that has been silent longest is forgotten first.
 3. What other replicas reported counts until it is replaced or forgotten, and no longer than `window_s`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isinf, log2

_REBASE_AT = 256.0  # half-lives: floats have room for four times as many
_FLOAT_HALF_LIVES = 1000.0  # as many as a float can count
_MANY = 16  # tenants; with more, the level is computed again only every so often: about 2 us a tenant
_REFRESH_S = 0.25
_REFRESH_BY_TENANT_S = 0.0005
_TOLERANCE = 1e-9


class Share(StrEnum):
    """What a tenant asks for and has had, by its max-min fair share of what was given out of late."""

    FREE = "free"  # there is enough for all
    WITHIN = "within"  # there is not, but for what it asks, which is no more than its share
    SHORT = "short"  # it asks for more than its share, and has not had that
    OVER = "over"  # it asks for more, and has had more


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one router replica says of a tenant, in seconds of work, decayed until now."""

    used_s: float
    asked_s: float
    weight: float = 1.0


@dataclass(slots=True)
class _Account:
    """In grown units."""

    weight: float = 1.0
    used: float = 0.0
    asked: float = 0.0
    asked_at_s: float = 0.0


@dataclass(slots=True)
class _Report:
    at_s: float
    accounts: dict[str, _Account] = field(default_factory=dict)


class TenantShares:
    """All tenants, of all model pools and router replicas."""

    def __init__(self, half_life_s: float = 30.0, window_s: float = 60.0, max_tenants: int = 10_000) -> None:
        self._half_life_s = half_life_s
        self._window_s = window_s
        self._max_tenants = max_tenants
        self._base_s: float | None = None  # the instant at which a grown unit is a second
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # the longest silent first
        self._reports: dict[str, _Report] = {}
        self._others: dict[str, _Account] = {}  # sums over the reports
        self._level_s = float("inf")  # of usage by weight, in seconds
        self._total_weight = 0.0
        self._computed_at_s = float("-inf")
        self._is_stale = True

    def __len__(self) -> int:
        return len(self._accounts)

    def asked(self, tenant: str, weight: float, work_s: float, now_s: float) -> None:
        """A request has arrived, whatever will become of it. Not for one that comes back as it was told."""
        growth = self._growth(now_s)  # first: it may rebase all accounts
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
        self._accounts.move_to_end(tenant)
        account.weight = weight
        account.asked += work_s * growth
        account.asked_at_s = now_s
        self._is_stale = True
        if len(self._accounts) > self._max_tenants:
            self._accounts.popitem(last=False)

    def charge(self, tenant: str, work_s: float, now_s: float) -> None:
        """A promise was given for so much work. Ignored for a tenant that is not known: one that asked is."""
        growth = self._growth(now_s)
        account = self._accounts.get(tenant)
        if account is not None:
            account.used += work_s * growth
            self._is_stale = True

    def refund(self, tenant: str, work_s: float, charged_at_s: float, now_s: float) -> None:
        """The work charged then was not done: the request left before it was sent to a worker."""
        account = self._accounts.get(tenant)
        if account is not None:
            growth = self._growth(now_s) * 0.5 ** ((now_s - charged_at_s) / self._half_life_s)
            account.used = max(0.0, account.used - work_s * growth)
            self._is_stale = True

    def share(self, tenant: str, now_s: float) -> Share:
        """Where it stands."""
        account = self._accounts.get(tenant)
        if account is None or (len(self._accounts) == 1 and not self._reports):  # all there is, is its share
            return Share.FREE
        self._refresh(now_s)
        if isinf(self._level_s):
            return Share.FREE
        other, growth = self._others.get(tenant, _NOTHING), self._growth(now_s)
        share_s = account.weight * self._level_s * (1.0 + _TOLERANCE)
        if (account.asked + other.asked) / growth <= share_s:
            return Share.WITHIN
        return Share.OVER if (account.used + other.used) / growth > share_s else Share.SHORT

    def back_in_s(self, tenant: str, now_s: float) -> float:
        """Predicted seconds until it is no longer over its share if it gets nothing and the others go on."""
        if self.share(tenant, now_s) is not Share.OVER:
            return 0.0
        account, other = self._accounts[tenant], self._others.get(tenant, _NOTHING)
        allowed_s = account.weight * self._level_s
        if allowed_s <= 0.0:
            return self._half_life_s
        return self._half_life_s * log2((account.used + other.used) / self._growth(now_s) / allowed_s)

    def fraction(self, tenant: str, now_s: float) -> float:
        """Its weight among the active tenants: the part that it gets when all of them want more than there is."""
        account = self._accounts.get(tenant)
        if account is None:
            return 1.0
        self._refresh(now_s)
        return min(1.0, account.weight / self._total_weight) if self._total_weight > 0.0 else 1.0

    # -- other replicas

    def report(self, now_s: float) -> dict[str, TenantUsage]:
        """What the other replicas should know: the active tenants of this one. Changes nothing: asking is no event."""
        if self._base_s is None:
            return {}
        growth = 2.0 ** min((now_s - self._base_s) / self._half_life_s, _FLOAT_HALF_LIVES)
        return {
            tenant: TenantUsage(account.used / growth, account.asked / growth, account.weight)
            for tenant, account in self._active(now_s).items()
        }

    def set_remote(self, replica_id: str, usage: Mapping[str, TenantUsage], now_s: float) -> None:
        """What another replica reports, in place of what it reported before."""
        growth = self._growth(now_s)
        self._reports[replica_id] = _Report(
            now_s,
            {t: _Account(item.weight, item.used_s * growth, item.asked_s * growth, now_s) for t, item in usage.items()},
        )
        self._forget_level()

    def forget(self, replica_id: str) -> None:
        """That replica is gone or unreachable: shares are taken among those that are left."""
        if self._reports.pop(replica_id, None) is not None:
            self._forget_level()

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert all(a.used >= 0.0 and a.asked >= 0.0 for a in self._accounts.values()), "invariant 1: negative"
        assert len(self._accounts) <= self._max_tenants, "invariant 2: too many tenants"
        asked_at_s = [account.asked_at_s for account in self._accounts.values()]
        assert asked_at_s == sorted(asked_at_s), "invariant 2: the longest silent first"

    # -- sums

    def _growth(self, now_s: float) -> float:
        """Grown units to a second of work done now."""
        if self._base_s is None:
            self._base_s = now_s
        half_lives = (now_s - self._base_s) / self._half_life_s
        if half_lives > _REBASE_AT:
            self._base_s, shrink, half_lives = now_s, 0.5**half_lives, 0.0
            remote = [account for report in self._reports.values() for account in report.accounts.values()]
            for account in [*self._accounts.values(), *remote, *self._others.values()]:
                account.used *= shrink
                account.asked *= shrink
        return float(2.0**half_lives)

    def _active(self, now_s: float) -> dict[str, _Account]:
        active = {}
        for tenant, account in reversed(self._accounts.items()):
            if account.asked_at_s < now_s - self._window_s:
                break
            active[tenant] = account
        return active

    def _forget_level(self) -> None:
        self._is_stale = True
        self._computed_at_s = float("-inf")

    def _refresh(self, now_s: float) -> None:
        """Compute the level again if it may have changed; with many tenants not for every request."""
        many = len(self._accounts)
        is_recent = now_s - self._computed_at_s < _REFRESH_S + _REFRESH_BY_TENANT_S * many
        if is_recent and (not self._is_stale or many > _MANY):
            return
        self._sum_reports(now_s)
        rows = self._active(now_s)
        pairs = [(rows.get(t, _NOTHING), self._others.get(t, _NOTHING)) for t in {**rows, **self._others}]
        wants = [(own.asked + other.asked, (own if own is not _NOTHING else other).weight) for own, other in pairs]
        used = sum(own.used + other.used for own, other in pairs)
        self._level_s = fair_level(wants, used) / self._growth(now_s)
        self._total_weight = sum(weight for _, weight in wants)
        self._computed_at_s, self._is_stale = now_s, False

    def _sum_reports(self, now_s: float) -> None:
        for replica_id in [r for r, report in self._reports.items() if report.at_s < now_s - self._window_s]:
            del self._reports[replica_id]
        self._others = {}
        for report in self._reports.values():
            for tenant, account in report.accounts.items():
                total = self._others.setdefault(tenant, _Account(account.weight))
                total.used += account.used
                total.asked += account.asked


_NOTHING = _Account()


def fair_level(wants: Iterable[tuple[float, float]], available: float) -> float:
    """The L with sum(min(asked, weight * L)) = available over (asked, weight) pairs; inf if there is enough for all."""
    rising = sorted((asked / weight, asked, weight) for asked, weight in wants)
    if available >= sum(asked for _, asked, _ in rising) * (1.0 - _TOLERANCE):
        return float("inf")
    weight_left = sum(weight for _, _, weight in rising)
    level = 0.0
    for asked_by_weight, asked, weight in rising:
        level = available / weight_left
        if level <= asked_by_weight:
            break
        available -= asked
        weight_left -= weight
    return level
