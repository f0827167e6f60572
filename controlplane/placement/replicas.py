"""How many slots each expert of a layer gets. Pure.

Split equally, an expert with c_e slots brings w_e / c_e tokens to each rank that holds it, and that rank waits for all
of them: no placement is better than max_e w_e / c_e. `replica_counts` makes that as small as R slots allow: each slot
beyond the first of each goes to the expert with the most tokens a slot.

Why this is optimal (DeepSeek's EPLB replicates so; the argument is the usual exchange). A threshold tau can be kept
exactly if sum_e max(1, ceil(w_e / tau)) <= R. An expert gets its c-th slot only while w_e / (c - 1) is the largest of
all. So were the largest at the end, T = w_m / c_m, above the optimum tau, then every expert got its last slot when it
stood at T or more, hence c_e - 1 < w_e / tau, c_e <= max(1, ceil(w_e / tau)), and for m itself the sign is strict:
c_m < w_m / tau. Added up R < sum_e max(1, ceil(w_e / tau)) <= R, a contradiction.

Several loads at once: max over loads and experts of w_e / c_e is max over experts of (max over loads of w_e) / c_e, so
the counts for their `envelope` are optimal for the worst of them.
"""

import numpy as np
from numpy.typing import NDArray

from controlplane.placement.types import PlacementError, Tokens, check_tokens


def replica_counts(tokens: Tokens, num_slots: int, *, most: int | None = None) -> NDArray[np.int64]:
    """(layers, experts) slots of each expert, num_slots a layer. On a tie the lower number wins.

    No expert gets more than `most` (the number of ranks: a second slot on a rank takes nothing off it).
    """
    return replicate(tokens, num_slots, most=most)[0]


def replicate(
    tokens: Tokens, num_slots: int, *, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`replica_counts`, and (layers, slots) the expert of each slot: all of them once, then as they were given."""
    check_tokens(tokens)
    num_layers, num_experts = tokens.shape
    if num_slots < num_experts:
        raise PlacementError(f"{num_experts} experts need as many slots, there are {num_slots}")
    if most is not None and most * num_experts < num_slots:
        raise PlacementError(f"{num_slots} slots for {num_experts} experts: more than {most} for each")
    counts = np.ones((num_layers, num_experts), dtype=np.int64)
    expert_of = np.tile(np.arange(num_slots), (num_layers, 1))
    a_slot = tokens.astype(np.float64)  # tokens of each expert over its slots
    layers = np.arange(num_layers)
    for slot in range(num_experts, num_slots):
        if most is not None:
            a_slot[counts >= most] = -1.0
        expert = a_slot.argmax(axis=1)
        expert_of[:, slot] = expert
        counts[layers, expert] += 1
        a_slot[layers, expert] = tokens[layers, expert] / counts[layers, expert]
    return counts, expert_of


def envelope(scenario_tokens: NDArray[np.float64]) -> Tokens:
    """(layers, experts) the most that any of (scenarios, layers, experts) brings to each expert."""
    most: Tokens = scenario_tokens.max(axis=0)
    return most


def tokens_a_slot(tokens: Tokens, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(layers,) the most tokens that one slot gets."""
    most: NDArray[np.float64] = (tokens / counts).max(axis=1)
    return most
