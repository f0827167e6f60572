"""Invariants of router/admission/appointments.py and router/admission/timeline.py, by hand."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest

from router.admission.appointments import Appointments, Ask, Offer
from router.admission.demand import Newcomer, Probe
from router.admission.timeline import Timeline

IDLE = Probe(0.0, inf, 0, 0.0)


def ask(
    name: str,
    tenant: str = "t",
    *,
    cost_s: float = 1.0,
    ttft_s: float = 2.0,
    blocked_s: float = 0.0,
    fraction: float = 1.0,
    not_before_s: float = 0.0,
    ends_per_s: float = inf,
) -> Ask:
    return Ask(tenant, name.encode(), cost_s, ttft_s, ttft_s - cost_s, blocked_s, fraction, not_before_s, ends_per_s)


def offer(
    places: Appointments, item: Ask, now_s: float = 0.0, *, backlog_s: float = 0.0, speed: int = 1, slack_s: float = inf
) -> Offer:
    """With so much work before it, whatever its deadline."""

    def probe(newcomer: Newcomer) -> Probe:
        return Probe(backlog_s / max(speed, 1), slack_s, 0, 0.0)

    given = places.offer(item, probe, speed, now_s)
    places.validate()
    return given


def test_the_time_is_the_first_whole_second_at_which_it_can_be_started_in_time() -> None:
    assert offer(Appointments(), ask("a"), 100.0).at_s == 101.0
    assert offer(Appointments(), ask("a"), 0.25, backlog_s=7.5).retry_after_s == 7  # it may wait 1 s of the 7.5
    assert offer(Appointments(), ask("a"), backlog_s=7.5, speed=2).retry_after_s == 3
    assert offer(Appointments(), ask("a", not_before_s=4.2)).retry_after_s == 5


def test_places_are_spread_so_that_they_take_their_share_of_the_pool_and_no_more() -> None:
    places = Appointments(share=0.5)
    times = [offer(places, ask(str(number), cost_s=0.5), 0.0).retry_after_s for number in range(6)]
    assert times == [1, 2, 3, 4, 5, 6]
    assert places.reserved_work_s(2.0) == 1.0


def test_a_request_that_needs_more_than_a_share_gets_an_empty_window() -> None:
    places = Appointments(share=0.5)
    assert offer(places, ask("small", cost_s=0.1)).retry_after_s == 1
    big = offer(places, ask("big", cost_s=3.0, ttft_s=4.0))
    assert (big.retry_after_s, big.has_place) == (2, True)
    assert offer(places, ask("next", cost_s=0.5)).retry_after_s == 8  # the other's work is planned until then


def test_places_take_their_share_of_the_room_in_decode_batches_too() -> None:
    places = Appointments(share=0.5)
    times = [offer(places, ask(str(n), cost_s=0.01, ttft_s=1.01, ends_per_s=2.0)).retry_after_s for n in range(5)]
    assert times == [1, 2, 3, 4, 5]  # one in a second
    assert offer(places, ask("elsewhere", "u", cost_s=0.01)).retry_after_s == 1
    assert places.take("t", b"1") is not None
    assert offer(places, ask("next", "v", cost_s=0.01, ttft_s=1.01, ends_per_s=2.0)).retry_after_s == 2
    never = offer(places, ask("never", ends_per_s=0.0))
    assert (never.retry_after_s, never.has_place) == (120, False)


def test_a_promise_that_would_be_late_because_of_it_is_in_the_way() -> None:
    places = Appointments()

    def probe(newcomer: Newcomer) -> Probe:
        return Probe(0.0, -0.1 if newcomer.due_at_s < 12.0 else inf, 0, 0.0)

    assert places.offer(ask("a"), probe, 1, 0.0).retry_after_s == 11


def test_invariant_1_who_comes_back_in_time_has_its_place_once() -> None:
    places = Appointments(grace_s=2.0)
    assert offer(places, ask("a"), backlog_s=6.0) == Offer(5, 5.0, True, "work before it takes until 6.000 s from now")
    with pytest.raises(AssertionError, match="invariant 1"):
        offer(places, ask("a"))
    assert places.due_in_s("t", b"b", 5.0) is None
    assert places.due_in_s("u", b"a", 5.0) is None
    assert places.due_in_s("t", b"a", 3.0) == 2.0
    assert places.due_in_s("t", b"a", 4.8) == 0.0
    assert places.due_in_s("t", b"a", 6.9) == 0.0
    assert places.take("t", b"a") is not None
    assert places.take("t", b"a") is None
    assert places.due_in_s("t", b"a", 6.9) is None
    assert places.aside() is None
    places.validate()


def test_invariant_1_who_does_not_come_loses_it_after_the_grace() -> None:
    places = Appointments(grace_s=2.0)
    offer(places, ask("a"))
    offer(places, ask("b"), backlog_s=9.0)
    assert places.next_lapse_s() == 3.0
    assert places.lapse(2.9) == []
    assert [place.key for place in places.lapse(3.0)] == [b"a"]
    assert (len(places), places.reserved_work_s(99.0), places.next_lapse_s()) == (1, 1.0, 10.0)
    assert places.due_in_s("t", b"b", 10.0) is None
    assert places.next_lapse_s() is None
    places.validate()


def test_invariant_2_what_is_freed_can_be_given_again() -> None:
    places = Appointments()
    assert [offer(places, ask(name)).retry_after_s for name in "abc"] == [1, 3, 5]
    places.take("t", b"b")
    assert offer(places, ask("d")).retry_after_s == 3
    assert offer(places, ask("e", "u")).retry_after_s == 7
    places.validate()


def test_work_set_aside_is_that_of_the_places_until_then() -> None:
    places = Appointments()
    offer(places, ask("a"))
    offer(places, ask("b"))
    aside = places.aside()
    assert aside is not None and aside.share == 0.5
    assert aside.until(np.array([0.5, 1.0, 3.0, 9.0])).tolist() == [0.0, 1.0, 2.0, 2.0]
    assert aside.num_until(np.array([0.5, 1.0, 3.0, 9.0])).tolist() == [0.0, 1.0, 2.0, 2.0]


def test_invariant_4_places_and_those_of_a_tenant_are_bounded() -> None:
    places = Appointments(max_places=4, tenant_share=0.5)
    assert [offer(places, ask(name, "t")).has_place for name in "abc"] == [True, True, False]
    refused = offer(places, ask("d", "t"))
    assert (refused.has_place, refused.detail) == (False, "the tenant holds 2 places, its share")
    assert [offer(places, ask(name, "u")).has_place for name in "ab"] == [True, True]
    assert offer(places, ask("a", "v")).detail == "all 4 places are given"


def test_a_tenant_gets_places_at_its_rate() -> None:
    places = Appointments(share=0.5)
    for name in "abc":
        offer(places, ask(name, "greedy", fraction=0.5))
    assert [place.at_s for place in places._in_order] == [1.0, 3.0, 7.0]
    assert offer(places, ask("x", "other", fraction=0.5)).retry_after_s == 5


@pytest.mark.parametrize(
    ("item", "backlog_s", "speed", "detail"),
    [
        (ask("a"), 200.0, 1, "not within 120 s (slo.appointments.horizon_s)"),
        (ask("a", not_before_s=121.0), 0.0, 1, "not within 120 s (slo.appointments.horizon_s)"),
        (ask("a"), 0.0, 0, "no worker is there"),
    ],
)
def test_beyond_the_horizon_there_is_no_place(item: Ask, backlog_s: float, speed: int, detail: str) -> None:
    places = Appointments()
    assert offer(places, item, backlog_s=backlog_s, speed=speed) == Offer(120, 120.0, False, detail)
    assert len(places) == 0


def test_no_place_is_given_that_could_not_be_kept() -> None:
    places = Appointments()
    nameless = offer(places, ask(""))
    assert (nameless.has_place, nameless.detail) == (False, "it could not be recognised when it comes back")
    blocked = offer(places, ask("a", blocked_s=2.5))
    assert (blocked.has_place, blocked.retry_after_s) == (False, 3)
    assert "may keep all workers busy for 2.500 s" in blocked.detail


def test_time_goes_on_and_the_past_is_forgotten() -> None:
    places = Appointments()
    for now_s in range(0, 100_000, 1000):
        assert offer(places, ask("a"), float(now_s)).retry_after_s == 1
        assert places.take("t", b"a") is not None
        offer(places, ask("stays"), float(now_s))
    assert len(places._timelines[0]._planned) < 2000


def room(timeline: Timeline, first: int, end: int) -> float:
    found: Callable[[], float] = lambda: float(timeline.room(np.array([first]), np.array([end]), 1.0)[0])  # noqa: E731
    return found()


def test_invariant_2_of_timeline_work_is_planned_where_there_is_room_first() -> None:
    timeline = Timeline()
    first = timeline.plan(10, 2.5, 1.0)
    assert timeline.planned() == {10: 1.0, 11: 1.0, 12: 0.5}
    second = timeline.plan(11, 1.0, 1.0)
    assert timeline.planned() == {10: 1.0, 11: 1.0, 12: 1.0, 13: 0.5}
    assert room(timeline, 10, 15) == 1.5
    timeline.free(first)
    assert timeline.planned() == {12: 0.5, 13: 0.5}
    timeline.forget_before(13)
    timeline.free(second)
    assert timeline.planned() == {}
    timeline.plan(14, 400.0, 1.0)
    timeline.forget_before(300)
    assert room(timeline, 300, 420) == pytest.approx(6.0)
    timeline.forget_before(9000)
    assert timeline.planned() == {}
    with pytest.raises(AssertionError):
        timeline.plan(9000, 0.0, 1.0)
