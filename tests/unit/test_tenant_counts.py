"""Requests by tenant: the invariants of router/metrics/tenants.py, by number."""

from hypothesis import given
from hypothesis import strategies as st

from kvstore.usage_store import Used
from router.metrics.tenants import OTHER, TenantCounts

Series = dict[tuple[str, ...], float]


def shown(counts: TenantCounts) -> Series:
    """Requests of those that are not 0."""
    return all_shown(counts)["headrace_tenant_requests"]


def all_shown(counts: TenantCounts) -> dict[str, Series]:
    """By family."""
    return {
        family.name: {
            (sample.labels.pop("tenant"), *sample.labels.values()): sample.value
            for sample in family.samples
            if sample.value
        }
        for family in counts.collect()
    }


def rises(before: Series, after: Series) -> float:
    """As `increase` counts: a series that is new, or has fallen, has risen from 0."""
    return sum(value - (known if (known := before.get(key, 0.0)) <= value else 0.0) for key, value in after.items())


NAMES = st.sampled_from(["a", "b", "c", "d", "e", OTHER])


@given(st.lists(st.tuples(NAMES, st.integers(1, 9), st.booleans()), max_size=40))
def test_series_are_few_and_lose_no_request(steps: list[tuple[str, int, bool]]) -> None:
    """Invariants 1 to 3: between two looks all series together rise by the requests that ended."""
    counts = TenantCounts(num_kept=2, num_known=3)
    before, asked = shown(counts), 0
    for tenant, number, is_looked_at in steps:
        for _ in range(number):
            counts.inc(tenant, "met")
        asked += number
        if is_looked_at:
            after = shown(counts)
            assert len({name for name, _ in after} - {OTHER}) <= 2
            assert rises(before, after) == asked
            assert after.get((OTHER, "met"), 0.0) >= before.get((OTHER, "met"), 0.0)
            before, asked = after, 0
    assert len(counts._asked) <= 3


def test_without_a_change_of_hands_every_request_is_seen() -> None:
    """Invariant 1."""
    counts = TenantCounts(num_kept=1)
    for tenant in ("a", "a", "b", "a", "c"):
        counts.inc(tenant, "met")
    counts.inc("b", "missed")
    assert shown(counts) == {("a", "met"): 3.0, (OTHER, "met"): 2.0, (OTHER, "missed"): 1.0}


def test_who_asks_most_takes_over_at_a_look_and_only_clearly() -> None:
    counts = TenantCounts(num_kept=1)
    for tenant, number in (("small", 10), ("large", 20)):
        for _ in range(number):
            counts.inc(tenant, "met")
    shown(counts)
    counts.inc("large", "met")
    assert shown(counts) == {("small", "met"): 10.0, (OTHER, "met"): 21.0}  # 20 to 10 was not more than twice
    counts.inc("large", "met")
    counts.inc("small", "met")
    assert shown(counts) == {("large", "met"): 1.0, (OTHER, "met"): 22.0}


def test_tokens_and_refusals_are_where_the_requests_are() -> None:
    """Invariant 1."""
    counts = TenantCounts(num_kept=1)
    for tenant in ("a", "b", "c"):
        counts.charge(tenant, Used(1, 100, 60, 7))
        counts.inc(tenant, "met")
    for tenant in ("a", "a", "b"):
        counts.refuse(tenant, "insufficient_quota")
    assert counts.shown == ("a",)
    assert counts.refused == {"a": {"insufficient_quota": 2}}, "of those who have series"
    assert all_shown(counts) == {
        "headrace_tenant_requests": {
            ("a", "met"): 1.0, ("a", "rejected"): 2.0, (OTHER, "met"): 2.0, (OTHER, "rejected"): 1.0
        },
        "headrace_tenant_refused": {("a", "insufficient_quota"): 2.0, (OTHER, "insufficient_quota"): 1.0},
        "headrace_tenant_tokens": {
            ("a", "prompt"): 100.0, ("a", "cached"): 60.0, ("a", "output"): 7.0,
            (OTHER, "prompt"): 200.0, (OTHER, "cached"): 120.0, (OTHER, "output"): 14.0,
        },
    }  # fmt: skip


def test_a_flood_of_names_is_forgotten() -> None:
    """Invariant 2: what clients can invent takes no memory for long."""
    counts = TenantCounts(num_kept=2, num_known=100)
    for number in range(5_000):
        counts.inc(f"t{number}", "met")
        counts.inc("faithful", "met")
    assert len(counts._asked) <= 100
    kept = {name for name, _ in shown(counts)}
    assert "faithful" in kept
    assert len(kept) <= 3
