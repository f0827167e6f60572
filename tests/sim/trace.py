"""Mooncake's conversation trace, where it lies beside the repository: data that is not ours, read and never copied."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypedDict, cast

from router.types import Terms
from tests.sim.workload import Arrival, Turn

PATH = Path(__file__).parents[3] / "shared" / "traces" / "mooncake" / "conversation_trace.jsonl"
BLOCK_SIZE_TOKENS = 512
_BIN_S = 3.0  # the trace's timestamps are rounded to this: drawn anew within it


class Row(TypedDict):
    """One line; `timestamp` in milliseconds."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int]


def conversation(terms: Terms, *, num_requests: int, seed: int, speed_up: float = 1.0) -> list[Arrival]:
    """The first requests, `speed_up` times as fast; empty where the trace is not there.

    Which request follows which answer is not in the trace, so all arrive when they arrived there.
    """
    if not PATH.exists():
        return []
    rng = Random(seed)
    arrivals = [
        Arrival((row["timestamp"] / 1e3 + rng.random() * _BIN_S) / speed_up, _turn(row, terms, rng))
        for row in _rows(num_requests)
    ]
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def _turn(row: Row, terms: Terms, rng: Random) -> Turn:
    num_prompt, num_output = row["input_length"], max(1, row["output_length"])
    full = num_prompt // BLOCK_SIZE_TOKENS
    rest = (num_prompt + num_output) // BLOCK_SIZE_TOKENS - full
    chain = (*row["hash_ids"][:full], *(rng.getrandbits(64) for _ in range(rest)))
    return Turn(num_prompt, num_output, chain, terms, max_output_tokens=2048)


def _rows(num_requests: int) -> Iterator[Row]:
    with PATH.open() as lines:
        for line in islice(lines, num_requests):
            yield cast(Row, json.loads(line))
