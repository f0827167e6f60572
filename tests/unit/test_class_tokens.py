"""What a router counts of each class on each engine. Numbers: invariants of router/class_tokens.py."""

from random import Random

import pytest

from kvstore.types import RequestId, WorkerId
from router.class_tokens import ClassTokens, decode, encode
from router.core import RouterCore
from router.events import (
    Dispatch,
    Event,
    FirstToken,
    PrefillDone,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
    WorkerChanged,
    WorkerGone,
)
from router.types import NO_OVERLAP, Overlap, Usage
from tests.builders import make_core, make_decode, make_overlap, make_prefill, make_request, make_terms, make_worker
from workers.types import WorkerState

CHAT, BATCH = make_terms(class_name="chat"), make_terms(class_name="batch")


class World:
    """A core and what is counted beside it."""

    def __init__(self, *workers: WorkerState) -> None:
        self.core: RouterCore = make_core()
        self.classes = ClassTokens()
        for worker in workers:
            self.tell(WorkerChanged(worker))

    def tell(self, event: Event, now_s: float = 0.0) -> Dispatch | None:
        """The dispatch that follows, if one does."""
        commands = self.core.handle(event, now_s)
        self.classes.observe(now_s, event, commands)
        return next((command for command in commands if isinstance(command, Dispatch)), None)

    def ask(self, name: str = "r1", *, overlap: Overlap = NO_OVERLAP, batch: bool = False) -> Dispatch:
        """A prompt of 100 tokens."""
        request = make_request(name, terms=BATCH if batch else CHAT, max_output_tokens=40)
        dispatch = self.tell(RequestArrived(request, overlap))
        assert dispatch is not None
        return dispatch

    def counted(self, now_s: float = 0.0) -> dict[str, dict[str, float]]:
        """By engine and class."""
        return {engine: dict(of) for engine, of in self.classes.tokens(now_s).items()}


def test_a_request_counts_where_it_is_computed() -> None:
    world = World(make_prefill("p"), make_decode("d"))
    world.ask()
    world.ask("r2", batch=True)
    assert world.counted() == {}
    world.tell(PrefillDone(RequestId("r1"), 1, cached_tokens=32))
    assert world.counted() == {"p": {"chat": 68.0}}
    world.tell(FirstToken(RequestId("r1"), 1))
    world.tell(RequestDone(RequestId("r1"), 1, Usage(100, 32, 21)))
    assert world.counted() == {"p": {"chat": 68.0}, "d": {"chat": 20.0}}
    world.tell(PrefillDone(RequestId("r2"), 1))
    assert world.counted()["p"] == {"chat": 68.0, "batch": 100.0}


def test_ranks_of_an_engine_share_its_experts() -> None:
    world = World(make_worker("e"), make_worker("e/1"))
    for number in range(4):
        name = f"r{number}"
        world.ask(name)
        world.tell(RequestDone(RequestId(name), 1, Usage(100, 0, 1)))
    assert world.counted() == {"e": {"chat": 400.0}}


def test_what_is_cached_is_not_computed() -> None:
    world = World(make_worker("m"))
    world.core.handle(WorkerChanged(make_worker("m")), 0.0)
    world.ask(overlap=make_overlap({0: 2}))
    world.tell(RequestDone(RequestId("r1"), 1, Usage(100, 64, 1)))
    assert world.counted() == {"m": {"chat": 36.0}}


def test_an_answer_under_way_counts_by_the_forecast() -> None:
    """Invariant 1."""
    world = World(make_worker("m"))
    dispatch = world.ask()
    tpot_s = dispatch.decision.forecast.tpot_s
    world.tell(FirstToken(RequestId("r1"), 1), 1.0)
    assert world.counted(1.0) == {"m": {"chat": 100.0}}
    assert world.counted(1.0 + 10 * tpot_s)["m"]["chat"] == pytest.approx(110.0)
    assert world.counted(1e6)["m"]["chat"] == 139.0, "no answer is longer than it may be"
    world.tell(RequestDone(RequestId("r1"), 1, Usage(100, 0, 5)), 1e6)
    assert world.counted(1e6) == {"m": {"chat": 104.0}}


def test_a_failed_attempt_counts_for_what_it_did() -> None:
    world = World(make_worker("a"), make_worker("b"))
    first = world.ask().decision.decode.spec.id
    world.tell(FirstToken(RequestId("r1"), 1))
    again = world.tell(RequestFailed(RequestId("r1"), 1, first, retriable=True))
    assert again is not None
    second = again.decision.decode.spec.id
    assert second != first
    world.tell(FirstToken(RequestId("r1"), 1))  # late, of the first attempt
    world.tell(FirstToken(RequestId("r1"), 2))
    world.tell(RequestFailed(RequestId("r1"), 2, second, retriable=False))
    assert world.counted() == {first: {"chat": 100.0}, second: {"chat": 100.0}}


def test_what_left_is_forgotten() -> None:
    """Invariant 2."""
    world = World(make_worker("m"))
    world.ask()
    world.tell(FirstToken(RequestId("r1"), 1))
    world.tell(RequestCancelled(RequestId("r1")))
    assert world.counted(100.0) == {"m": {"chat": 100.0}}
    world.tell(WorkerGone(WorkerId("m"), "test"))
    assert world.counted() == {}


def test_any_order_of_events_leaves_nothing_behind() -> None:
    """Invariant 2: whatever happens, ended requests are not kept, and counts never go back."""
    rng = Random(0)
    world = World(make_prefill("p"), make_decode("d"), make_worker("m"))
    live: dict[str, int] = {}
    for number in range(2000):
        now_s, draw = number * 0.01, rng.random()
        if draw < 0.4 or not live:
            name = f"r{number}"
            command = world.tell(RequestArrived(make_request(name, max_output_tokens=8)), now_s)
            if command is not None:
                live[name] = 1
            continue
        name = rng.choice(sorted(live))
        key, attempt = RequestId(name), live[name]
        event: Event
        if draw < 0.6:
            event = rng.choice((PrefillDone(key, attempt), FirstToken(key, attempt)))
        elif draw < 0.8:
            event = RequestDone(key, attempt, rng.choice((None, Usage(100, None, 7))))
        elif draw < 0.9:
            event = RequestFailed(key, attempt, WorkerId(rng.choice("pdm")), retriable=rng.random() < 0.5)
        else:
            event = RequestCancelled(key)
        again = world.tell(event, now_s)
        if isinstance(event, RequestFailed) and again is not None:
            live[name] += 1
        elif not isinstance(event, PrefillDone | FirstToken):
            del live[name]
    for name in live:
        world.tell(RequestCancelled(RequestId(name)), 100.0)
    assert world.counted(100.0) == world.counted(1e6), "nothing is under way"
    assert sum(of["none"] for of in world.counted().values()) > 0
    world.core.validate()


def test_records_come_back() -> None:
    tokens = {"m": {"chat": 1.5, "batch": 2.0}, "n": {}}
    assert decode(encode(tokens)) == tokens
    assert decode(b'{"version":2,"tokens":{}}') is None
    assert decode(b"\xff") is None
    assert decode(b"[" * 100_000) is None
