"""Explanations of requests. Numbers are invariants of `router/explain/explainer.py`."""

import math
from collections.abc import Sequence
from random import Random

import pytest
from msgspec import structs

from kvstore.types import RequestId, WorkerId
from router.events import (
    Abort,
    Command,
    Dispatch,
    Event,
    FirstToken,
    PrefillDone,
    Reject,
    RejectReason,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    Woken,
    WorkerGone,
)
from router.explain import explanation as told
from router.explain.explainer import Explainer
from router.explain.explanation import Explanation, decode, encode
from router.explain.pack import About, pack, unpack
from router.explain.steps import MOST_CHARS, Asked, Note, Wait, note_dispatch, tell_arrival
from router.explain.text import headers, render_text, span_attributes
from router.types import UNPROMISED, Considered, Forecast, Overlap, Request, RoutingDecision, Usage
from tests.builders import make_core, make_decode, make_prefill, make_request, make_terms, make_worker
from tests.histories import History

R1 = RequestId("r1")
P1, P2, D1, D2 = (WorkerId(name) for name in ("prefill-1", "prefill-2", "decode-1", "decode-2"))
CHOSEN = Forecast(0.1, 0.0, 0.2, 0.02, 0.0123, 0.05, 0.0123, 64.0)
REQUEST = structs.replace(
    make_request(num_prompt_tokens=100, terms=make_terms(tenant="acme", ttft_s=1.0, tpot_s=0.05, deadline_s=5.0)),
    tokens_counted=True,
    session="secret session",
    digest=b"secret digest",
)


def make_explainer() -> Explainer:
    """Of a router whose clock showed 100 at 2026-01-01 00:00:00 UTC."""
    return Explainer(router="router-1", policy="least_cost", unix_offset_s=1_767_225_600.0 - 100.0)


def make_dispatch(request: Request = REQUEST, attempt: int = 1, waited_s: float = 0.0, why: str = "") -> Dispatch:
    """To prefill-1 and decode-1, with three other ways."""
    ways = (
        Considered(P1, D1, CHOSEN),
        Considered(P2, D1, CHOSEN._replace(queue_s=0.4)),
        Considered(P1, D2, CHOSEN._replace(harm_s=0.049)),
        Considered(None, D1, CHOSEN._replace(transfer_s=0.0, prefill_s=0.8, overlap_tokens=0.0)),
    )
    return Dispatch(
        RoutingDecision(
            request_id=request.id,
            attempt=attempt,
            decode=make_decode(),
            prefill=make_prefill(),
            forecast=CHOSEN,
            excluded=frozenset({WorkerId("w2"), WorkerId("w1")}) if attempt > 1 else frozenset(),
            promised=True,
            waited_s=waited_s,
            considered=ways,
            num_candidates=4,
            num_near_equal=2,
            why=why,
        )
    )


Told = tuple[float, Event, Sequence[Command]]
SERVED: tuple[Told, ...] = (
    (100.0, RequestArrived(REQUEST, Overlap(32, ((1, 7), (3, 1)))), []),
    (100.4, Woken(), [make_dispatch(waited_s=0.4, why="2 promises ahead")]),
    (100.6, PrefillDone(R1, 1, 32), []),
    (100.75, FirstToken(R1, 1), []),
    (101.75, RequestDone(R1, 1, Usage(100, 99, 21)), []),
)


def explain(*steps: Told) -> Explanation:
    """The one explanation that comes out at the end of these steps."""
    explainer = make_explainer()
    ended = [explainer.tell(ended.packed) for step in steps for ended in explainer.observe(*step)]
    assert explainer.num_live == 0
    (explanation,) = ended
    assert decode(encode(explanation)) == explanation
    return explanation


def test_a_served_request_is_told_from_arrival_to_end() -> None:
    found = explain(*SERVED)
    assert (found.request_id, found.public_id, found.outcome) == ("r1", "r1", "done")
    assert found.arrived_at_s == 1_767_225_600.0
    arrival = found.arrival
    assert (arrival.tenant, arrival.class_name, arrival.known_prefix_tokens) == ("acme", "chat", 96)
    assert (arrival.ttft_s, arrival.tpot_s, arrival.deadline_s) == (1.0, 0.05, 5.0)
    queued, dispatched, prefilled, began, done = found.steps
    assert queued == told.Queued(0.0, 0, "2 promises ahead")
    assert isinstance(dispatched, told.Dispatched)
    assert (dispatched.age_s, dispatched.waited_s, dispatched.prefill, dispatched.decode) == (0.4, 0.4, P1, D1)
    assert prefilled == told.Prefilled(0.6, 1, 32)
    assert began == told.Began(0.75, 1, 0.7323)
    assert done == told.Done(1.75, 1, 100, 21, 32, 64, 0.05, 0.0123, True, True)


def test_every_other_way_says_what_it_would_have_cost_and_mostly_why() -> None:
    (_, dispatched, *_) = explain(*SERVED).steps
    assert isinstance(dispatched, told.Dispatched)
    assert [(way.prefill, way.decode, way.over_s, way.mainly) for way in dispatched.ways] == [
        (P1, D1, 0.0, ""),
        (P1, D2, -0.001, "harm_s"),  # near-equal; the draw went the other way
        (P2, D1, 0.3, "queue_s"),
        (None, D1, 0.58, "prefill_s"),
    ]
    for way in dispatched.ways:
        terms = sum(getattr(way.predicted, term) for term in told.TERMS)
        assert way.predicted.cost_s == pytest.approx(terms, abs=1e-5)
        assert way.predicted.cost_s == pytest.approx(dispatched.predicted.cost_s + way.over_s, abs=1e-5)


def test_failed_attempts_stay_in_the_story() -> None:
    found = explain(
        (100.0, RequestArrived(REQUEST), [make_dispatch()]),
        (100.1, WorkerGone(P1, "lease expired"), [Abort(R1, 1, P1)]),
        (100.2, RequestFailed(R1, 1, P1, retriable=True), [make_dispatch(attempt=2, waited_s=0.2)]),
        (100.3, FirstToken(R1, 2), []),
        (100.9, RequestFailed(R1, 2, D1, retriable=False), []),
    )
    assert found.outcome == "failed"
    kinds = [type(step).__name__ for step in found.steps]
    assert kinds == ["Dispatched", "Aborted", "Failed", "Dispatched", "Began", "Failed"]
    second = found.steps[3]
    assert isinstance(second, told.Dispatched)
    assert second.excluded == ("w1", "w2")
    assert found.steps[4] == told.Began(0.3, 2, 0.5323)


def test_a_rejection_says_why_and_when_to_come_back() -> None:
    reject = Reject(R1, RejectReason.TTFT_INFEASIBLE, "3 s of work are ahead", 2.5)
    found = explain((100.0, RequestArrived(REQUEST), [reject]))
    assert found.outcome == "rejected"
    assert found.steps == (told.Rejected(0.0, "ttft_infeasible", "3 s of work are ahead", 2.5),)
    text = render_text(found)
    assert "ttft_infeasible: 3 s of work are ahead" in text
    assert "come back in 2.5 s" in text


@pytest.mark.parametrize(
    ("steps", "during"),
    [
        ([], "waiting"),
        ([(100.1, Woken(), [make_dispatch()])], "prefill"),
        ([(100.1, Woken(), [make_dispatch()]), (100.2, FirstToken(R1, 1), [])], "answer"),
        ([(100.1, Woken(), [make_dispatch()]), (100.2, RequestFailed(R1, 1, P1, retriable=True), [])], "waiting"),
    ],
)
def test_a_cancelled_request_says_when(steps: list[Told], during: str) -> None:
    found = explain((100.0, RequestArrived(REQUEST), []), *steps, (101.0, RequestCancelled(R1), []))
    assert found.outcome == "cancelled"
    assert isinstance(found.steps[-1], told.Cancelled)
    assert found.steps[-1].during == during


def test_an_answer_to_one_request_may_come_with_the_end_of_another() -> None:
    explainer = make_explainer()
    other = structs.replace(REQUEST, id=RequestId("r2"))
    explainer.observe(100.0, RequestArrived(REQUEST), [make_dispatch()])
    explainer.observe(100.1, RequestArrived(other), [])
    (first,) = explainer.observe(100.2, RequestDone(R1, 1), [make_dispatch(other, waited_s=0.1)])
    assert first.request_id == "r1"
    living = explainer.explanation("r2")
    assert living is not None
    assert (living.outcome, [type(step).__name__ for step in living.steps]) == ("running", ["Queued", "Dispatched"])


def test_events_of_other_attempts_and_unknown_requests_add_nothing() -> None:
    """Invariant 2."""
    explainer = make_explainer()
    explainer.observe(100.0, RequestArrived(REQUEST), [])

    def late(attempt: int) -> list[Event]:
        return [PrefillDone(R1, attempt), FirstToken(R1, attempt), RequestDone(R1, attempt)]

    before = explainer.explanation("r1")
    for event in [*late(1), RequestFailed(R1, 1, D1, retriable=True)]:
        assert explainer.observe(100.1, event, []) == []
    assert explainer.explanation("r1") == before
    explainer.observe(100.2, Woken(), [make_dispatch()])
    before = explainer.explanation("r1")
    for event in late(0) + late(2):
        assert explainer.observe(100.3, event, []) == []
    unknown = RequestId("never seen")
    assert explainer.observe(100.3, RequestCancelled(unknown), [Abort(unknown, 1, D1)]) == []
    assert explainer.explanation("r1") == before
    assert explainer.explanation("never seen") is None


def test_a_waiting_request_counts_those_that_waited_before_it() -> None:
    explainer = make_explainer()
    for number in range(3):
        explainer.observe(100.0, RequestArrived(structs.replace(REQUEST, id=RequestId(f"r{number}"))), [])
    explainer.observe(100.1, RequestCancelled(RequestId("r0")), [])
    explainer.observe(100.2, RequestArrived(structs.replace(REQUEST, id=RequestId("last"))), [])
    living = explainer.explanation("last")
    assert living is not None
    assert living.outcome == "waiting"
    assert living.steps == (told.Queued(0.0, 2, ""),)


def test_a_living_request_is_found_by_its_public_id() -> None:
    explainer = make_explainer()
    for number in range(2):
        explainer.announce(RequestId(f"r{number}"), "mine")
        explainer.observe(100.0, RequestArrived(structs.replace(REQUEST, id=RequestId(f"r{number}"))), [])
    living = explainer.explanation("mine")
    assert living is not None
    assert (living.request_id, living.public_id) == ("r1", "mine")


def test_an_answer_in_one_piece_is_not_judged_by_its_first_byte() -> None:
    whole = structs.replace(REQUEST, streamed=False)
    found = explain(
        (100.0, RequestArrived(whole), [make_dispatch(whole)]),
        (103.0, FirstToken(R1, 1), []),
        (103.0, RequestDone(R1, 1, Usage(100, None, 21)), []),
    )
    done = found.steps[-1]
    assert isinstance(done, told.Done)
    assert (done.ttft_met, done.tpot_met, done.tpot_s, done.cached_tokens) == (None, None, None, None)
    assert "in one piece" in render_text(found)


def test_without_targets_nothing_is_judged() -> None:
    free = structs.replace(REQUEST, terms=UNPROMISED)
    found = explain(
        (100.0, RequestArrived(free), [make_dispatch(free)]),
        (103.0, FirstToken(R1, 1), []),
        (104.0, RequestDone(R1, 1, Usage(100, 32, 21)), []),
    )
    assert (found.arrival.ttft_s, found.arrival.tpot_s, found.arrival.deadline_s) == (None, None, None)
    done = found.steps[-1]
    assert isinstance(done, told.Done)
    assert (done.ttft_met, done.tpot_met, done.tpot_s, done.cached_tokens) == (None, None, 0.05, 32)
    assert "targets: none" in render_text(found)


def test_no_secret_and_nothing_endless_gets_in() -> None:
    """Invariant 3. Of the request's digest and session, nothing; of a model's name, as much as a line holds."""
    hostile = structs.replace(REQUEST, model="m\x1b[2J\n" * 10_000 + "\ud800", max_output_tokens=10**40)
    reject = Reject(R1, RejectReason.UNKNOWN_MODEL, f"the model {hostile.model!r} does not exist here", None)
    found = explain((100.0, RequestArrived(hostile), [reject]))
    data = encode(found)
    assert len(data) < 2000
    assert b"secret" not in data
    assert len(found.arrival.model) == MOST_CHARS
    text = render_text(found)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "asking again would not help" in text


def test_a_forecast_without_end_can_be_written() -> None:
    decision = structs.replace(make_dispatch().decision, forecast=CHOSEN._replace(queue_s=math.inf, harm_s=math.nan))
    found = explain((100.0, RequestArrived(REQUEST), [Dispatch(decision)]), (100.1, RequestCancelled(R1), []))
    dispatched = found.steps[0]
    assert isinstance(dispatched, told.Dispatched)
    assert dispatched.predicted.queue_s == 1e9


def test_the_text_answers_why_there_and_why_so_late() -> None:
    lines = render_text(explain(*SERVED)).splitlines()
    assert lines[0] == "request r1"
    assert lines[1] == "arrived 2026-01-01 00:00:00.000 UTC at router router-1"
    text = "\n".join(line.strip() for line in lines)
    for words in (
        "prompt 100 tokens (counted); 96 of them in some cache; up to 16 out",
        "class chat, tenant acme; targets: first token 1 s, 0.05 s a token, given up after 5 s",
        "+0.000 s  queued      0 other(s) waiting; 2 promises ahead",
        "+0.400 s  dispatched  attempt 1: prefill-1 -> decode-1, after waiting 0.4 s",
        "its targets are promised",
        "queue 0.1000 + fetch 0.0000 + prefill 0.2000 + transfer 0.0200 + step 0.0123",
        "64 of 100 prompt tokens are in the caches of prefill-1",
        "of 4 worker(s), drawn among 2 near-equal ways",
        "+0.3000, mostly queue",
        "-0.0010, mostly harm",
        "+0.750 s  first token attempt 1; forecast +0.732 s, 0.018 s later",
        "32 prompt tokens were cached; predicted 64",
        "0.05 s a token; predicted 0.0123 s",
        "outcome: done in 1.75 s; first token met, token gap met",
    ):
        assert words in text, words
    assert max(map(len, lines)) < 160


def test_headers_are_short_ascii() -> None:
    said = headers(explain(*SERVED))
    assert said["x-headrace-worker"] == D1
    assert said["x-headrace-prefill-worker"] == P1
    assert said["x-headrace-overlap-tokens"] == "64"
    assert said["x-headrace-predicted-ttft-s"] == "0.732300"
    assert said["x-headrace-waited-s"] == "0.400000"
    assert (said["x-headrace-class"], said["x-headrace-policy"]) == ("chat", "least_cost")
    named = structs.replace(REQUEST, terms=make_terms(tenant="Zoë\r\nSet-Cookie: x" + "y" * 1000))
    reject = Reject(R1, RejectReason.KV_FULL, "", 1.0)
    said = headers(explain((100.0, RequestArrived(named), [reject])))
    assert said["x-headrace-rejected"] == "kv_full"
    for name, value in said.items():
        assert all(" " <= char <= "~" for char in name + value)
        assert len(value) <= 128


def test_span_attributes_are_plain_values() -> None:
    attributes = span_attributes(make_dispatch(why="because").decision)
    assert attributes["decode"] == D1
    assert attributes["prefill"] == P1
    assert attributes["hand_off"] is True
    assert attributes["overlap_tokens"] == 64
    assert attributes["predicted_ttft_s"] == pytest.approx(0.3323)
    assert attributes["why"] == "because"
    assert all(isinstance(value, str | int | float | bool) for value in attributes.values())
    local = span_attributes(structs.replace(make_dispatch().decision, prefill=None, decode=make_worker("mixed-1")))
    assert (local["prefill"], local["hand_off"], "why" in local) == ("mixed-1", False, False)


@pytest.mark.parametrize("seed", range(3))
def test_every_request_of_a_history_comes_out_once(seed: int) -> None:
    """Invariant 1."""
    explainer = make_explainer()
    ended: list[Explanation] = []
    history = History(
        make_core(seed, hand_off="cost"),
        Random(seed),
        lambda *step: ended.extend(explainer.tell(found.packed) for found in explainer.observe(*step)),
    )
    history.run(200)
    assert explainer.num_live == len(history.live)
    history.end()
    assert explainer.num_live == 0
    assert sorted(found.request_id for found in ended) == sorted(f"r{n + 1}" for n in range(history.num_arrived))
    for found in ended:
        assert decode(encode(found)) == found
        assert render_text(found).endswith("\n")
        ages_s = [step.age_s for step in found.steps]
        assert ages_s == sorted(ages_s)
        assert ages_s[0] == 0.0


def test_what_is_packed_comes_out_as_it_was() -> None:
    """Of every kind, with forecasts without an end."""
    endless = CHOSEN._replace(queue_s=math.inf, overlap_tokens=math.nan)
    decided = note_dispatch(make_dispatch(attempt=2, why="x" * 1000).decision)
    notes: list[tuple[float, Note]] = [
        (1.0, Wait(3, "y")),
        (2.0, decided),
        (2.5, structs.replace(decided, forecast=endless, prefill=None)),
        (3.0, PrefillDone(R1, 1, None)),
        (4.0, FirstToken(R1, 1)),
        (5.0, Abort(R1, 1, D1)),
        (6.0, RequestFailed(R1, 1, D1, retriable=True)),
        (7.0, Reject(R1, RejectReason.KV_FULL, "z", None)),
        (8.0, RequestDone(R1, 1, Usage(1, None, 2))),
        (9.0, RequestCancelled(R1)),
    ]
    about = About("r1", "p1", 0.5, "done", tell_arrival(REQUEST, Overlap(32, ())), Asked(True, 1.0, math.inf))
    found, steps = unpack(pack(about, notes))
    assert found == about
    assert repr(steps) == repr(notes)  # NaN equals nothing
    assert len(decided.why) == MOST_CHARS + 1
