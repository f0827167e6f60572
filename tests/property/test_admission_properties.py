"""Nothing is let in that breaks a promise: by arithmetic from first principles, and in a world of random overload."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.types import RequestId
from router.admission.admission import Admit, Outlook, Reject, Rules, Standing, Wait, decide
from router.admission.demand import Aside, Seconds
from router.admission.fairness import Share
from router.admission.queue import PoolWork, QueueEntry, WaitingQueue
from router.choice.decode_room import DecodeRoom
from tests.admission_world import Job, World

NOW_S, EVERY = 50.0, 4
seconds = st.floats(0.0, 12.0)
works = st.floats(0.05, 5.0)
RULES = Rules(margin=0.1, top_value=2.0, max_queued=6)

standings = st.builds(
    Standing,
    ttft_s=st.sampled_from([0.5, 2.0, 10.0]),
    tpot_s=st.just(0.1),
    value=st.sampled_from([1.0, 2.0]),
    expires_at_s=st.sampled_from([NOW_S, NOW_S + 60.0]),
    best_effort_ok=st.booleans(),
    is_implicit=st.booleans(),
    share=st.sampled_from(Share),
    is_due=st.booleans(),
)
outlooks = st.builds(
    lambda wait_s, own_s, part, **rest: Outlook(wait_s + own_s, own_s * part, own_s, **rest),
    wait_s=seconds,
    own_s=works,
    part=st.sampled_from([0.5, 1.0]),
    idle_tpot_s=st.sampled_from([0.05, 0.2]),
    kv_is_short=st.booleans(),
    is_open=st.booleans(),
)


def first_start_s(free_in_s: list[float], work_s: float) -> float:
    """When workers that never idle have done so much, beside what they were sent before: one after another."""
    free = sorted(free_in_s)
    for num, (here_s, next_s) in enumerate(zip(free, [*free[1:], inf], strict=True), start=1):
        done_s = sum(next_s - at_s for at_s in free[:num])
        if done_s > work_s:
            return here_s + (work_s - sum(here_s - at_s for at_s in free[:num])) / num
    raise AssertionError("the last worker never stops")


@settings(max_examples=500)
@given(
    standing=standings,
    outlook=outlooks,
    free_in_s=st.lists(seconds, min_size=1, max_size=4),
    promised=st.lists(st.tuples(works, seconds), max_size=4),
    best_effort=st.lists(works, max_size=2),
    places=st.lists(st.tuples(seconds, works), max_size=4),
    room=st.lists(st.tuples(st.sampled_from([-2.0, 0.0, 1.0, 3.0]), st.sampled_from([0.5, 2.0])), max_size=3),
)
def test_nothing_is_promised_that_the_model_says_breaks_a_promise(
    standing: Standing,
    outlook: Outlook,
    free_in_s: list[float],
    promised: list[tuple[float, float]],
    best_effort: list[float],
    places: list[tuple[float, float]],
    room: list[tuple[float, float]],
) -> None:
    queue = WaitingQueue(EVERY)
    for number, (cost_s, due_s) in enumerate(promised):
        queue.push(QueueEntry(RequestId(f"p{number}"), "t", 1.0, cost_s, cost_s, NOW_S + due_s, inf))
    for number, cost_s in enumerate(best_effort):
        queue.push(QueueEntry(RequestId(f"b{number}"), "t", 1.0, cost_s, cost_s, None, inf))

    def set_aside_s(until_s: float) -> float:
        return sum(cost_s for at_s, cost_s in places if NOW_S + at_s <= until_s)

    def until(instants_s: Seconds) -> Seconds:
        return np.array([set_aside_s(float(at_s)) for at_s in instants_s])

    def num_until(instants_s: Seconds) -> Seconds:
        return np.array([float(sum(NOW_S + at_s <= until_s for at_s, _ in places)) for until_s in instants_s])

    decode = DecodeRoom(*np.array(room).reshape(-1, 2).T)
    pool = PoolWork(np.array(free_in_s), Aside(until, num_until, share=0.5), decode)
    decision = decide(standing, outlook, queue, pool, RULES, NOW_S)
    if not isinstance(decision, Admit | Wait) or not decision.is_promised:
        return
    assert standing.expires_at_s > NOW_S and outlook.idle_tpot_s <= standing.tpot_s
    deadline_s = standing.ttft_s
    ahead = [(cost_s, due_s) for cost_s, due_s in promised if due_s <= deadline_s]
    stretch = EVERY / (EVERY - 1)
    if isinstance(decision, Admit):
        assert outlook.is_open and not ahead
        wait_s = outlook.ttft_s - outlook.own_s
    else:
        assert len(queue) < RULES.max_queued
        wait_s = first_start_s(free_in_s, stretch * sum(cost_s for cost_s, _ in ahead))
    assert wait_s + outlook.own_s <= deadline_s + 1e-9
    by_then = sum(max(0.0, seqs + ends_per_s * (deadline_s - outlook.own_s)) for seqs, ends_per_s in room)
    assert stretch * len(ahead) + 1 <= by_then + 1e-6, "no room in a decode batch in time"
    if not standing.is_due:  # of those, only the work set aside is their own
        room_s = deadline_s / (1.0 + RULES.margin) - outlook.own_s
        room_s *= RULES.fill_of(standing.share)
        is_lower = standing.value < RULES.top_value and standing.share is not Share.WITHIN
        room_s *= RULES.lower_value_fill if is_lower else 1.0
        aside_s = min(set_aside_s(NOW_S + room_s), 0.5 * len(free_in_s) * room_s)
        assert wait_s + (aside_s / len(free_in_s) if isinstance(decision, Admit) else 0.0) <= room_s + 1e-9
    work_s = stretch * (sum(cost_s for cost_s, _ in ahead) + outlook.cost_s)
    for cost_s, due_s in sorted((item for item in promised if item not in ahead), key=lambda item: item[1]):
        latest_s = due_s - cost_s
        counted_s = work_s + (0.0 if standing.is_due else set_aside_s(NOW_S + latest_s))
        if latest_s >= 0.0:  # else it is lost whatever comes
            assert first_start_s(free_in_s, counted_s) <= latest_s + 1e-6
        work_s += stretch * cost_s


jobs = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.05, 0.3, 2.0]),  # after the one before it
        st.sampled_from([(0.1, 0.5, 4.0), (0.5, 3.0, 2.0), (0.4, 10.0, 2.0), (2.0, 30.0, 1.0)]),  # work, target, value
        st.sampled_from(["a", "a", "a", "b", "c"]),
        st.booleans(),  # may be served without a promise
        st.booleans(),  # comes back when told
    ),
    max_size=60,
)


@pytest.mark.parametrize("speed", [1, 3])
@given(jobs=jobs, every=st.sampled_from([2, 16]))
def test_no_promise_is_broken_where_forecasts_are_true(
    speed: int, every: int, jobs: list[tuple[float, tuple[float, float, float], str, bool, bool]]
) -> None:
    """Bursts of mixed classes on few workers, with best effort in between and clients that return to their places."""
    at_s, arrivals = 0.0, []
    for number, (gap_s, (cost_s, ttft_s, value), tenant, best_effort_ok, returns) in enumerate(jobs):
        at_s += gap_s
        key = str(number).encode()
        job = Job(key, tenant, cost_s, ttft_s, value, best_effort_ok=best_effort_ok, deadline_s=40.0, returns=returns)
        arrivals.append((at_s, job))
    world = World(speed, Rules(margin=0.1, top_value=4.0), WaitingQueue(every))
    world.run(arrivals, at_s + 200.0)
    assert not [visit for visit in world.visits if visit.is_late]
    assert len(world.queue) == 0
    for visit in world.visits:
        if isinstance(visit.decision, Reject):
            assert visit.decision.retry_after_s is not None and visit.started_at_s is None
        else:
            assert (visit.started_at_s is None) != (visit.gone_at_s is None)
            assert visit.started_at_s is None or visit.started_at_s < visit.at_s + visit.job.deadline_s
