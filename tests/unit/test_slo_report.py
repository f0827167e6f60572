"""From routers' counters to what `/slo` says."""

import msgspec

from controlplane.counter_window import CounterWindow
from controlplane.gauge_window import GaugeWindow
from controlplane.slo_report import make_report, refused_tenants, router_counters, tenant_counters, waiting_by_class
from router.class_counts import ClassCount
from router.standing import STANDING_VERSION, Standing, decode, with_refused


def standing(**classes: ClassCount) -> Standing:
    return Standing(STANDING_VERSION, 0, 0, classes, {}, (), ())


def test_two_routers_are_one_fleet_and_what_was_before_is_not_counted() -> None:
    window, queues = CounterWindow(60.0), GaugeWindow(60.0)
    old = standing(chat=ClassCount(arrived=1000, answered=1000, judged=1000, met=1000))
    window.observe(0.0, {"a": router_counters(old)})
    for now_s in range(1, 11):
        a = standing(chat=ClassCount(arrived=1000 + now_s, answered=1000 + now_s, judged=1000 + now_s, met=1000))
        b = standing(
            chat=ClassCount(arrived=now_s, answered=now_s, judged=now_s, met=now_s, promised=now_s, promised_met=now_s),
            batch=ClassCount(arrived=2 * now_s, rejected={"kv_full": 2 * now_s}),
        )
        window.observe(float(now_s), {"a": router_counters(a), "b": router_counters(b)})
        queues.observe(float(now_s), {"chat": 5.0 - abs(now_s - 5), "late": float(now_s == 10)})
    batch, chat, late = make_report(window, queues, 10.0, 1e9).classes
    assert (batch.most_waiting, chat.most_waiting, late.most_waiting, late.arrived) == (0, 5, 1, 0)
    assert (chat.class_name, chat.arrived, chat.judged, chat.met) == ("chat", 20, 20, 10)
    assert (chat.attainment, chat.kept, chat.goodput_per_s) == (0.5, 1.0, 1.0)
    assert (batch.rejected, batch.attainment, batch.goodput_per_s) == ({"kv_full": 20}, None, 0.0)
    earlier = make_report(window, queues, 3.0, 1e9, until_s=4.0)
    assert (earlier.window_s, earlier.classes[1].met, earlier.classes[1].most_waiting) == (3.0, 3, 4)
    assert make_report(CounterWindow(60.0), GaugeWindow(60.0), 10.0, 1e9).classes == ()


def test_requests_that_were_refused_at_the_door_have_arrived_too() -> None:
    counted = {"batch": ClassCount(arrived=5, answered=4, rejected={"kv_full": 1})}
    refused = {("batch", "class_paused"): 3, ("batch", "insufficient_quota"): 2, ("none", "invalid_api_key"): 0}
    added = with_refused(counted, refused)
    assert added.keys() == {"batch"}, "nothing is made of nothing"
    batch = added["batch"]
    assert (batch.arrived, batch.answered) == (10, 4)
    assert batch.rejected == {"kv_full": 1, "class_paused": 3, "insufficient_quota": 2}
    assert counted["batch"].arrived == 5, "the router's own count stays"


def test_what_tenants_are_refused_is_of_all_routers_and_of_the_window() -> None:
    window = CounterWindow(600.0, 10.0)
    for now_s, number in ((0.0, 7), (10.0, 8), (700.0, 11)):
        known = msgspec.structs.replace(standing(), refused_tenants={"acme": {"insufficient_quota": number}})
        window.observe(now_s, {name: tenant_counters(known) for name in "ab"})
    assert refused_tenants(window.increase(600.0)[1]) == {"acme": {"insufficient_quota": 6}}
    assert waiting_by_class(
        [msgspec.structs.replace(standing(), waiting_by_class=waiting) for waiting in ({"chat": 2}, {"chat": 1}, {})]
    ) == {"chat": 3.0}


def test_a_standing_of_another_version_is_left_out() -> None:
    known = standing(chat=ClassCount(arrived=1))
    assert decode(msgspec.json.encode(known)) == known
    assert decode(msgspec.json.encode(msgspec.structs.replace(known, version=2))) is None
    assert decode(b"[]") is None
    assert decode(b"\xff") is None
