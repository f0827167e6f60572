"""Invariants of router/admission/fairness.py, by hand."""

from math import inf

import pytest

from router.admission.fairness import Share, TenantShares, TenantUsage, fair_level


def had(shares: TenantShares, tenant: str, used_s: float, asked_s: float, now_s: float, weight: float = 1.0) -> None:
    shares.asked(tenant, weight, asked_s, now_s)
    shares.charge(tenant, used_s, now_s)


def over(shares: TenantShares, now_s: float, *tenants: str) -> list[bool]:
    shares.validate()
    return [shares.share(tenant, now_s) is Share.OVER for tenant in tenants]


@pytest.mark.parametrize(
    ("wants", "available", "level"),
    [
        ([(4.0, 1.0), (4.0, 1.0)], 4.0, 2.0),
        ([(1.0, 1.0), (9.0, 1.0)], 4.0, 3.0),
        ([(1.0, 1.0), (9.0, 1.0), (9.0, 2.0)], 7.0, 2.0),
        ([(1.0, 1.0), (2.0, 1.0)], 3.0, inf),
        ([(1.0, 1.0), (2.0, 1.0)], 0.0, 0.0),
        ([], 0.0, inf),
    ],
)
def test_the_level_gives_the_small_what_they_ask_and_the_others_the_same(
    wants: list[tuple[float, float]], available: float, level: float
) -> None:
    assert fair_level(wants, available) == level


def test_nobody_is_over_its_share_while_all_get_what_they_ask() -> None:
    shares = TenantShares()
    had(shares, "big", 100.0, 100.0, 0.0)
    had(shares, "small", 1.0, 1.0, 0.0)
    assert over(shares, 0.0, "big", "small", "unknown") == [False, False, False]
    assert shares.back_in_s("big", 0.0) == 0.0


def test_who_had_more_while_others_were_refused_is_over_its_share() -> None:
    shares = TenantShares()
    had(shares, "big", 6.0, 20.0, 0.0)
    had(shares, "small", 2.0, 5.0, 0.0)
    assert over(shares, 0.0, "big", "small") == [True, False]
    assert shares.share("small", 0.0) is Share.SHORT


def test_who_asks_for_no_more_than_its_share_is_within_it_whatever_it_has_had() -> None:
    shares = TenantShares()
    had(shares, "big", 7.0, 20.0, 0.0)
    had(shares, "small", 1.0, 3.0, 0.0)
    assert [shares.share(tenant, 0.0) for tenant in ("big", "small", "unknown")] == [
        Share.OVER, Share.WITHIN, Share.FREE,
    ]  # fmt: skip
    assert shares.back_in_s("small", 0.0) == 0.0


def test_a_weight_is_a_share_of_as_many() -> None:
    shares = TenantShares()
    had(shares, "heavy", 6.0, 20.0, 0.0, weight=3.0)
    had(shares, "light", 2.1, 20.0, 0.0)
    assert over(shares, 0.0, "heavy", "light") == [False, True]
    assert shares.fraction("heavy", 0.0) == 0.75
    assert shares.fraction("unknown", 0.0) == 1.0


def test_usage_fades_with_its_half_life() -> None:
    shares = TenantShares(half_life_s=10.0)
    had(shares, "a", 8.0, 20.0, 0.0)
    assert shares.report(10.0) == {"a": TenantUsage(4.0, 10.0, 1.0)}
    had(shares, "b", 4.0, 20.0, 20.0)
    assert over(shares, 20.0, "a", "b") == [False, True]
    assert shares.back_in_s("b", 20.0) == pytest.approx(10.0 * 0.415, abs=0.01)


def test_after_ages_the_numbers_are_still_numbers() -> None:
    shares = TenantShares(half_life_s=1.0, window_s=1e9)
    had(shares, "a", 8.0, 20.0, 0.0)
    shares.set_remote("r2", {"a": TenantUsage(8.0, 20.0)}, 0.0)
    for now_s in (200.0, 700.0, 1200.0, 1e7):
        had(shares, "a", 1.0, 2.0, now_s)
        report = shares.report(now_s)["a"]
        assert [report.used_s, report.asked_s] == pytest.approx([1.0, 2.0])
        shares.charge("a", 1.0, now_s + 257.0)
        report = shares.report(now_s + 257.0)["a"]
        assert [report.used_s, report.asked_s] == pytest.approx([1.0, 0.0])
    had(shares, "a", 1.0, 9.0, 2e7)
    had(shares, "b", 3.0, 9.0, 2e7)
    assert over(shares, 2e7, "a", "b") == [False, True]


def test_a_refund_takes_back_what_the_charge_has_become_and_no_more() -> None:
    shares = TenantShares(half_life_s=10.0)
    had(shares, "a", 8.0, 8.0, 0.0)
    shares.charge("a", 2.0, 10.0)
    shares.refund("a", 8.0, 0.0, 20.0)
    assert shares.report(20.0)["a"].used_s == pytest.approx(1.0)
    shares.refund("a", 99.0, 20.0, 20.0)
    assert shares.report(20.0)["a"].used_s == 0.0
    shares.refund("unknown", 1.0, 0.0, 20.0)
    shares.charge("unknown", 1.0, 20.0)
    assert len(shares) == 1


def test_who_has_been_silent_for_the_window_has_no_share_but_keeps_its_debt() -> None:
    shares = TenantShares(half_life_s=100.0, window_s=60.0)
    had(shares, "gone", 5.0, 9.0, 0.0)
    had(shares, "here", 5.0, 9.0, 61.0)
    assert shares.fraction("here", 61.0) == 1.0
    assert list(shares.report(61.0)) == ["here"]
    shares.asked("gone", 1.0, 9.0, 62.0)
    assert shares.fraction("here", 62.0) == 0.5
    assert shares.report(62.0)["gone"].used_s > 3.0


def test_invariant_2_the_longest_silent_is_forgotten() -> None:
    shares = TenantShares(max_tenants=2)
    for now_s, tenant in enumerate(["a", "b", "a", "c"]):
        had(shares, tenant, 1.0, 1.0, float(now_s))
    assert sorted(shares.report(3.0)) == ["a", "c"]
    shares.validate()


def test_invariant_3_other_replicas_count_until_replaced_forgotten_or_old() -> None:
    shares = TenantShares(half_life_s=1e9, window_s=60.0)
    had(shares, "a", 2.0, 9.0, 0.0)
    had(shares, "b", 2.0, 9.0, 0.0)
    shares.set_remote("r2", {"a": TenantUsage(2.0, 9.0), "c": TenantUsage(1.0, 9.0, 2.0)}, 0.0)
    assert over(shares, 0.0, "a", "b") == [True, True]  # c has had less than it
    assert shares.fraction("a", 0.0) == 0.25
    shares.set_remote("r2", {"b": TenantUsage(3.0, 9.0)}, 1.0)
    assert over(shares, 1.0, "a", "b") == [False, True]
    shares.set_remote("r3", {"a": TenantUsage(9.0, 9.0)}, 1.0)
    assert over(shares, 1.0, "a", "b") == [True, False]
    shares.forget("r3")
    shares.forget("r3")
    assert over(shares, 1.0, "a", "b") == [False, True]
    shares.asked("a", 1.0, 1.0, 61.5)
    shares.asked("b", 1.0, 1.0, 61.5)
    assert over(shares, 61.5, "a", "b") == [False, False]


def test_with_many_tenants_the_level_is_computed_every_so_often() -> None:
    shares = TenantShares()
    for number in range(100):
        had(shares, f"t{number}", 1.0, 3.0, 0.0)
    assert over(shares, 0.0, "t0") == [False]
    had(shares, "t0", 1.0, 3.0, 0.1)
    computed_at_s = shares._computed_at_s
    assert over(shares, 0.1, "t0") == [True]
    assert shares._computed_at_s == computed_at_s == 0.0
    over(shares, 0.4, "t0")
    assert shares._computed_at_s == 0.4


def test_a_share_of_nothing_is_back_after_a_half_life() -> None:
    shares = TenantShares(half_life_s=10.0)
    for number in range(20):
        shares.asked(f"t{number}", 1.0, 1.0, 0.0)
    assert over(shares, 0.0, "t0") == [False]
    shares.charge("t0", 1.0, 0.1)  # before the level is computed again
    assert over(shares, 0.1, "t0") == [True]
    assert shares.back_in_s("t0", 0.1) == 10.0


def test_a_report_changes_nothing() -> None:
    """Reports are made by the clock and not by events: a replay does not know of them."""
    asked, told = TenantShares(), TenantShares()
    assert told.report(5.0) == {}
    for shares in (asked, told):
        shares.asked("a", 1.0, 2.0, 10.0)
        shares.charge("a", 2.0, 10.0)
    assert told.report(10.0)["a"].used_s == 2.0
    told.report(1e6)
    for shares in (asked, told):
        shares.asked("b", 1.0, 1.0, 40.0)
    assert told.report(40.0) == asked.report(40.0)
    assert told.back_in_s("a", 40.0) == asked.back_in_s("a", 40.0)
