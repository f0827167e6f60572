"""Recordings told to cores again: the same core, a changed one, another policy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from msgspec import structs

from kvstore.types import RequestId, WorkerId
from router.core import RouterCore
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
    WorkerChanged,
    WorkerGone,
)
from router.replay.recording import End, Header, RecordingError, RecordingWriter
from router.replay.replay import replay
from router.replay.what_if import compare
from router.types import Forecast, RoutingDecision
from tests.builders import make_core, make_decode, make_prefill, make_request, make_worker
from tests.histories import History

R1, R2 = RequestId("r1"), RequestId("r2")
W1, W2 = WorkerId("w1"), WorkerId("w2")
HEADER = Header(recipe={"seed": 5, "hand_off": "cost"}, started_at_s=0.0, now_s=0.0, written_with={})
Told = tuple[float, Event, Sequence[Command]]


def lines_of(*steps: Told) -> list[bytes]:
    """A whole recording."""
    writer = RecordingWriter()
    data = [writer.header(HEADER), *(writer.step(*step) for step in steps), writer.end(End("stopped", len(steps)))]
    return b"".join(data).splitlines(keepends=True)


def history_lines(seed: int, num_steps: int) -> list[bytes]:
    """A random history of a real core."""
    writer = RecordingWriter()
    data = [writer.header(replace(HEADER, recipe={"seed": seed, "hand_off": "cost"}))]
    history = History(make_core(seed, hand_off="cost"), Random(seed), lambda *step: data.append(writer.step(*step)))
    history.run(num_steps)
    return b"".join(data).splitlines(keepends=True)


def build(recipe: Mapping[str, Any]) -> RouterCore:
    """As the composition root does from a header."""
    return make_core(recipe["seed"], hand_off=recipe["hand_off"])


class Scripted:
    """A core that answers from a script and remembers what it was told."""

    def __init__(self, answers: Mapping[Event, Sequence[Command]], wakeups_s: Sequence[float] = ()) -> None:
        self.told: list[tuple[float, Event]] = []
        self._answers = answers
        self._wakeups_s = list(wakeups_s)

    def handle(self, event: Event, now_s: float) -> Sequence[Command]:
        self.told.append((now_s, event))
        return self._answers.get(event, ())

    def next_wakeup_s(self, now_s: float) -> float | None:
        return next((at_s for at_s in self._wakeups_s if at_s > now_s), None)


def dispatch(request_id: RequestId, decode: WorkerId, prefill: WorkerId | None = None, attempt: int = 1) -> Dispatch:
    """With a forecast of a second."""
    return Dispatch(
        RoutingDecision(
            request_id=request_id,
            attempt=attempt,
            decode=make_decode(decode),
            prefill=make_prefill(prefill) if prefill else None,
            forecast=Forecast(0.5, 0.0, 0.25, 0.0, 0.25, 1.0, 0.02, 0.0),
        )
    )


def arrived(request_id: RequestId) -> RequestArrived:
    """A request."""
    return RequestArrived(make_request(request_id))


# -- replay


def test_the_same_core_decides_the_same() -> None:
    lines = history_lines(5, 100)
    report = replay(lines, build)
    assert report.difference is None
    assert (report.num_events, report.end) == (sum(b'"event"' in line for line in lines), End("cut", report.num_events))
    assert report.num_commands == sum(line.count(b'"type":') - 1 for line in lines if b'"event"' in line)
    assert report.header.recipe == {"seed": 5, "hand_off": "cost"}


def test_another_core_does_not_and_the_first_step_is_named() -> None:
    report = replay(history_lines(5, 100), lambda recipe: make_core(recipe["seed"], hand_off="never"))
    assert report.difference is not None
    assert report.end is None
    assert report.difference.event == "RequestArrived"
    assert all(where.startswith("commands") for where, _, _ in report.difference.parts)
    assert 0 < len(report.difference.parts) <= 12


@pytest.mark.parametrize(("recorded_s", "replayed_s"), [(0.3, 0.1 + 0.2), (0.0, -0.0)])
def test_the_last_bit_counts(recorded_s: float, replayed_s: float) -> None:
    was = dispatch(R1, W1)
    now = Dispatch(structs.replace(was.decision, forecast=was.decision.forecast._replace(queue_s=replayed_s)))
    was = Dispatch(structs.replace(was.decision, forecast=was.decision.forecast._replace(queue_s=recorded_s)))
    report = replay(lines_of((1.0, arrived(R1), [was])), lambda _: Scripted({arrived(R1): [now]}))
    assert report.difference is not None
    assert (report.difference.step, report.difference.now_s) == (1, 1.0)
    assert report.difference.parts == (("commands[0].decision.forecast.queue_s", repr(recorded_s), repr(replayed_s)),)


def test_commands_that_are_missing_are_listed() -> None:
    lines = lines_of((0.5, Woken(), []), (1.0, WorkerGone(W1, "left"), [Abort(R1, 1, W1), Abort(R2, 1, W1)]))
    answers: dict[Event, Sequence[Command]] = {WorkerGone(W1, "left"): [Abort(R1, 1, W1)]}
    report = replay(lines, lambda _: Scripted(answers))
    assert report.difference is not None
    assert report.difference.step == 2
    assert report.difference.parts == (
        (
            "commands",
            "Abort r1 attempt 1: w1 is gone; Abort r2 attempt 1: w1 is gone",
            "Abort r1 attempt 1: w1 is gone",
        ),
    )
    report = replay(lines, lambda _: Scripted({**answers, Woken(): [Reject(R1, RejectReason.EXPIRED, "", None)]}))
    assert report.difference is not None
    assert report.difference.parts == (("commands", "nothing", "Reject r1: expired"),)


def test_a_core_that_fails_where_it_did_not_is_a_difference() -> None:
    lines = lines_of((1.0, arrived(R1), [Reject(R1, RejectReason.NO_WORKER, "", 2.0)]), (2.0, arrived(R1), []))
    report = replay(lines, lambda _: make_core())
    assert report.difference is not None
    lines = lines_of((1.0, WorkerChanged(make_worker()), []), (2.0, arrived(R1), []), (2.0, arrived(R1), []))
    report = replay(lines[:2] + lines[3:], lambda _: make_core())
    assert report.difference is not None
    assert report.difference.parts[0][1] == "nothing"


def test_no_recording_is_an_error_with_its_line() -> None:
    with pytest.raises(RecordingError, match="not the header"):
        replay([b"hello\n"], build)
    with pytest.raises(RecordingError, match="line 3"):
        replay([*lines_of((1.0, Woken(), []))[:2], b"hello\n"], lambda _: Scripted({}))


# -- what if


def test_against_itself_nothing_differs() -> None:
    """In a day on which nobody waits: who waits is looked at again by the clock, and near-equals are drawn anew."""
    lines = history_lines(9, 150)
    found = compare(lines, build)
    assert found.num_requests > 20
    assert found.num_differing == found.num_left_waiting == 0
    assert found.recorded == found.other
    assert found.recorded.cost_s > 0.0
    assert found.num_both_dispatched == found.recorded.dispatched


def test_differing_decisions_and_costs_are_counted() -> None:
    lines = lines_of(
        (1.0, arrived(R1), [dispatch(R1, W1)]),
        (2.0, arrived(R2), [dispatch(R2, W1)]),
        (3.0, arrived(RequestId("r3")), [dispatch(RequestId("r3"), W2)]),
        (4.0, arrived(RequestId("r4")), [dispatch(RequestId("r4"), W2)]),
        (5.0, RequestDone(RequestId("r4"), 1), []),
    )
    cheap = dispatch(R2, W2)
    cheap = Dispatch(
        structs.replace(
            cheap.decision, waited_s=0.5, forecast=cheap.decision.forecast._replace(queue_s=0.0, harm_s=0.0)
        )
    )
    answers: dict[Event, Sequence[Command]] = {
        arrived(R1): [dispatch(R1, W1)],
        arrived(R2): [cheap],
        arrived(RequestId("r3")): [Reject(RequestId("r3"), RejectReason.KV_FULL, "", 1.0)],
    }
    found = compare(lines, lambda _: Scripted(answers))
    assert (found.num_requests, found.num_differing, found.num_both_dispatched) == (3, 2, 2)
    assert found.num_left_waiting == 1
    assert (found.recorded.dispatched, found.recorded.rejected) == (3, 0)
    assert (found.other.dispatched, found.other.rejected) == (2, 1)
    assert (found.recorded.cost_s, found.other.cost_s) == (4.0, 2.5)
    assert (found.recorded.ttft_s, found.other.ttft_s) == (2.0, 2.0)
    assert found.end == End("stopped", 5)


# What is told to the other core, where it holds r1 in its attempt 3 on w2, prefilled by w1: see the module's table.
HELD = dispatch(R1, W2, W1, attempt=3)
LOCAL = dispatch(R1, W2, attempt=3)


@pytest.mark.parametrize(
    ("event", "answer", "expected"),
    [
        (PrefillDone(R1, 1, 32), HELD, PrefillDone(R1, 3, 32)),
        (PrefillDone(R1, 1, 32), LOCAL, None),
        (PrefillDone(R1, 1, 32), None, None),
        (FirstToken(R1, 1), HELD, FirstToken(R1, 3)),
        (FirstToken(R1, 1), None, None),
        (RequestDone(R1, 1), HELD, RequestDone(R1, 3)),
        (RequestDone(R1, 1), None, RequestCancelled(R1)),
        (RequestFailed(R1, 1, W1, True), HELD, RequestFailed(R1, 3, W1, True)),
        (RequestFailed(R1, 1, W1, True), LOCAL, None),
        (RequestFailed(R1, 1, W1, False), LOCAL, RequestCancelled(R1)),
        (RequestFailed(R1, 1, W1, False), HELD, RequestFailed(R1, 3, W1, False)),
        (RequestFailed(R1, 1, W1, True), None, None),
        (RequestFailed(R1, 1, W1, False), None, RequestCancelled(R1)),
        (RequestCancelled(R1), HELD, RequestCancelled(R1)),
        (RequestCancelled(R1), None, RequestCancelled(R1)),
        (FirstToken(R2, 1), HELD, None),
        (WorkerGone(W1, "left"), HELD, WorkerGone(W1, "left")),
        (Woken(), None, Woken()),
    ],
)
def test_the_other_core_is_told_what_fits_its_own_attempts(
    event: Event, answer: Dispatch | None, expected: Event | None
) -> None:
    core = Scripted({arrived(R1): [answer] if answer else []})
    compare(lines_of((1.0, arrived(R1), [dispatch(R1, W1)]), (2.0, event, [])), lambda _: core)
    assert core.told == [(1.0, arrived(R1)), *([(2.0, expected)] if expected is not None else [])]


def test_a_recorded_rejection_ends_the_request_for_the_other_core_too() -> None:
    reject = Reject(R1, RejectReason.TTFT_INFEASIBLE, "", 1.0)
    core = Scripted({arrived(R1): [dispatch(R1, W2)]})
    found = compare(lines_of((1.0, arrived(R1), [reject]), (2.0, Woken(), [])), lambda _: core)
    assert core.told == [(1.0, arrived(R1)), (1.0, RequestCancelled(R1)), (2.0, Woken())]
    assert (found.num_differing, found.recorded.rejected, found.other.dispatched) == (1, 1, 1)
    core = Scripted({arrived(R1): [reject]})
    compare(lines_of((1.0, arrived(R1), [reject]), (2.0, Woken(), [])), lambda _: core)
    assert core.told == [(1.0, arrived(R1)), (2.0, Woken())]


@pytest.mark.parametrize("began", [False, True])
def test_an_abort_by_the_other_core_is_answered(began: bool) -> None:
    gone = WorkerGone(W2, "left")
    core = Scripted({arrived(R1): [dispatch(R1, W2)], gone: [Abort(R1, 1, W2)]})
    steps: list[Told] = [(1.0, arrived(R1), [dispatch(R1, W1)])]
    steps += [(1.5, FirstToken(R1, 1), [])] if began else []
    compare(lines_of(*steps, (2.0, gone, []), (3.0, RequestDone(R1, 1), [])), lambda _: core)
    failed = RequestFailed(R1, 1, W2, retriable=not began)
    assert core.told[len(steps) :] == [(2.0, gone), (2.0, failed), *([] if began else [(3.0, RequestCancelled(R1))])]


def test_the_other_core_is_woken_when_it_asks_to_be() -> None:
    core = Scripted({}, wakeups_s=[1.25, 1.5, 2.5])
    compare(lines_of((1.0, arrived(R1), [dispatch(R1, W1)]), (2.0, RequestDone(R1, 1), [])), lambda _: core)
    assert core.told == [(1.0, arrived(R1)), (1.25, Woken()), (1.5, Woken()), (2.0, RequestCancelled(R1))]
