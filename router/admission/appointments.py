"""Retry-After that can be relied on: places set aside for clients that were told to come back. Pure.

A request that is turned away for lack of capacity is told the earliest whole second at which the model says it can be
promised its target, and that much work is set aside from then on, and one sequence in a decode batch. Newcomers are
promised only what is left beside it (`aside`). Who comes back in time is served from what was set aside, once; who does
not, loses it.

Places take at most `share` of the pool: the timelines are cut into slots of `SLOT_S`, and each slot has room for
share * speed * SLOT_S of work and share * ends_per_s * SLOT_S sequences. So newcomers always have the rest, even if
nobody who was told to return does.

Invariants
 1. A (tenant, key) has at most one place. It ends once: taken, or lapsed `grace_s` after its time.
 2. What is planned in the slots is the sum over the places: zero when there are none.
 3. A place is given only where its work and its sequence fit the slots in which it has to begin, or these are empty
    but for it. No slot is planned beyond the room it had when the place was given.
 4. There are at most `max_places`, and at most `tenant_share` of these belong to one tenant.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, floor, inf, isinf

import numpy as np

from router.admission.demand import Aside, Demand, Newcomer, Probe
from router.admission.timeline import Plan, Timeline

SLOT_S = 0.25
_EARLY_S = 0.25  # clocks and timers differ: this much before its time is in time
_LEAST = 1e-9
_LONGEST_WINDOW_S = 600.0  # a request that may wait longer is planned as if it might not
_Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that cannot be served now. `key` recognises it when it comes back: a digest of its body."""

    tenant: str
    key: bytes
    cost_s: float  # work for the pool
    ttft_s: float  # target
    wait_s: float  # of it, that it may wait to be started
    blocked_s: float = 0.0  # that it may have to wait in a pool whose workers are all busy with others
    fraction: float = 1.0  # of what is set aside, for all of the tenant's requests together
    not_before_s: float = 0.0  # seconds from now before which it would not be admitted whatever the load
    ends_per_s: float = inf  # requests like it that the pool's decode batches take in a second when full


@dataclass(frozen=True, slots=True)
class Offer:
    """What the client is told. Without a place it may come back then, but nothing is set aside."""

    retry_after_s: int
    at_s: float
    has_place: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Place:
    """Work set aside for one request from `at_s` on."""

    tenant: str
    key: bytes
    at_s: float
    cost_s: float
    number: int
    plans: tuple[Plan, ...] = field(repr=False, compare=False)  # of work, and of sequences where these are limited


class Appointments:
    """The places of one model pool."""

    def __init__(
        self,
        share: float = 0.5,
        grace_s: float = 2.0,
        horizon_s: int = 120,
        max_places: int = 4096,
        tenant_share: float = 0.5,
    ) -> None:
        self._share = share
        self._grace_s = grace_s
        self._horizon_s = horizon_s
        self._max_places = max_places
        self._max_by_tenant = max(1, int(max_places * tenant_share))
        self._num_given = 0
        self._places: dict[_Key, Place] = {}
        self._in_order: list[Place] = []  # by time; aligned with `_demand`
        self._demand = Demand()
        self._timelines = (Timeline(), Timeline())  # seconds of work; sequences
        self._by_tenant: dict[str, tuple[int, float]] = {}  # places, work

    def __len__(self) -> int:
        return len(self._places)

    def offer(self, ask: Ask, probe: Callable[[Newcomer], Probe], speed: int, now_s: float) -> Offer:
        """Tell a client when to come back, and set work aside for it if there is room.

        `probe` is that of the pool's queue now, with `aside()` among the pool's work.
        """
        assert (ask.tenant, ask.key) not in self._places, "invariant 1: it has a place"
        self.lapse(now_s)
        after_s, detail = self._earliest(ask, probe, speed, now_s)
        num_held, _ = self._by_tenant.get(ask.tenant, (0, 0.0))
        if not after_s:
            after_s = self._horizon_s
        elif not ask.key:
            detail = "it could not be recognised when it comes back"
        elif ask.wait_s < ask.blocked_s:
            after_s = min(self._horizon_s, max(after_s, ceil(ask.blocked_s)))
            detail = f"requests before it may keep all workers busy for {ask.blocked_s:.3f} s, longer than it may wait"
        elif len(self._places) >= self._max_places:
            detail = f"all {self._max_places} places are given"
        elif num_held >= self._max_by_tenant:
            detail = f"the tenant holds {num_held} places, its share"
        else:
            self._give(ask, now_s + after_s, speed)
            return Offer(after_s, now_s + after_s, True, detail)
        return Offer(after_s, now_s + after_s, False, detail)

    def due_in_s(self, tenant: str, key: bytes, now_s: float) -> float | None:
        """Seconds until a returning client's place may be taken, 0 if it may now; None: it has none (any more)."""
        if not self._places:
            return None
        self.lapse(now_s)
        place = self._places.get((tenant, key))
        if place is None:
            return None
        return 0.0 if now_s >= place.at_s - _EARLY_S else place.at_s - now_s

    def take(self, tenant: str, key: bytes) -> Place | None:
        """End a place: its client is admitted or has another one to come. What it held is free."""
        place = self._places.get((tenant, key))
        if place is not None:
            self._end(place)
        return place

    def lapse(self, now_s: float) -> list[Place]:
        """End and return the places whose clients did not come."""
        gone = []
        while self._in_order and self._in_order[0].at_s + self._grace_s <= now_s:
            gone.append(self._in_order[0])
            self._end(self._in_order[0])
        for timeline in self._timelines:
            timeline.forget_before(floor((now_s - self._grace_s) / SLOT_S))
        return gone

    def next_lapse_s(self) -> float | None:
        """The next instant at which a place lapses."""
        return self._in_order[0].at_s + self._grace_s if self._in_order else None

    def aside(self) -> Aside | None:
        """What newcomers have to leave; None: nothing. A view: it changes with the places."""
        if not self._places:
            return None
        return Aside(self._demand.before_each, self._demand.num_before_each, self._share)

    def reserved_work_s(self, until_s: float) -> float:
        """Work of the places whose time is no later."""
        return self._demand.before(until_s)

    def validate(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        assert sorted(self._places.values(), key=lambda p: (p.at_s, p.number)) == self._in_order, "invariant 1"
        self._demand.validate([(place.at_s, place.cost_s, 0.0) for place in self._in_order])
        planned: tuple[dict[int, float], ...] = ({}, {})
        held: dict[str, int] = {}
        for place in self._in_order:
            held[place.tenant] = held.get(place.tenant, 0) + 1
            for plan, sums in zip(place.plans, planned, strict=False):
                for slot, amount in zip(plan.slots.tolist(), plan.amounts.tolist(), strict=True):
                    sums[slot] = sums.get(slot, 0.0) + amount
        for timeline, sums in zip(self._timelines, planned, strict=True):
            there = timeline.planned()
            for slot in sums.keys() | there.keys():
                assert abs(sums.get(slot, 0.0) - there.get(slot, 0.0)) < 1e-6, "invariant 2: planned for nobody, or not"
        assert held == {tenant: num for tenant, (num, _) in self._by_tenant.items()}, "invariant 4: by tenant"
        assert len(self._places) <= self._max_places, "invariant 4: too many"
        assert all(num <= self._max_by_tenant for num in held.values()), "invariant 4: too many of one tenant"

    # -- when

    def _earliest(self, ask: Ask, probe: Callable[[Newcomer], Probe], speed: int, now_s: float) -> tuple[int, str]:
        """Whole seconds from now, and why; 0: not within the horizon. Near times are tried one by one, far ones not."""
        if not speed or not ask.ends_per_s:
            return 0, "no worker is there"
        num_held, held_s = self._by_tenant.get(ask.tenant, (0, 0.0))
        turn_s = max(held_s / speed, num_held / ask.ends_per_s) / (ask.fraction * self._share) - ask.wait_s
        after_s = max(1.0, ask.not_before_s, turn_s)
        if after_s <= self._horizon_s:
            for free_s in self._with_room(ask, ceil(after_s), speed, now_s):
                if free_s < after_s:
                    continue
                at_s = now_s + free_s
                found = probe(Newcomer(ask.cost_s, at_s + ask.ttft_s, at_s + ask.wait_s))
                late_s = found.start_in_s - free_s - ask.wait_s
                if late_s <= 0.0 and found.least_slack_s >= 0.0:
                    return free_s, f"work before it takes until {found.start_in_s:.3f} s from now"
                after_s = free_s + max(late_s, free_s / 8)
        return 0, f"not within {self._horizon_s} s (slo.appointments.horizon_s)"

    def _with_room(self, ask: Ask, after_s: int, speed: int, now_s: float) -> list[int]:
        """Times at which all it needs fits the slots in which it has to begin, or these are empty but for it."""
        times_s = np.arange(after_s, self._horizon_s + 1)
        at_s = now_s + times_s
        firsts = np.floor(at_s / SLOT_S).astype(np.int64)
        wait_s = min(ask.wait_s, _LONGEST_WINDOW_S)
        ends = np.maximum(firsts + 1, np.floor((at_s + wait_s) / SLOT_S).astype(np.int64))
        fits = np.ones(len(times_s), dtype=np.bool_)
        for timeline, needed, slot_room in self._needs(ask, speed):
            room = timeline.room(firsts, ends, slot_room)
            fits &= room >= np.minimum(needed, (ends - firsts) * slot_room) - _LEAST
        return [int(time_s) for time_s in times_s[fits]]

    def _needs(self, ask: Ask, speed: int) -> list[tuple[Timeline, float, float]]:
        """What it takes of each timeline, and the room of a slot there."""
        work, decode = self._timelines
        share_s = self._share * SLOT_S
        needs = [(work, ask.cost_s, share_s * speed)]
        return needs if isinf(ask.ends_per_s) else [*needs, (decode, 1.0, share_s * ask.ends_per_s)]

    # -- places

    def _give(self, ask: Ask, at_s: float, speed: int) -> None:
        slot = floor(at_s / SLOT_S)
        plans = tuple(timeline.plan(slot, needed, room) for timeline, needed, room in self._needs(ask, speed))
        self._num_given += 1
        place = Place(ask.tenant, ask.key, at_s, ask.cost_s, self._num_given, plans)
        self._places[(ask.tenant, ask.key)] = place
        self._in_order.insert(self._demand.add(at_s, place.number, ask.cost_s, 0.0), place)
        num, work_s = self._by_tenant.get(ask.tenant, (0, 0.0))
        self._by_tenant[ask.tenant] = (num + 1, work_s + ask.cost_s)

    def _end(self, place: Place) -> None:
        del self._places[(place.tenant, place.key)]
        del self._in_order[self._demand.discard(place.at_s, place.number)]
        for timeline, plan in zip(self._timelines, place.plans, strict=False):
            timeline.free(plan)
        num, work_s = self._by_tenant.pop(place.tenant)
        if num > 1:
            self._by_tenant[place.tenant] = (num - 1, work_s - place.cost_s)
