"""llm-d's weighted scorers, with the weights that KServe deploys. Pure.

    mixed:    2 queue + 2 kv-util + 3 prefix + 2 no-hit-lru
    prefill:  2 queue + 2 kv-util + 3 prefix
    decode:   2 active-request + 3 prefix

Source: kserve `pkg/controller/v1alpha2/llmisvc/scheduler.go` for the weights; llm-d-inference-scheduler
`pkg/epp/framework/plugins/scheduling/scorer/{queuedepth,kvcacheutilization,prefix,activerequest,nohitlru}` for the
scorers, each in [0, 1]; the highest sum wins, equals are drawn (max-score picker); P/D always disaggregates.
What differs: the queue is the predicted time of the prompts promised and not yet computed, where llm-d scrapes the
number of waiting requests (every 50 ms); prefix is the exact share (its precise scorer).
"""

from collections.abc import Callable, Mapping
from random import Random

import numpy as np

from kvstore.types import WorkerId
from router.baselines.pools import PerPool, in_flight, least, matched
from router.choice.view import Side, View
from router.fleet.table import Column

Scorer = Callable[[View, Side], Column]


def queue_score(view: View, side: Side) -> Column:
    """1 for the shortest queue, 0 for the longest."""
    queue = side.backlog_s
    spread = queue.max() - queue.min()
    return (queue.max() - queue) / spread if spread > 0 else np.ones(len(side))


def kv_score(view: View, side: Side) -> Column:
    """Share of the KV cache that is free."""
    return 1.0 - np.minimum(side.kv_tokens / side.kv_total_tokens, 1.0)


def active_score(view: View, side: Side) -> Column:
    """1 for an idle worker, 0 for the busiest."""
    active = in_flight(view, side)
    return (active.max() - active) / active.max() if active.max() > 0 else np.ones(len(side))


class NoHitLru:
    """Spreads requests that nobody has a prefix of: the worker that had the last one longest ago scores highest."""

    def __init__(self) -> None:
        self._last: dict[WorkerId, int] = {}  # worker -> number of its last cold request

    def __call__(self, view: View, side: Side) -> Column:
        """Scores by age; 0.5 for all where somebody has a prefix."""
        if len(side) == 1 or matched(view, side).any():
            return np.full(len(side), 0.5)
        rank = np.argsort(np.argsort([self._last.get(worker_id, -1) for worker_id in side.ids], kind="stable"))
        return 1.0 - rank / (len(side) - 1)

    def picked(self, view: View, side: Side, position: int) -> None:
        """Remember who got a cold request."""
        if not matched(view, side).any():
            self._last[side.ids[position]] = max(self._last.values(), default=0) + 1


class Weighted:
    """The worker with the highest weighted sum."""

    def __init__(self, rng: Random, weights: Mapping[Scorer, float]) -> None:
        self._rng = rng
        self._weights = weights
        self._lru = [scorer for scorer in weights if isinstance(scorer, NoHitLru)]

    def __call__(self, view: View, side: Side) -> int:
        """Its position."""
        score = np.zeros(len(side))
        for scorer, weight in self._weights.items():
            score += weight * scorer(view, side)
        position = least(-score, self._rng)
        for lru in self._lru:
            lru.picked(view, side, position)
        return position


def llmd(rng: Random) -> PerPool:
    """KServe's default profiles."""
    by_load: dict[Scorer, float] = {queue_score: 2.0, kv_score: 2.0, matched: 3.0}
    return PerPool(
        mixed=Weighted(rng, {**by_load, NoHitLru(): 2.0}),
        prefill=Weighted(rng, by_load),
        decode=Weighted(rng, {active_score: 2.0, matched: 3.0}),
    )
