"""What the baselines share: a rule for each pool, the load of a side, ties broken by a seeded draw. Pure.

Every baseline is given what Headrace knows: the exact prefix index, and sequences and KV in use as reported or promised
by all router replicas. Peers often know less (an approximate tree of what each router sent, scraped metrics, no other
replica's promises), so what is compared here is rules, not information.
"""

from random import Random
from typing import Protocol

import numpy as np

from router.choice.cost import Costs
from router.choice.interfaces import Pick
from router.choice.view import Side, View
from router.fleet.table import Column


class Rule(Protocol):
    """How one worker of a pool is chosen."""

    def __call__(self, view: View, side: Side, /) -> int:
        """A position in `side`, which is not empty."""
        ...


class PerPool:
    """Hands off always where there is a prefill pool, each pool having its own rule, as all peers do by default."""

    def __init__(self, *, mixed: Rule, prefill: Rule, decode: Rule) -> None:
        self._mixed = mixed
        self._prefill = prefill
        self._decode = decode

    def pick(self, view: View, costs: Costs) -> Pick | None:
        """One worker, or a pair; None: nobody can decode."""
        if not len(view.decode):
            return None
        if not len(view.prefill):
            return Pick(None, self._mixed(view, view.decode))
        return Pick(self._prefill(view, view.prefill), self._decode(view, view.decode))


def in_flight(view: View, side: Side) -> Column:
    """Requests on each row: sequences where answers are made, prompts on a prefill worker."""
    if side is not view.prefill:
        return side.seqs
    totals = view.table.totals()
    prompts = np.array([totals[worker_id][0] for worker_id in side.ids], dtype=np.float64)
    return np.maximum(prompts, side.seqs)


def matched(view: View, side: Side) -> Column:
    """Share of the prompt that each row holds in its caches, 0 to 1."""
    share: Column = side.reachable_tokens[1] / max(1, view.request.num_prompt_tokens)
    return share


def least(values: Column, rng: Random) -> int:
    """The position of the smallest value, drawn among equals."""
    equal = np.flatnonzero(values == values.min())
    return int(equal[0]) if len(equal) == 1 else int(equal[int(rng.random() * len(equal))])


def least_among(values: Column, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], rng: Random) -> int:
    """The position of the smallest value where `chosen`, drawn among equals."""
    return least(np.where(chosen, values, np.inf), rng)
