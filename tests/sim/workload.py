"""Who asks what and when: seeded generators. A turn of a chat comes after the answer to the one before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from router.types import Terms
from tests.builders import make_terms


@dataclass(slots=True, eq=False)
class Turn:
    """One request of a client, and the one that follows it."""

    num_prompt_tokens: int
    num_output_tokens: int  # that the engine will make; the router is told `max_output_tokens`
    chain: tuple[int, ...]  # hashes of the full blocks of prompt and answer
    terms: Terms
    session: str = ""
    max_output_tokens: int = 1024
    next: "Turn | None" = None
    think_s: float = 0.0  # between this answer and the next turn


@dataclass(frozen=True, slots=True)
class Arrival:
    """A turn that somebody asks at a given time."""

    at_s: float
    turn: Turn


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths in tokens."""

    median: float
    sigma: float = 0.6
    most: int = 32_000

    def draw(self, rng: Random) -> int:
        """At least 1."""
        return max(1, min(self.most, round(self.median * rng.lognormvariate(0.0, self.sigma))))


CHAT = make_terms(ttft_s=1.0, tpot_s=0.05)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a stream of requests looks like."""

    rate_per_s: float
    duration_s: float
    prompt: Lengths = Lengths(400)  # of the user's own part
    output: Lengths = Lengths(180, most=1024)
    classes: Sequence[tuple[Terms, float]] = ((CHAT, 1.0),)  # with weights
    num_systems: int = 0  # shared system prompts, the k-th asked for in proportion to 1/k
    system: Lengths = Lengths(1500, 0.4)
    turns: float = 1.0  # mean; geometric
    think_s: float = 5.0  # mean; exponential
    burstiness: float = 1.0  # coefficient of variation of the gaps between arrivals; 1: Poisson
    block_size_tokens: int = 64


def generate(shape: Shape, seed: int) -> list[Arrival]:
    """Sessions arriving at `rate_per_s`, each of one turn or more."""
    rng = Random(seed)
    size = shape.block_size_tokens
    systems = [_fresh(rng, shape.system.draw(rng) // size) for _ in range(shape.num_systems)]
    popularity = [1.0 / rank for rank in range(1, shape.num_systems + 1)]
    arrivals: list[Arrival] = []
    at_s = 0.0
    while True:
        at_s += _gap_s(shape, rng)
        if at_s >= shape.duration_s:
            return arrivals
        system = rng.choices(systems, popularity)[0] if systems else ()
        arrivals.append(Arrival(at_s, _session(shape, system, f"s{len(arrivals)}", rng)))


def _gap_s(shape: Shape, rng: Random) -> float:
    if shape.burstiness == 1.0:
        return rng.expovariate(shape.rate_per_s)
    form = shape.burstiness**-2
    return rng.gammavariate(form, 1.0 / (form * shape.rate_per_s))


def _session(shape: Shape, system: tuple[int, ...], name: str, rng: Random) -> Turn:
    size = shape.block_size_tokens
    asked = rng.choices([t for t, _ in shape.classes], [w for _, w in shape.classes])[0]
    num_turns = 1
    while shape.turns > 1.0 and rng.random() < 1.0 - 1.0 / shape.turns:
        num_turns += 1
    chain, num_tokens = system, len(system) * size
    first: Turn | None = None
    last: Turn | None = None
    for _ in range(num_turns):
        num_prompt = num_tokens + shape.prompt.draw(rng)
        num_output = shape.output.draw(rng)
        num_tokens = num_prompt + num_output
        chain = chain + _fresh(rng, num_tokens // size - len(chain))
        turn = Turn(num_prompt, num_output, chain, asked, session=name, think_s=rng.expovariate(1.0 / shape.think_s))
        if last is None:
            first = turn
        else:
            last.next = turn
        last = turn
    assert first is not None
    return first


def _fresh(rng: Random, num_blocks: int) -> tuple[int, ...]:
    return tuple(rng.getrandbits(64) for _ in range(num_blocks))
