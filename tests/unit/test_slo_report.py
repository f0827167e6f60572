"""From routers' counters to what `/slo` says."""

import msgspec

from controlplane.counter_window import CounterWindow
from controlplane.slo_report import make_report, router_counters
from router.class_counts import ClassCount
from router.class_gate import ClassGate
from router.errors import ApiError
from router.standing import STANDING_VERSION, Standing, decode, with_turned_away


def standing(**classes: ClassCount) -> Standing:
    return Standing(STANDING_VERSION, 0, 0, classes, {}, (), ())


def test_two_routers_are_one_fleet_and_what_was_before_is_not_counted() -> None:
    window = CounterWindow(60.0)
    old = standing(chat=ClassCount(arrived=1000, answered=1000, judged=1000, met=1000))
    window.observe(0.0, {"a": router_counters(old)})
    for now_s in range(1, 11):
        a = standing(chat=ClassCount(arrived=1000 + now_s, answered=1000 + now_s, judged=1000 + now_s, met=1000))
        b = standing(
            chat=ClassCount(arrived=now_s, answered=now_s, judged=now_s, met=now_s, promised=now_s, promised_met=now_s),
            batch=ClassCount(arrived=2 * now_s, rejected={"kv_full": 2 * now_s}),
        )
        window.observe(float(now_s), {"a": router_counters(a), "b": router_counters(b)})
    batch, chat = make_report(window, 10.0, 1e9).classes
    assert (chat.class_name, chat.arrived, chat.judged, chat.met) == ("chat", 20, 20, 10)
    assert (chat.attainment, chat.kept, chat.goodput_per_s) == (0.5, 1.0, 1.0)
    assert (batch.rejected, batch.attainment, batch.goodput_per_s) == ({"kv_full": 20}, None, 0.0)
    earlier = make_report(window, 3.0, 1e9, until_s=5.0)
    assert (earlier.window_s, earlier.classes[1].met) == (3.0, 3)
    assert make_report(CounterWindow(60.0), 10.0, 1e9).classes == ()


def test_requests_of_paused_classes_have_arrived_too() -> None:
    gate = ClassGate()
    gate.set_paused({"batch": 7.0})
    gate.check("chat")
    for _ in range(3):
        try:
            gate.check("batch")
        except ApiError as error:
            assert (error.status, error.code, error.headers()) == (503, "class_paused", {"Retry-After": "7"})
    counted = {"batch": ClassCount(arrived=5, answered=5)}
    added = with_turned_away(counted, gate.turned_away)["batch"]
    assert (added.arrived, added.answered, added.rejected) == (8, 5, {"class_paused": 3})
    assert counted["batch"].arrived == 5, "the router's own count stays"
    gate.set_paused({})
    gate.check("batch")


def test_a_standing_of_another_version_is_left_out() -> None:
    known = standing(chat=ClassCount(arrived=1))
    assert decode(msgspec.json.encode(known)) == known
    assert decode(msgspec.json.encode(msgspec.structs.replace(known, version=2))) is None
    assert decode(b"[]") is None
    assert decode(b"\xff") is None
