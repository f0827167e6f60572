"""Policies from papers that, like ours, forecast times. Pure."""

import math
from collections import deque
from random import Random

import numpy as np

from kvstore.types import WorkerId
from router.baselines.pools import least, least_among, matched
from router.choice.cost import Costs, column
from router.choice.interfaces import Pick
from router.choice.terms import PrefillTerms
from router.choice.view import Side, View
from router.fleet.table import Column


class Mooncake:
    """Mooncake's algorithm 1: the prefill worker with the least TTFT, the decode worker with the least TBT.

        if best_prefix / own_prefix > kvcache_balancing_threshold:
            TTFT = T_transfer(best_prefix - own_prefix) + T_queue + T_prefill(n, best_prefix)
        else:
            TTFT = T_queue + T_prefill(n, own_prefix)

    Source: Mooncake, FAST'25, algorithm 1. T_prefill and T_queue are those of our latency model, where the paper has a
    fitted polynomial. What differs: a router cannot tell a stock vLLM to fetch a prefix from another worker, so the
    threshold is infinite unless set; harm to running requests has no term. Its rejections are admission's, not these.
    """

    def __init__(self, rng: Random, kvcache_balancing_threshold: float = float("inf")) -> None:
        self._rng = rng
        self._threshold = kvcache_balancing_threshold

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """One worker, or a pair; None: nobody can decode."""
        if not len(view.decode):
            return None
        if not len(view.prefill):
            return Pick(None, least(self._ttft_s(view.decode, costs.local_prefill), self._rng))
        prefill = least(self._ttft_s(view.prefill, costs.prefill), self._rng)
        return Pick(prefill, least(column(costs.decode.step_s), self._rng))

    def _ttft_s(self, side: Side, terms: PrefillTerms) -> Column:
        ready_s = column(terms.ready_s)
        if math.isinf(self._threshold):
            return ready_s
        own_tokens = side.reachable_tokens[1]
        best_tokens = own_tokens.max()
        copies = best_tokens > self._threshold * own_tokens
        params = side.params
        transfer_s = params[:, 6] + params[:, 7] * ((best_tokens - own_tokens) / 1e3)
        best_prefill_s = terms.prefill_s[int(np.argmax(own_tokens))]
        return np.where(copies, transfer_s + side.backlog_s + best_prefill_s, ready_s)


class Preble:
    """Preble's E2: exploit a prefix that is longer than the rest, else explore.

        exploit, if cached prefix > remainder: the least loaded of the workers that hold the prefix
        explore, else: the worker with the least load + own prefill
        load: seconds of work sent to a worker within the last three minutes

    Source: Preble, ICLR'25; WukLab/preble `multi_node/global_scheduler_with_time.py`. What differs: the work of a
    request is our forecast of its prefill and of its share of decode steps; the cost of evictions and the shifting of
    load away from overloaded prefixes are left out. The paper has no P/D: with a prefill pool E2 chooses the prefill
    worker, and the decode worker is the one with the fewest sequences.
    """

    _WINDOW_S = 180.0

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._sent: deque[tuple[float, WorkerId, float]] = deque()  # when, where, seconds of work
        self._load_s: dict[WorkerId, float] = {}

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """One worker, or a pair; None: nobody can decode."""
        if not len(view.decode):
            return None
        self._forget(view.now_s)
        hands_off = len(view.prefill) > 0
        side, prefill = (view.prefill, costs.prefill) if hands_off else (view.decode, costs.local_prefill)
        position = self._e2(view, side, prefill)
        decode = least(view.decode.seqs, self._rng) if hands_off else position
        work_s = float(prefill.prefill_s[position])
        if not hands_off:
            steps = 2.0 * costs.given.shared_steps  # as many as tokens are expected of it
            work_s += steps * float(costs.decode.step_s[position]) / (float(side.seqs[position]) + 1.0)
        self._remember(view.now_s, side.ids[position], work_s)
        return Pick(position if hands_off else None, decode)

    def _e2(self, view: View, side: Side, prefill: PrefillTerms) -> int:
        load_s = np.array([self._load_s.get(worker_id, 0.0) for worker_id in side.ids])
        match = matched(view, side)
        if match.max() > 0.5:
            return least_among(load_s, match == match.max(), self._rng)
        return least(load_s + column(prefill.prefill_s), self._rng)

    def _remember(self, now_s: float, worker_id: WorkerId, work_s: float) -> None:
        self._sent.append((now_s, worker_id, work_s))
        self._load_s[worker_id] = self._load_s.get(worker_id, 0.0) + work_s

    def _forget(self, now_s: float) -> None:
        while self._sent and self._sent[0][0] < now_s - self._WINDOW_S:
            _, worker_id, work_s = self._sent.popleft()
            self._load_s[worker_id] -= work_s
