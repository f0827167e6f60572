"""The tracker against an engine whose true messages are known. Numbers: invariants of workers/kv_sequence.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kv_sequence import Reset, SequenceTracker, Step

Message = tuple[int, bytes]


@dataclass
class Engine:
    """Lives of an engine; it repeats its latest `ring` messages."""

    ring: int
    life: int = 0
    sent: list[bytes] = field(default_factory=list)

    def send(self) -> Message:
        self.sent.append(f"{self.life}:{len(self.sent)}".encode())
        return len(self.sent) - 1, self.sent[-1]

    def restart(self) -> None:
        self.life += 1
        self.sent = []

    def replay(self, start: int) -> list[Message]:
        first = max(start, len(self.sent) - self.ring)
        return list(enumerate(self.sent))[first:]


@dataclass
class Listener:
    """Does what the steps say, and checks invariants 1 and 2."""

    tracker: SequenceTracker
    asked: int | None = None
    piece: list[bytes] = field(default_factory=list)
    from_start: bool = True
    resets: list[Reset] = field(default_factory=list)

    def act(self, step: Step) -> None:
        if step.reset is not None:
            self.piece, self.from_start = [], step.reset is not Reset.LOST
            self.resets.append(step.reset)
        self.piece += step.payloads
        if step.ask_from is not None:
            self.asked = step.ask_from
        if self.piece:
            life, first = map(int, self.piece[0].split(b":"))
            assert first == 0 or not self.from_start
            assert self.piece == [f"{life}:{first + index}".encode() for index in range(len(self.piece))]

    def answer(self, messages: Sequence[Message], chunk: int) -> None:
        """A replay that comes in parts, to its end."""
        self.asked = None
        parts = [messages[at : at + chunk] for at in range(0, len(messages), chunk)] or [[]]
        for number, part in enumerate(parts):
            self.act(self.tracker.replayed(part, ended=number == len(parts) - 1))
            if self.asked is not None:
                return  # this replay is void

    def fail(self) -> None:
        self.asked = None
        self.act(self.tracker.replay_failed())

    def settle(self, engine: Engine) -> None:
        """Some quiet time in which nothing is lost."""
        for _ in range(8):
            if self.asked is None:
                self.act(self.tracker.silent())
            if self.asked is not None:
                self.answer(engine.replay(self.asked), 4)


send = st.tuples(st.just("send"), st.sampled_from(["arrives", "arrives", "lost", "twice", "late"]))
deliver_late = st.tuples(st.just("late"), st.integers(0, 5))
answer = st.tuples(st.just("answer"), st.integers(1, 4), st.sets(st.integers(0, 6), max_size=2))
others = st.sampled_from([("fail",), ("silence",), ("restart",)])
actions = st.lists(st.one_of(send, send, send, deliver_late, answer, others), max_size=40)


def play(engine: Engine, listener: Listener, script: list[tuple], *, faults: bool) -> None:  # type: ignore[type-arg]
    late: list[Message] = []
    listener.act(listener.tracker.silent())
    listener.answer([], 1)  # the engine does answer
    for action in script:
        match action:
            case ("send", fate):
                message = engine.send()
                if fate == "late":
                    late.append(message)
                for _ in range({"arrives": 1, "twice": 2}.get(fate, 0)):
                    listener.act(listener.tracker.live(*message))
            case ("late", which) if late:
                listener.act(listener.tracker.live(*late.pop(which % len(late))))
            case ("answer", chunk, holes) if listener.asked is not None:
                repeated = engine.replay(listener.asked)
                kept = [message for at, message in enumerate(repeated) if not faults or at not in holes]
                listener.answer(kept, chunk)
            case ("fail",) if listener.asked is not None and faults:
                listener.fail()
            case ("silence",):
                listener.act(listener.tracker.silent())
            case ("restart",):
                late.clear()
                engine.restart()
                listener.act(listener.tracker.silent())
    for message in late:
        listener.act(listener.tracker.live(*message))


@settings(max_examples=600)
@given(actions, st.integers(1, 8))
def test_what_is_delivered_is_true_and_ends_up_complete(script: list[tuple], ring: int) -> None:  # type: ignore[type-arg]
    """Invariants 1, 2 and 3 under loss, duplicates, disorder, restarts and failing replays."""
    engine, listener = Engine(ring), Listener(SequenceTracker(can_replay=True))
    play(engine, listener, script, faults=True)
    listener.settle(engine)
    if engine.sent:
        assert listener.piece, "something of the engine's present life is known"
        assert listener.piece[-1] == engine.sent[-1], "nothing of it is missing at the end"
    else:
        assert listener.piece == [] or listener.piece[0].startswith(str(engine.life).encode())


@settings(max_examples=400)
@given(actions)
def test_nothing_is_given_up_while_the_engine_can_repeat_it(script: list[tuple]) -> None:  # type: ignore[type-arg]
    engine, listener = Engine(ring=1000), Listener(SequenceTracker(can_replay=True))
    play(engine, listener, script, faults=False)
    listener.settle(engine)
    assert Reset.LOST not in listener.resets
    assert listener.piece == engine.sent


@given(st.lists(st.sampled_from(["arrives", "twice", "late"]), max_size=30), st.randoms(use_true_random=False))
def test_without_a_replay_disorder_is_put_right_and_loss_is_told(fates: list[str], random) -> None:  # type: ignore[no-untyped-def]
    engine, listener = Engine(ring=0), Listener(SequenceTracker(can_replay=False))
    late: list[Message] = []
    for fate in fates:
        message = engine.send()
        if fate == "late":
            late.append(message)
        else:
            for _ in range(2 if fate == "twice" else 1):
                listener.act(listener.tracker.live(*message))
    random.shuffle(late)
    for message in late:
        listener.act(listener.tracker.live(*message))
    assert listener.resets == []
    assert listener.piece == engine.sent
    if engine.sent:
        engine.send()  # lost
        last = engine.send()
        listener.act(listener.tracker.live(*last))
        listener.act(listener.tracker.silent())
        assert listener.resets == [Reset.LOST]
        assert listener.piece == [last[1]]
