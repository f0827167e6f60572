"""How the attempts of one request are carried out: the seam between a decision and whoever moves the bytes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from router.dispatch import Dispatcher, EngineCall, Outcome
from router.events import Event
from router.interfaces import RequestTrace, ResponseSink
from router.types import RoutingDecision


class Carrier(Protocol):
    """Carries out one request's attempts, one after another."""

    @property
    def started(self) -> bool:
        """The answer is under way, or out of our hands: what fails from here on is not tried again."""
        ...

    def run(
        self,
        decision: RoutingDecision,
        report: Callable[[Event], None],
        trace: RequestTrace,
        reply_headers: Mapping[str, str],
    ) -> Awaitable[Outcome]:
        """Carry one attempt to its end; `reply_headers` are added to the answer's. Raises WorkerError.

        Reports PrefillDone and FirstToken of this attempt; its end is the service's to report. May be cancelled at
        any time: its worker is lost, or its client is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class Relay:
    """By calls of our own to the engines; their bytes go into a sink."""

    dispatcher: Dispatcher
    call: EngineCall
    sink: ResponseSink

    @property
    def started(self) -> bool:
        """As the sink has it."""
        return self.sink.started

    def run(
        self,
        decision: RoutingDecision,
        report: Callable[[Event], None],
        trace: RequestTrace,
        reply_headers: Mapping[str, str],
    ) -> Awaitable[Outcome]:
        """One attempt."""
        return self.dispatcher.run(decision, self.call, self.sink, report, trace, reply_headers)
