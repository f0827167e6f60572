"""Puts an engine's numbered messages in order, across loss, repetition and restarts. Pure.

The engine numbers its messages from 0 in each of its lives, sends each once, and repeats the latest ones when asked for
those from a number on (a replay). Messages of one life reach us in any order, or not at all; those of an earlier life
never after those of a later one (each life has its own connections).

Invariants
 1. What is delivered since the last reset is a gapless piece of one life, in order; it begins with the life's message
    0 unless that reset is LOST.
 2. A reset comes when that cannot go on: RESTARTED (another life) or LOST (messages that nobody can repeat any more).
 3. A number alone does not tell lives apart, so content does: a replay is asked for from the last message delivered
    on, and what was delivered must be in it. After a silence, in which the engine may have been restarted, nothing is
    delivered before that check. (An engine that has never answered a replay is not checked: then only a number that
    comes again with another content shows a restart.)
 4. Memory is bounded: digests of the last messages delivered, and a limit in bytes on messages that wait for others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from xxhash import xxh3_64_intdigest

_REMEMBERED = 16_384  # messages; vLLM repeats its latest 10,000
_MAX_WAITING_BYTES = 64 << 20
_MESSAGE_OVERHEAD_BYTES = 150
_MAX_UNORDERED = 64  # messages that may wait for an earlier one where nothing can be repeated
_MAX_ATTEMPTS = 3


class Reset(Enum):
    """Why what was delivered before no longer counts."""

    RESTARTED = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class Step:
    """What to do, in this order."""

    reset: Reset | None = None
    payloads: tuple[bytes, ...] = ()
    ask_from: int | None = None  # ask for a replay from this number on; an earlier one under way is void


class SequenceTracker:
    """One engine rank's messages. `can_replay`: it repeats messages on demand."""

    def __init__(self, *, can_replay: bool) -> None:
        self._can_replay = can_replay
        self._replay_works = False  # it has answered at least once
        self._next = 0
        self._digests: dict[int, int | None] = {}  # of the latest messages before `_next`; None: given up
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0
        self._checked = True  # this is still the life that was delivered from (invariant 3)
        self._asked_at: int | None = None  # `_next` when the replay under way was asked for
        self._reply_begun = False
        self._reply_helped = False
        self._attempts = 0
        self._step: Step = Step()

    def live(self, seq: int, payload: bytes) -> Step:
        """A message came by itself."""
        if self._contradicts(seq, payload):
            self._drop_waiting()
            self._start_over(Reset.RESTARTED, 0)
        if seq >= self._next:
            self._wait(seq, payload)
            self._drain()
            self._settle()
        return self._take_step()

    def silent(self) -> Step:
        """No message came for so long that the engine may have been restarted, or that they go nowhere."""
        if self._can_replay:
            self._drop_waiting()  # the same life repeats them; of another, they must not be delivered
            self._checked = self._next == 0 or not self._replay_works
            if self._asked_at is None:
                self._ask()
        elif self._waiting:
            self._give_up()
        return self._take_step()

    def replayed(self, messages: Sequence[tuple[int, bytes]], *, ended: bool) -> Step:
        """The next part of the replay that was asked for last."""
        if self._asked_at is None:
            return Step()
        for seq, payload in messages:
            if self._contradicts(seq, payload):
                return self._restarted_unseen()
            if seq < self._next:
                self._checked = True
            else:
                if not self._checked or (seq > self._next and not self._reply_begun):
                    self._start_over(Reset.LOST, seq)  # what is missing before it is not repeated any more
                self._wait(seq, payload)
            self._reply_begun = True
            self._drain()
        self._reply_helped |= bool(self._step.payloads)
        if ended:
            self._replay_works = True
            if not self._reply_begun and self._asked_at > 0:
                return self._restarted_unseen()  # it does not know the message that we had last
            self._end_replay()
        return self._take_step()

    def replay_failed(self) -> Step:
        """The replay that was asked for last did not come, or not to its end."""
        if self._asked_at is not None:
            self._end_replay()
        return self._take_step()

    def _end_replay(self) -> None:
        self._attempts = 0 if self._reply_helped else self._attempts + 1
        self._asked_at = None
        if not self._waiting:
            self._attempts = 0
        elif self._attempts < _MAX_ATTEMPTS:
            self._ask()
        else:
            self._give_up()

    def _restarted_unseen(self) -> Step:
        """The replay shows another life."""
        waiting = {} if self._checked else self._waiting  # after a silence they are the new life's, else the old one's
        self._drop_waiting()
        self._start_over(Reset.RESTARTED, 0)
        for seq, payload in waiting.items():
            self._wait(seq, payload)
        self._drain()
        self._ask()
        return self._take_step()

    def _contradicts(self, seq: int, payload: bytes) -> bool:
        """Another message had that number before: this one is of another life."""
        if seq in self._waiting:
            return self._waiting[seq] != payload
        if seq >= self._next:
            return False
        known = self._digests.get(seq, -1)
        return known is not None and known != xxh3_64_intdigest(payload)

    def _wait(self, seq: int, payload: bytes) -> None:
        if seq not in self._waiting:
            self._waiting[seq] = payload
            self._waiting_bytes += len(payload) + _MESSAGE_OVERHEAD_BYTES

    def _drop_waiting(self) -> None:
        self._waiting, self._waiting_bytes = {}, 0

    def _drain(self) -> None:
        """Deliver what is due."""
        delivered = []
        while self._checked and self._next in self._waiting:
            payload = self._waiting.pop(self._next)
            self._waiting_bytes -= len(payload) + _MESSAGE_OVERHEAD_BYTES
            self._remember(self._next, xxh3_64_intdigest(payload))
            self._next += 1
            delivered.append(payload)
        if delivered:
            self._step = replace(self._step, payloads=self._step.payloads + tuple(delivered))

    def _settle(self) -> None:
        """Get what is missing before the messages that still wait, or give it up."""
        if not self._waiting:
            return
        unordered = len(self._waiting) > _MAX_UNORDERED and not self._can_replay
        if unordered or self._waiting_bytes > _MAX_WAITING_BYTES:
            self._give_up()
        elif self._can_replay and self._asked_at is None:
            self._ask()

    def _give_up(self) -> None:
        self._start_over(Reset.LOST, min(self._waiting))
        self._drain()
        self._settle()

    def _start_over(self, reset: Reset, seq: int) -> None:
        """What was delivered no longer counts; `seq` is the next to deliver."""
        if reset is Reset.RESTARTED:
            self._digests.clear()
        for given_up in range(max(self._next, seq - _REMEMBERED), seq):
            self._remember(given_up, None)
        self._next = seq
        self._waiting = {number: payload for number, payload in self._waiting.items() if number >= seq}
        self._waiting_bytes = sum(len(payload) + _MESSAGE_OVERHEAD_BYTES for payload in self._waiting.values())
        self._checked, self._attempts = True, 0
        if reset is Reset.RESTARTED:
            self._asked_at = None
        self._step = Step(reset)

    def _remember(self, seq: int, digest: int | None) -> None:
        self._digests[seq] = digest
        self._digests.pop(seq - _REMEMBERED, None)

    def _ask(self) -> None:
        self._asked_at, self._reply_begun, self._reply_helped = self._next, False, False
        self._step = replace(self._step, ask_from=max(0, self._next - 1))

    def _take_step(self) -> Step:
        step, self._step = self._step, Step()
        return step
