"""What a valid placement is, and how the reports of ranks become one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.expert_placement import (
    MAX_PARTS,
    RankReport,
    SlotPlan,
    SlotPlanError,
    Table,
    check_slot_plan,
    entries_of,
    equal_parts,
    expert_count,
    merge_reports,
    slots_problem,
    tokens_by_expert,
)

SLOTS: Table = ((0, 1, 2, 3, 0, 1), (3, 3, 2, 1, 0, 0))
SHAPE = {"layers": 2, "experts": 4, "ranks": 2, "slots_per_rank": 3}


def with_parts(parts: Table) -> SlotPlan:
    return SlotPlan(slots=SLOTS, parts=parts)


def test_each_expert_has_a_slot_in_each_layer() -> None:
    check_slot_plan(SlotPlan(slots=SLOTS), **SHAPE)
    check_slot_plan(with_parts(((1, 0, 1, 1, 2, MAX_PARTS), (1, 0, 1, 1, 1, 0))), **SHAPE)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (SlotPlan(slots=()), "slots: 0 layers; the model has 2 with experts"),
        (SlotPlan(slots=(SLOTS[0],)), "slots: 1 layers"),
        (SlotPlan(slots=(SLOTS[0], SLOTS[1][1:])), r"slots\[1\]: 5 slots; the engine has 6, 3 on each of 2 ranks"),
        (SlotPlan(slots=(SLOTS[0], (0, 1, 2, 3, 4, 0))), r"slots\[1\]\[4\]: expert 4; experts go from 0 to 3"),
        (SlotPlan(slots=(SLOTS[0], (0, 1, 2, 3, -1, 0))), r"slots\[1\]\[4\]: expert -1"),
        (SlotPlan(slots=((0, 1, 2, 2, 0, 1), SLOTS[1])), r"slots\[0\]: no slot for expert 3"),
        (with_parts((SLOTS[0],)), "parts: 1 layers"),
        (with_parts(((1, 1, 1, 1, -1, 1), (1,) * 6)), r"parts\[0\]\[4\]: -1; parts go from 0 to 1024"),
        (with_parts(((1,) * 6, (1, 1, 1, 1, 0, 0))), r"parts\[1\]: 0 parts of expert 0 in all"),
        (with_parts(((1,) * 6, (1, 1, 1, 1, 1024, 1))), r"parts\[1\]: 1025 parts of expert 0"),
    ],
    ids=str,
)
def test_anything_else_is_refused_with_the_place_and_what_is_allowed(plan: SlotPlan, reason: str) -> None:
    with pytest.raises(SlotPlanError, match=reason):
        check_slot_plan(plan, **SHAPE)


@given(st.data())
def test_a_plan_is_refused_or_every_expert_has_entries_that_lead_to_it(data: st.DataObject) -> None:
    numbers = st.lists(st.integers(-1, 4), min_size=6, max_size=6)
    row, parts = tuple(data.draw(numbers)), tuple(data.draw(numbers))
    plan = SlotPlan(slots=(row,), parts=(parts,))
    try:
        check_slot_plan(plan, **{**SHAPE, "layers": 1})
    except SlotPlanError:
        assert (
            set(row) != set(range(4))
            or any(
                not sum(part for expert, part in zip(row, parts, strict=True) if expert == wanted) >= 1
                for wanted in range(4)
            )
            or min(parts) < 0
        )
        return
    entries = entries_of(row, parts, 4)
    assert all(entries)
    assert all(row[slot] == expert for expert, slots in enumerate(entries) for slot in slots)
    assert sum(map(len, entries)) == sum(parts)


def test_entries_repeat_a_slot_as_often_as_it_has_parts() -> None:
    assert entries_of(SLOTS[0], (3, 1, 1, 1, 1, 0), 4) == [[0, 0, 0, 4], [1], [2], [3]]


def rank(is_copy: bool = False, steps: int = 1, placements: int = 0, tokens: int = 1) -> RankReport:
    counts = ((tokens,) * 6,) * 2
    return RankReport(
        is_copy=is_copy,
        steps=steps,
        placements=placements,
        experts=4,
        ranks=2,
        slots_per_rank=3,
        slots=SLOTS,
        parts=equal_parts(SLOTS),
        expert_tokens=tuple(map(tuple, tokens_by_expert(SLOTS, counts, 4))),
        slot_tokens=counts,
    )


def test_a_copy_s_tokens_are_not_counted_again() -> None:
    report = merge_reports(7, [rank(tokens=5), rank(is_copy=True, tokens=5)])
    assert (report.epoch, report.ranks, report.slot_tokens[0]) == (7, 2, (5,) * 6)
    assert report.expert_tokens == ((10, 10, 5, 5), (10, 5, 5, 10))


def test_ranks_with_tokens_of_their_own_are_added() -> None:
    report = merge_reports(7, [rank(tokens=5, steps=3), rank(tokens=1, steps=9)])
    assert report.steps == 9
    assert report.slot_tokens == ((6,) * 6,) * 2


def test_ranks_that_disagree_are_an_error() -> None:
    with pytest.raises(ValueError, match="disagree"):
        merge_reports(7, [rank(placements=1), rank()])


def test_what_ranks_answer_is_a_report() -> None:
    """collective_rpc carries plain lists and dicts."""
    assert msgspec.convert(msgspec.to_builtins(rank()), RankReport) == rank()


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"num_experts": 8}, 8),
        ({"num_local_experts": 4}, 4),
        ({"n_routed_experts": 256}, 256),
        ({"text_config": {"num_experts": 128}}, 128),
        ({"hidden_size": 576}, None),
        ({"num_experts": None, "text_config": None}, None),
        ({"num_experts": 1}, None),
    ],
)
def test_experts_of_a_checkpoint(config: dict[str, object], count: int | None) -> None:
    assert expert_count(config) == count


def test_slots_divide_over_ranks_or_it_is_said_what_would() -> None:
    assert slots_problem({"num_experts": 8}, ranks=2, redundant_experts=2) is None
    problem = slots_problem({"num_experts": 8}, ranks=4, redundant_experts=2)
    assert problem is not None
    assert problem.startswith(
        "engine.experts.redundant_experts: 2; 8 experts and 2 redundant ones do not divide over 4"
    )
    assert problem.endswith("allowed would be 0 or 4")
    assert str(slots_problem({"num_experts": 9}, ranks=4, redundant_experts=0)).endswith("allowed would be 3")
    assert "has no experts" in str(slots_problem({}, ranks=2, redundant_experts=0))
