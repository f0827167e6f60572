"""Shares against sums that are decayed one by one, against water-filling by trial, and in a simulated overload."""

from math import isinf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission.admission import Rules
from router.admission.fairness import Share, TenantShares, TenantUsage, fair_level
from tests.admission_world import Job, World

HALF_LIFE_S = 8.0
TENANTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5}
amounts = st.floats(0.01, 100.0)


@given(
    wants=st.lists(st.tuples(amounts, st.sampled_from([0.5, 1.0, 3.0])), min_size=1, max_size=8),
    part=st.floats(0, 0.999),
)
def test_the_level_shares_out_exactly_what_there_is(wants: list[tuple[float, float]], part: float) -> None:
    available = part * sum(asked for asked, _ in wants)
    level = fair_level(wants, available)
    assert sum(min(asked, weight * level) for asked, weight in wants) == pytest.approx(available, rel=1e-6, abs=1e-9)


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "charge", "report", "forget"]),
        st.sampled_from(sorted(TENANTS)),
        amounts,
        st.sampled_from([0.0, 0.5, 3.0, 40.0]),
    ),
    max_size=40,
)


@given(steps=steps)
def test_usage_is_the_sum_of_what_was_charged_each_faded_by_its_age(
    steps: list[tuple[str, str, float, float]],
) -> None:
    shares, now_s = TenantShares(HALF_LIFE_S, window_s=20.0), 0.0
    used: list[tuple[float, str, float]] = []
    asked: list[tuple[float, str, float]] = []
    remote: dict[str, tuple[float, float]] = {}
    for what, tenant, amount, wait_s in steps:
        now_s += wait_s
        if what == "ask":
            shares.asked(tenant, TENANTS[tenant], amount, now_s)
            asked.append((now_s, tenant, amount))
        elif what == "charge" and any(name == tenant for _, name, _ in asked):
            shares.charge(tenant, amount, now_s)
            used.append((now_s, tenant, amount))
        elif what == "report":
            shares.set_remote(tenant, {tenant: TenantUsage(amount, 2 * amount, TENANTS[tenant])}, now_s)
            remote[tenant] = (now_s, amount)
        elif what == "forget":
            shares.forget(tenant)
            remote.pop(tenant, None)
        shares.validate()

    def faded(items: list[tuple[float, str, float]], tenant: str) -> float:
        ages_s = [(now_s - at_s, amount) for at_s, name, amount in items if name == tenant]
        return float(sum(amount * 0.5 ** (age_s / HALF_LIFE_S) for age_s, amount in ages_s))

    is_alone = len({name for _, name, _ in asked}) == 1 and not remote
    remote = {tenant: item for tenant, item in remote.items() if item[0] >= now_s - 20.0}
    active = {tenant for at_s, tenant, _ in asked if at_s >= now_s - 20.0}
    report = shares.report(now_s)
    assert report.keys() == active
    for tenant in active:
        assert report[tenant].used_s == pytest.approx(faded(used, tenant), rel=1e-6)
        assert report[tenant].asked_s == pytest.approx(faded(asked, tenant), rel=1e-6)

    def of_others(tenant: str) -> float:
        return faded([(remote[tenant][0], tenant, remote[tenant][1])], tenant) if tenant in remote else 0.0

    counted = sorted(active | remote.keys())
    total = {t: (faded(used, t) if t in active else 0.0) + of_others(t) for t in counted}
    wanted = {t: (faded(asked, t) if t in active else 0.0) + 2 * of_others(t) for t in counted}
    level = fair_level([(wanted[t], TENANTS[t]) for t in counted], sum(total.values()))
    for tenant in {name for _, name, _ in asked}:
        share_s = TENANTS[tenant] * level
        wants_s, had_s = faded(asked, tenant) + 2 * of_others(tenant), faded(used, tenant) + of_others(tenant)
        if share_s not in (pytest.approx(wants_s, rel=1e-6), pytest.approx(had_s, rel=1e-6)):
            expected = Share.WITHIN if wants_s < share_s else Share.OVER if had_s > share_s else Share.SHORT
            assert shares.share(tenant, now_s) is (Share.FREE if is_alone or isinf(level) else expected)


@pytest.mark.parametrize(
    ("demands", "weights"),
    [
        ([1.5, 0.5], [1, 1]),
        ([1.0, 1.0], [1, 3]),
        ([1.9, 0.1], [1, 1]),
        ([0.8, 0.8, 0.4], [1, 2, 1]),
        ([1.0, 0.1, 0.3, 0.2, 0.4], [1, 1, 2, 1, 1]),
    ],
)
@pytest.mark.parametrize("returns", [False, True])
def test_under_overload_admitted_work_is_shared_out_max_min_fairly(
    demands: list[float], weights: list[float], returns: bool
) -> None:
    """Twice what the pool can do; whether clients come back when told or never."""
    until_s, speed, cost_s, rng = 300.0, 4, 0.4, Random(7)
    arrivals = []
    for number, (demand, weight) in enumerate(zip(demands, weights, strict=True)):
        at_s, name = 0.0, f"t{number}"
        while (at_s := at_s + rng.expovariate(demand * speed / cost_s)) < until_s:
            key = f"{name}-{at_s}".encode()
            arrivals.append((at_s, Job(key, name, rng.uniform(0.5, 1.5) * cost_s, weight=weight, returns=returns)))
    world = World(speed, Rules())
    world.run(arrivals, until_s)
    asked_s = [
        (sum(job.cost_s for at_s, job in arrivals if job.tenant == f"t{n}" and at_s >= 60.0), float(weight))
        for n, weight in enumerate(weights)
    ]
    had_s = world.work_s(since_s=60.0)
    assert sum(had_s.values()) > 0.97 * speed * (until_s - 70.0), "the pool stood idle"
    level = fair_level(asked_s, sum(had_s.values()))
    for number, (asked, weight) in enumerate(asked_s):
        assert had_s[f"t{number}"] == pytest.approx(min(asked, weight * level), rel=0.1)
