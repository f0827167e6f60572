"""Places against a dictionary of them; what is planned against the time there is; clients that do as they are told."""

from itertools import count
from math import inf
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.admission.admission import Reject, Rules
from router.admission.appointments import SLOT_S, Appointments, Ask
from router.admission.demand import Newcomer, Probe
from tests.admission_world import Job, World

SHARE, SPEED, GRACE_S, HORIZON_S, MAX_PLACES = 0.5, 2, 2.0, 12, 6
ENDS_PER_S = 1.0
TENANTS = ["a", "b", "c"]


class PlacesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.places = Appointments(SHARE, GRACE_S, HORIZON_S, MAX_PLACES, tenant_share=0.5)
        self.now_s, self.keys = 0.0, count()
        self.twin: dict[tuple[str, bytes], tuple[float, float]] = {}  # time, work
        self.taken: set[tuple[str, bytes]] = set()

    def live(self) -> dict[tuple[str, bytes], tuple[float, float]]:
        return {key: place for key, place in self.twin.items() if place[0] + GRACE_S > self.now_s}

    @rule(
        tenant=st.sampled_from(TENANTS),
        cost_s=st.sampled_from([0.1, 0.5, 2.0, 7.0]),
        room_s=st.sampled_from([0.1, 1.0, 5.0]),
        backlog_s=st.sampled_from([0.0, 3.0, 9.0, 40.0]),
        fraction=st.sampled_from([0.25, 1.0]),
        ends_per_s=st.sampled_from([inf, ENDS_PER_S]),
    )
    def is_turned_away(
        self, tenant: str, cost_s: float, room_s: float, backlog_s: float, fraction: float, ends_per_s: float
    ) -> None:
        """Invariants 3 and 4; the time is a whole number of seconds at which the model says it fits."""
        key = str(next(self.keys)).encode()

        def probe(newcomer: Newcomer) -> Probe:
            return Probe(backlog_s / SPEED, inf, 0, 0.0)

        offer = self.places.offer(
            Ask(tenant, key, cost_s, cost_s + room_s, room_s, fraction=fraction, ends_per_s=ends_per_s),
            probe,
            SPEED,
            self.now_s,
        )
        assert 1 <= offer.retry_after_s <= HORIZON_S
        assert offer.at_s == self.now_s + offer.retry_after_s
        held = [name for name, _ in self.live() if name == tenant]
        if offer.has_place:
            assert len(self.live()) < MAX_PLACES and len(held) < MAX_PLACES / 2
            assert offer.at_s + room_s >= self.now_s + backlog_s / SPEED
            self.twin[(tenant, key)] = (offer.at_s, cost_s)

    @precondition(lambda self: self.twin)
    @rule(data=st.data())
    def comes_back(self, data: st.DataObject) -> None:
        """Invariant 1: in time, once; before that it is told how long; after that it is a newcomer."""
        tenant, key = data.draw(st.sampled_from(sorted(self.twin)))
        place = self.live().get((tenant, key))
        due_in_s = self.places.due_in_s(tenant, key, self.now_s)
        if place is None:
            assert due_in_s is None and self.places.take(tenant, key) is None
        elif self.now_s < place[0] - 0.25:
            assert due_in_s == place[0] - self.now_s
        else:
            assert due_in_s == 0.0
            assert (tenant, key) not in self.taken
            taken = self.places.take(tenant, key)
            assert taken is not None and (taken.at_s, taken.cost_s) == place
            assert self.places.take(tenant, key) is None
            self.taken.add((tenant, key))
            del self.twin[(tenant, key)]

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def the_late_lose_theirs(self) -> None:
        gone = {(place.tenant, place.key) for place in self.places.lapse(self.now_s)}
        assert gone <= self.twin.keys() - self.live().keys()
        self.twin = self.live()
        assert self.places.next_lapse_s() == min((at_s + GRACE_S for at_s, _ in self.twin.values()), default=None)

    @invariant()
    def no_more_is_planned_than_the_pool_can_do(self) -> None:
        """Invariants 2 and 3: in any span of time at most its share of it."""
        self.places.validate()
        for timeline, per_s in zip(self.places._timelines, (SPEED, ENDS_PER_S), strict=True):
            assert all(amount <= SHARE * per_s * SLOT_S + 1e-6 for amount in timeline.planned().values())

    @invariant()
    def what_is_set_aside_is_what_the_places_hold(self) -> None:
        self.places.lapse(self.now_s)
        for until_s in (self.now_s, self.now_s + 3.0, inf):
            held_s = sum(cost_s for at_s, cost_s in self.live().values() if at_s <= until_s)
            assert abs(self.places.reserved_work_s(until_s) - held_s) < 1e-9


TestPlaces = PlacesMachine.TestCase
TestPlaces.settings = settings(max_examples=150, stateful_step_count=40)

CHAT = (0.4, 10.0, 2.0, False)  # work, target, value, may be served without a promise
SHORT = (0.1, 0.5, 4.0, False)
BATCH = (0.3, 60.0, 1.0, True)


@pytest.mark.parametrize(
    ("speed", "classes"),
    [
        (2, [(2.0, CHAT)]),
        (4, [(2.0, SHORT)]),
        (4, [(1.0, SHORT), (1.0, CHAT)]),
        (8, [(0.7, SHORT), (0.7, CHAT), (0.6, BATCH)]),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_under_overload_all_that_come_back_to_a_place_are_promised_their_target_and_no_promise_breaks(
    speed: int, classes: list[tuple[float, tuple[float, float, float, bool]]], seed: int
) -> None:
    """Twice what the pool can do; every client that is turned away comes back exactly when it is told to."""
    until_s, rng, arrivals = 40.0, Random(seed), []
    for load, (cost_s, ttft_s, value, best_effort_ok) in classes:
        at_s = 0.0
        while (at_s := at_s + rng.expovariate(load * speed / cost_s)) < until_s:
            job = Job(
                f"{ttft_s}-{at_s}".encode(),
                "t",
                rng.uniform(0.5, 1.5) * cost_s,
                ttft_s,
                value,
                best_effort_ok=best_effort_ok,
                deadline_s=600.0,
                returns=True,
            )
            arrivals.append((at_s, job))
    world = World(speed, Rules(top_value=max(value for _, (_, _, value, _) in classes)), is_fair=False)
    world.run(arrivals, until_s)
    assert not [visit for visit in world.visits if visit.is_late and visit.at_s + visit.job.ttft_s < until_s]
    returned = [visit for visit in world.visits if visit.had_place]
    kept = [visit for visit in returned if visit.is_promised]
    assert len(returned) >= 25
    assert len(kept) >= 0.99 * len(returned)
    told = [visit.decision for visit in world.visits if isinstance(visit.decision, Reject)]
    assert all(reject.retry_after_s is not None for reject in told)
    assert sum(world.work_s().values()) > 0.97 * speed * until_s, "the pool stood idle"


def test_places_that_nobody_takes_do_not_keep_the_pool_idle() -> None:
    """Newcomers have the rest of the pool, and what lapses."""
    rng, arrivals, at_s = Random(3), list[tuple[float, Job]](), 0.0
    while (at_s := at_s + rng.expovariate(2.0 / 0.05)) < 60.0:
        arrivals.append((at_s, Job(str(at_s).encode(), "t", 0.05, 0.3)))
    world = World(1)
    world.run(arrivals, 60.0)
    assert sum(isinstance(visit.decision, Reject) and visit.decision.has_place for visit in world.visits) > 100
    assert not [visit for visit in world.visits if visit.had_place]
    assert world.work_s()["t"] > 0.97 * 60.0
