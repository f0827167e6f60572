"""What is measured: kinds of requests, and how many at once."""

from dataclasses import dataclass

MODELS = ("demo", "demo-paced")  # the second is the same to all but Dynamo, whose mocker has one pace a model
STREAM_EVENTS = 64
PACED = b";p"  # endings of `user`: how a stream is paced
IDLE = b";i"


@dataclass(frozen=True, slots=True)
class Case:
    """Closed loop: each connection sends its next request when it has the answer to the last."""

    kind: str  # of prompts and answers
    connections: int

    @property
    def name(self) -> str:
        """As in `--match`."""
        return f"{self.kind} x{self.connections}"

    @property
    def streams(self) -> bool:
        """Answers come in STREAM_EVENTS events."""
        return self.kind.startswith("stream")


# stream-64: events as fast as they come. stream-64-paced: one every five milliseconds, as an engine makes them.
CASES = (
    *(Case("unary-400", connections) for connections in (1, 32, 256)),
    *(Case("unary-8000", connections) for connections in (1, 32)),
    *(Case("stream-64", connections) for connections in (1, 32)),
    *(Case("stream-64-paced", connections) for connections in (32, 256)),
    *(Case("multi-turn", connections) for connections in (1, 32)),
)
HAND_OFF_CASES = (Case("unary-400", 1), Case("unary-400", 32), Case("unary-8000", 32), Case("stream-64-paced", 32))
