"""What is remembered of waiting requests. Numbers are invariants of looks.py; queues of a whole core: below."""

from random import Random

import pytest

from kvstore.types import RequestId
from router.admission.desk import AdmissionDesk
from router.admission.looks import LOOK_AGAIN_S, NO_NEWS, Looks, News
from router.choice.cost import Costs
from router.choice.interfaces import Pick
from router.choice.policy import LeastCost
from router.choice.view import View
from router.core import CoreSettings, RouterCore
from router.events import Dispatch, FirstToken, RequestArrived, RequestDone, Woken, WorkerChanged
from router.slo_settings import SloSettings
from tests.builders import make_request, make_table, make_terms, make_worker

R1, R2 = RequestId("r1"), RequestId("r2")
AHEAD_S = 0.1
NOW_S = 50.0


@pytest.fixture
def looks() -> Looks:
    """Of a fleet in which row 0 has a second of prompts before it, row 1 nothing."""
    table = make_table(make_worker("a"), make_worker("b"))
    table.hold(0, 1.0, NOW_S)
    return Looks(table, AHEAD_S)


def test_a_request_whose_worker_is_busy_is_not_looked_at_until_the_worker_is_open(looks: Looks) -> None:
    look = looks.saw(R1, 0, 0.2, NOW_S)
    assert looks.last(R1, NOW_S, NO_NEWS) is look
    assert looks.last(R1, NOW_S, News(is_room_freed=True)) is look
    looks._table.hold(0, -0.95, NOW_S)
    assert looks.last(R1, NOW_S, NO_NEWS) is None


def test_a_worker_that_is_freed_is_news_only_if_it_takes_work(looks: Looks) -> None:
    looks.saw(R1, 0, 0.2, NOW_S)
    assert looks.last(R1, NOW_S, News(freed_row=0)) is not None
    assert looks.last(R1, NOW_S, News(freed_row=1)) is None


def test_a_request_without_room_is_looked_at_again_when_a_sequence_ends(looks: Looks) -> None:
    looks.saw(R1, -1, 0.0, NOW_S)
    assert looks.last(R1, NOW_S, News(freed_row=1)) is not None
    assert looks.last(R1, NOW_S, News(is_room_freed=True)) is None


def test_nothing_is_believed_for_long(looks: Looks) -> None:
    looks.saw(R1, 0, 0.2, NOW_S)
    looks.saw(R2, -1, 0.0, NOW_S)
    for request_id in (R1, R2):
        assert looks.last(request_id, NOW_S + LOOK_AGAIN_S - 1e-6, NO_NEWS) is not None
        assert looks.last(request_id, NOW_S + LOOK_AGAIN_S, NO_NEWS) is None


def test_a_queue_rests_until_one_of_its_requests_can_move(looks: Looks) -> None:
    """Invariant 2."""
    assert not looks.is_resting("m", NOW_S, NO_NEWS)
    looks.rest("m", [looks.saw(R1, 0, 0.2, NOW_S), looks.saw(R2, -1, 0.0, NOW_S + 0.01)])
    assert looks.is_resting("m", NOW_S, NO_NEWS) and not looks.is_resting("n", NOW_S, NO_NEWS)
    assert looks.is_resting("m", NOW_S, News(freed_row=0))
    assert not looks.is_resting("m", NOW_S, News(freed_row=1))
    assert not looks.is_resting("m", NOW_S, News(is_room_freed=True))
    assert not looks.is_resting("m", NOW_S + LOOK_AGAIN_S, NO_NEWS)


def test_a_request_that_left_or_came_ends_the_rest(looks: Looks) -> None:
    """Invariants 1 and 2."""
    look = looks.saw(R1, 0, 0.2, NOW_S)
    looks.rest("m", [look])
    looks.stir("m")
    assert not looks.is_resting("m", NOW_S, NO_NEWS) and looks.last(R1, NOW_S, NO_NEWS) is look
    looks.rest("m", [look])
    looks.forget(R1)
    assert not looks.is_resting("m", NOW_S, NO_NEWS) and not list(looks)
    looks.rest("m", [looks.saw(R2, 0, 0.2, NOW_S)])
    looks.clear()
    assert not looks.is_resting("m", NOW_S, NO_NEWS) and not list(looks)


class Counting:
    """The shipped policy, and how often it was asked."""

    def __init__(self) -> None:
        self.num_picks = 0
        self._policy = LeastCost(Random(0))

    def pick(self, view: View, costs: Costs) -> Pick | None:
        self.num_picks += 1
        return self._policy.pick(view, costs)


def test_what_waits_is_not_decided_again_at_every_event() -> None:
    policy = Counting()
    core = RouterCore(policy, CoreSettings(dispatch_ahead_s=AHEAD_S), AdmissionDesk(SloSettings()))
    for name in ("a", "b"):
        core.handle(WorkerChanged(make_worker(name, kv_blocks_total=100_000)), NOW_S)
    terms = make_terms(ttft_s=60.0, tpot_s=1.0, deadline_s=120.0)
    sent = []
    for index in range(20):  # a second of work each
        request = make_request(f"r{index}", num_prompt_tokens=5000, terms=terms)
        commands = core.handle(RequestArrived(request), NOW_S + index * 1e-4)
        sent += [command.decision.request_id for command in commands if isinstance(command, Dispatch)]
    assert len(sent) == 2
    before = policy.num_picks
    for _ in range(100):
        assert core.handle(Woken(), NOW_S + 0.01) == []
    assert policy.num_picks == before
    (moved,) = core.handle(FirstToken(sent[0], 1), NOW_S + 0.02)
    assert isinstance(moved, Dispatch) and policy.num_picks <= before + 2
    core.handle(RequestDone(sent[0], 1), NOW_S + 0.03)
    core.validate()
