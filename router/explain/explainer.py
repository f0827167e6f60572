"""Turns the core's stream of events and commands into one explanation a request. Pure.

While a request lives only references to what was decided are kept. At its end they are packed into bytes, of which the
explanation is made when somebody asks: that costs many times as much, and of most requests nobody does.

Invariants
 1. A request is known here from its RequestArrived to its end, and its explanation comes out of `observe` once, packed.
 2. An event of an attempt that is not the live one adds nothing, as it changes nothing in the core.
 3. An explanation is bounded by the number of attempts: texts that clients choose are cut.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from kvstore.types import RequestId
from router.events import (
    Command,
    Dispatch,
    Event,
    FirstToken,
    Hold,
    PrefillDone,
    Reject,
    RequestArrived,
    RequestCancelled,
    RequestDone,
    RequestFailed,
)
from router.explain.explanation import Explanation, Outcome
from router.explain.pack import About, pack, unpack
from router.explain.steps import MOST_CHARS, Asked, Note, Wait, note_dispatch, note_reject, tell_arrival, tell_steps
from router.types import Overlap, Request


class Ended(Struct, frozen=True, gc=False):
    """A request that ended; `Explainer.tell` makes its explanation of `packed`."""

    request_id: RequestId
    public_id: str
    packed: bytes


class _Story(Struct, gc=False):
    request: Request
    overlap: Overlap
    public_id: str
    arrived_at_s: float
    notes: list[tuple[float, Note]] = []  # (now_s, what); a new one for each
    attempt: int = 0  # the live one
    is_waiting: bool = True  # there is no live attempt
    held_because: str = ""  # admission's word, while it waits


class Explainer:
    """Explanations of the requests that one core is told of."""

    def __init__(self, *, router: str, policy: str, unix_offset_s: float) -> None:
        """`unix_offset_s`: Unix time minus the core's clock."""
        self._router = router
        self._policy = policy
        self._unix_offset_s = unix_offset_s
        self._stories: dict[RequestId, _Story] = {}
        self._public_ids: dict[RequestId, str] = {}
        self._num_waiting = 0

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._stories)

    def announce(self, request_id: RequestId, public_id: str) -> None:
        """The id under which the client knows a request whose arrival is observed next."""
        self._public_ids[request_id] = public_id

    def observe(self, now_s: float, event: Event, commands: Sequence[Command]) -> list[Ended]:
        """Take in one step of the core; return the stories that it ended."""
        ended: list[Ended] = []
        story = self._happened(now_s, event, ended)
        for command in commands:
            self._answered(now_s, command, ended)
        if story is not None and story.is_waiting and story.request.id in self._stories:
            story.notes.append((now_s, Wait(self._num_waiting - 1, story.held_because)))
        return ended

    def explanation(self, any_id: str) -> Explanation | None:
        """The story so far of a request that has not ended, by its own or its public id; of several, the newest's.

        By public id it is linear in the live requests: people ask so, and rarely.
        """
        story = self._stories.get(RequestId(any_id))
        if story is None:
            story = next((other for other in reversed(self._stories.values()) if other.public_id == any_id), None)
        if story is None:
            return None
        return self._tell(_about(story, "waiting" if story.is_waiting else "running"), story.notes)

    def tell(self, packed: bytes) -> Explanation:
        """The explanation of a request that ended."""
        return self._tell(*unpack(packed))

    def _happened(self, now_s: float, event: Event, ended: list[Ended]) -> _Story | None:
        """Note an event; the story, if the core owes it an answer now."""
        match event:
            case RequestArrived(request, overlap):
                public_id = self._public_ids.pop(request.id, request.id)
                story = self._stories[request.id] = _Story(request, overlap, public_id, now_s)
                self._num_waiting += 1
                return story
            case RequestCancelled(request_id):
                cancelled = self._stories.get(request_id)
                if cancelled is not None:
                    cancelled.notes.append((now_s, event))
                    self._end(cancelled, "cancelled", ended)
            case PrefillDone() | FirstToken() | RequestDone() | RequestFailed():
                return self._progressed(now_s, event, ended)
            case _:
                pass  # of workers and other routers; what it means for a request is a command
        return None

    def _progressed(
        self, now_s: float, event: PrefillDone | FirstToken | RequestDone | RequestFailed, ended: list[Ended]
    ) -> _Story | None:
        story = self._stories.get(event.request_id)
        if story is None or story.is_waiting or story.attempt != event.attempt:
            return None
        story.notes.append((now_s, event))
        if isinstance(event, RequestDone):
            self._end(story, "done", ended)
        elif isinstance(event, RequestFailed):
            if event.retriable:
                self._set_waiting(story, True)
                return story
            self._end(story, "failed", ended)
        return None

    def _answered(self, now_s: float, command: Command, ended: list[Ended]) -> None:
        story = self._stories.get(command.decision.request_id if isinstance(command, Dispatch) else command.request_id)
        if story is None:
            return
        if isinstance(command, Hold):
            story.held_because = command.why[: MOST_CHARS + 1]
            return
        if isinstance(command, Dispatch):
            story.notes.append((now_s, note_dispatch(command.decision)))
            story.attempt = command.decision.attempt
            self._set_waiting(story, False)
        elif isinstance(command, Reject):
            story.notes.append((now_s, note_reject(command)))
            self._end(story, "rejected", ended)
        else:
            story.notes.append((now_s, command))

    def _set_waiting(self, story: _Story, is_waiting: bool) -> None:
        self._num_waiting += is_waiting - story.is_waiting
        story.is_waiting = is_waiting

    def _end(self, story: _Story, outcome: Outcome, ended: list[Ended]) -> None:
        del self._stories[story.request.id]
        self._num_waiting -= story.is_waiting
        ended.append(Ended(story.request.id, story.public_id, pack(_about(story, outcome), story.notes)))

    def _tell(self, about: About, notes: Iterable[tuple[float, Note]]) -> Explanation:
        return Explanation(
            request_id=about.request_id,
            public_id=about.public_id,
            router=self._router,
            policy=self._policy,
            arrived_at_s=round(about.arrived_at_s + self._unix_offset_s, 3),
            outcome=about.outcome,
            arrival=about.arrival,
            steps=tell_steps(about.asked, about.arrived_at_s, notes),
        )


def _about(story: _Story, outcome: Outcome) -> About:
    request = story.request
    slo = request.terms.slo
    return About(
        request.id,
        story.public_id,
        story.arrived_at_s,
        outcome,
        tell_arrival(request, story.overlap),
        Asked(request.streamed, slo.ttft_s, slo.tpot_s),
    )
