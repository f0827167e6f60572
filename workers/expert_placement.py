"""Expert loads and expert placement of one engine: what goes over the wire, and what a valid placement is. Pure.

A mixture-of-experts layer has `experts` experts. The engine keeps them in slots: `ranks` processes with
`slots_per_rank` slots each; slot s belongs to rank s // slots_per_rank. There are at least as many slots as experts;
an expert that is in more than one slot shares its tokens among them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

EXPERTS_PATH = "/headrace/experts"
PLACEMENT_PATH = "/headrace/experts/placement"
# Set for every process of an expert-parallel engine; workers/engine_plugin.py looks at it.
EXPERTS_ENV = "HEADRACE_EXPERT_PARALLEL"
# Entries of one expert in the engine's table (vLLM: MAX_EXPERT_REDUNDANCY + 1).
MAX_PARTS = 1024

Table = tuple[tuple[int, ...], ...]  # [layer][slot] or [layer][expert]


class SlotPlanError(ValueError):
    """A placement that the engine could not apply; the message says where it is wrong and what is allowed."""


class SlotPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to put into each slot. An expert's tokens are divided among its slots in proportion to their `parts`.

    In the long run: the engine chooses by a hash of a token's place in its batch, so that in a batch of one token the
    first slot of an expert gets it always.
    """

    slots: Table  # [layer][slot] -> expert
    parts: Table | None = None  # [layer][slot], whole numbers; none: one part for each slot


class PlacementReply(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the slots now; `placements` counts those applied since the engine started."""

    epoch: int
    placements: int
    slots: Table
    parts: Table


class ExpertReport(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts and placement of one engine. Counters only rise while `epoch` is the same; a new one starts at 0."""

    epoch: int  # of the engine's start, in milliseconds
    steps: int  # forward passes with real tokens, of the rank that made the most
    placements: int
    experts: int
    ranks: int
    slots_per_rank: int
    slots: Table  # [layer][slot] -> expert
    parts: Table
    expert_tokens: Table  # [layer][expert], since the engine's start: a token counts once for each expert it goes to
    slot_tokens: Table  # [layer][slot], since the last placement


class RankReport(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's part of it."""

    is_copy: bool  # another rank counts the same tokens, and reports them
    steps: int
    placements: int
    experts: int
    ranks: int
    slots_per_rank: int
    slots: Table
    parts: Table
    expert_tokens: Table
    slot_tokens: Table


def check_slot_plan(plan: SlotPlan, *, layers: int, experts: int, ranks: int, slots_per_rank: int) -> None:
    """Raise SlotPlanError unless every rank of an engine of this shape can apply it."""
    _check_shape("slots", plan.slots, layers, ranks, slots_per_rank)
    for layer, row in enumerate(plan.slots):
        for slot, expert in enumerate(row):
            if not 0 <= expert < experts:
                raise SlotPlanError(f"slots[{layer}][{slot}]: expert {expert}; experts go from 0 to {experts - 1}")
        missing = sorted(set(range(experts)) - set(row))
        if missing:
            raise SlotPlanError(f"slots[{layer}]: no slot for expert {missing[0]}; every expert needs one")
    if plan.parts is not None:
        _check_shape("parts", plan.parts, layers, ranks, slots_per_rank)
        for layer, (row, parts) in enumerate(zip(plan.slots, plan.parts, strict=True)):
            _check_parts(layer, row, parts, experts)


def _check_shape(name: str, table: Table, layers: int, ranks: int, slots_per_rank: int) -> None:
    if len(table) != layers:
        raise SlotPlanError(f"{name}: {len(table)} layers; the model has {layers} with experts")
    for layer, row in enumerate(table):
        if len(row) != ranks * slots_per_rank:
            raise SlotPlanError(
                f"{name}[{layer}]: {len(row)} slots; the engine has {ranks * slots_per_rank}, "
                f"{slots_per_rank} on each of {ranks} ranks"
            )


def _check_parts(layer: int, row: Sequence[int], parts: Sequence[int], experts: int) -> None:
    totals = [0] * experts
    for slot, (expert, part) in enumerate(zip(row, parts, strict=True)):
        if not 0 <= part <= MAX_PARTS:
            raise SlotPlanError(f"parts[{layer}][{slot}]: {part}; parts go from 0 to {MAX_PARTS}")
        totals[expert] += part
    for expert, total in enumerate(totals):
        if not 1 <= total <= MAX_PARTS:
            raise SlotPlanError(f"parts[{layer}]: {total} parts of expert {expert} in all; it needs 1 to {MAX_PARTS}")


def equal_parts(slots: Table) -> Table:
    """One part for each slot."""
    return tuple((1,) * len(row) for row in slots)


def entries_of(row: Sequence[int], parts: Sequence[int], experts: int) -> list[list[int]]:
    """Each expert's slots in one layer, each as often as it has parts. Engines pick one entry for each token."""
    entries: list[list[int]] = [[] for _ in range(experts)]
    for slot, (expert, part) in enumerate(zip(row, parts, strict=True)):
        entries[expert] += [slot] * part
    return entries


def tokens_by_expert(slots: Table, slot_tokens: Table, experts: int) -> list[list[int]]:
    """Sum slots over the expert in them."""
    totals = [[0] * experts for _ in slots]
    for total, row, tokens in zip(totals, slots, slot_tokens, strict=True):
        for expert, count in zip(row, tokens, strict=True):
            total[expert] += count
    return totals


def merge_reports(epoch: int, reports: Sequence[RankReport]) -> ExpertReport:
    """The engine's report from those of all its ranks; raises ValueError where they disagree about the placement."""
    first = reports[0]
    for other in reports[1:]:
        if (other.placements, other.slots, other.parts) != (first.placements, first.slots, first.parts):
            raise ValueError("the engine's ranks disagree about the placement of experts")
    counting = [report for report in reports if not report.is_copy]
    return ExpertReport(
        epoch=epoch,
        steps=max(report.steps for report in reports),
        placements=first.placements,
        experts=first.experts,
        ranks=first.ranks,
        slots_per_rank=first.slots_per_rank,
        slots=first.slots,
        parts=first.parts,
        expert_tokens=_sum([report.expert_tokens for report in counting]),
        slot_tokens=_sum([report.slot_tokens for report in counting]),
    )


def _sum(tables: Sequence[Table]) -> Table:
    return tuple(tuple(map(sum, zip(*rows, strict=True))) for rows in zip(*tables, strict=True))


# Where model families write their number of experts in config.json.
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def expert_count(model_config: Mapping[str, Any]) -> int | None:
    """Experts of a layer by the checkpoint's config.json; None for a dense model."""
    for config in (model_config, model_config.get("text_config") or {}):
        for key in _EXPERT_KEYS:
            if isinstance(config.get(key), int) and config[key] > 1:
                return int(config[key])
    return None


def slots_problem(model_config: Mapping[str, Any], ranks: int, redundant_experts: int) -> str | None:
    """Why these experts cannot be divided over the ranks, with what could; None if they can."""
    experts = expert_count(model_config)
    if experts is None:
        return "engine.experts: the model has no experts (its config.json names none); remove engine.experts"
    spare = (experts + redundant_experts) % ranks
    if spare == 0:
        return None
    fewer, more = redundant_experts - spare, redundant_experts + ranks - spare
    allowed = f"{fewer} or {more}" if fewer >= 0 else str(more)
    return (
        f"engine.experts.redundant_experts: {redundant_experts}; {experts} experts and {redundant_experts} redundant "
        f"ones do not divide over {ranks} ranks; allowed would be {allowed}"
    )
