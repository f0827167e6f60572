"""Inside each rank of an expert-parallel engine: counts tokens by slot, and applies placements.

vLLM's own load balancer (EPLB) does the work: it records which slot each token goes to and moves weights. It is told
never to rebalance on its own (workers/engine_command.py); here its counts are kept and its policy is asked once, with
an answer that came from outside. Works on every platform that EPLB runs on; vLLM calls the methods of `ExpertRank` as
those of its worker (--worker-extension-cls).

Invariants
 1. All ranks hold the same placement. A rank that fails while weights move ends its process, and so the engine.
 2. Tokens are counted once: ranks that see the same tokens say so (`is_copy`). Except where vLLM shows each
    data-parallel rank all tokens (kernels on GPUs that are not modular): there all counts are multiplied alike.
"""

import logging
import os
from typing import Any

import torch

from workers.cpu_experts import expect_parameters
from workers.expert_placement import SlotPlan, check_slot_plan, entries_of, equal_parts, tokens_by_expert

_log = logging.getLogger(__name__)
_COUNTERS = "_headrace_counters"


class SlotCounters:
    """Token counts of one model on one rank. Counting stays on the device; reading does not."""

    def __init__(self, state: Any) -> None:
        if len(state.model_states) != 1:
            raise RuntimeError(f"expert placement knows one model in an engine, not {len(state.model_states)}")
        (self._model_state,) = state.model_states.values()
        with torch.inference_mode(False):  # made within a forward pass, it could not be cleared outside of one
            self._slot_tokens = torch.zeros_like(self._model_state.expert_load_pass, dtype=torch.int64)
        self._earlier_tokens: list[list[int]] | None = None  # by expert, of placements that are gone
        self.steps = 0
        self.placements = 0
        self.parts = equal_parts(tuple(map(tuple, self.slots)))

    @property
    def slots(self) -> list[list[int]]:
        """Expert in each slot."""
        slots: list[list[int]] = self._model_state.physical_to_logical_map.tolist()
        return slots

    @property
    def slot_tokens(self) -> list[list[int]]:
        """Since the last placement."""
        tokens: list[list[int]] = self._slot_tokens.tolist()
        return tokens

    @property
    def expert_tokens(self) -> list[list[int]]:
        """Since the start."""
        experts = self._model_state.model.num_logical_experts
        totals = tokens_by_expert(self.slots, self.slot_tokens, experts)  # type: ignore[arg-type]
        if self._earlier_tokens is not None:
            for total, earlier in zip(totals, self._earlier_tokens, strict=True):
                total[:] = map(sum, zip(total, earlier, strict=True))
        return totals

    def take(self) -> None:
        """Add what the forward pass recorded, and clear it."""
        self._slot_tokens += self._model_state.expert_load_pass
        self._model_state.expert_load_pass.zero_()
        self.steps += 1

    def start_placement(self) -> None:
        """Before the slots change: keep their counts by expert."""
        self._earlier_tokens = self.expert_tokens
        self._slot_tokens.zero_()


def count_steps() -> None:
    """Make vLLM's EplbState keep every forward pass's counts: it would only record shortly before it rebalances.

    Patches distributed/eplb/eplb_state.py EplbState.step; called in every process of the engine at its start.
    """
    from vllm.distributed.eplb.eplb_state import EplbState

    if hasattr(EplbState.step, _COUNTERS):
        return
    step = EplbState.step
    expect_parameters(step, "self", "is_dummy", "is_profile", "log_stats")
    expect_parameters(EplbState.rearrange, "self", "is_profile", "rank_mapping", "use_last_expert_load")

    def counting_step(self: Any, is_dummy: bool = False, is_profile: bool = False, log_stats: bool = False) -> None:
        if not is_dummy and not is_profile:
            counters_of(self).take()
        step(self, is_dummy, is_profile, log_stats)
        if self.should_record_tensor is not None:
            self.should_record_tensor.fill_(True)

    setattr(counting_step, _COUNTERS, True)
    EplbState.step = counting_step


def counters_of(state: Any) -> SlotCounters:
    """The counters that belong to an EplbState."""
    counters: SlotCounters | None = getattr(state, _COUNTERS, None)
    if counters is None:
        counters = SlotCounters(state)
        setattr(state, _COUNTERS, counters)
    return counters


class ExpertRank:
    """Mixed into vLLM's worker. Results are plain lists and dicts: msgpack has to encode them."""

    model_runner: Any
    parallel_config: Any

    def headrace_experts(self) -> dict[str, Any]:
        """A RankReport."""
        from vllm.distributed.parallel_state import get_tp_group

        model_state, counters = self._headrace_state()
        model = model_state.model
        # Ranks of a tensor-parallel group compute with the same tokens, unless the sequence is split among them.
        same_tokens = get_tp_group().rank_in_group > 0 and not self.parallel_config.use_sequence_parallel_moe
        return {
            "is_copy": same_tokens,
            "steps": counters.steps,
            "placements": counters.placements,
            "experts": model.num_logical_experts,
            "ranks": model.num_physical_experts // model.num_local_physical_experts,
            "slots_per_rank": model.num_local_physical_experts,
            "slots": counters.slots,
            "parts": [list(row) for row in counters.parts],
            "expert_tokens": counters.expert_tokens,
            "slot_tokens": counters.slot_tokens,
        }

    def headrace_place_experts(self, slots: list[list[int]], parts: list[list[int]] | None) -> dict[str, Any]:
        """Apply a placement; all ranks are called at once, while no forward pass runs. Returns a RankReport."""
        from vllm.distributed.eplb.policy import AbstractEplbPolicy

        model_state, counters = self._headrace_state()
        model, state = model_state.model, self.model_runner.eplb_state
        plan = SlotPlan(
            slots=tuple(map(tuple, slots)),
            parts=None if parts is None else tuple(map(tuple, parts)),
        )
        per_rank = model.num_local_physical_experts
        ranks = model.num_physical_experts // per_rank
        check_slot_plan(
            plan, layers=model.num_moe_layers, experts=model.num_logical_experts, ranks=ranks, slots_per_rank=per_rank
        )
        wanted = torch.tensor(slots, dtype=torch.long)

        class ThisPlacement(AbstractEplbPolicy):  # type: ignore[misc]
            @classmethod
            def rebalance_experts(cls, *_: Any, **__: Any) -> torch.Tensor:
                return wanted

        counters.start_placement()
        policy, state.policy = state.policy, ThisPlacement
        try:
            with torch.inference_mode():  # as within a forward pass, where vLLM itself rearranges
                state.rearrange()
                if plan.parts is not None:
                    self._headrace_divide_tokens(plan.slots, plan.parts)
            counters.parts = plan.parts or equal_parts(plan.slots)
            counters.placements += 1
        except BaseException:
            # Some weights may have moved and others not: nothing this process would compute is right.
            _log.critical("a placement of experts failed half-way; this rank ends", exc_info=True)
            os._exit(1)
        finally:
            state.policy = policy
        return self.headrace_experts()

    def _headrace_divide_tokens(self, slots: Any, parts: Any) -> None:
        """An entry for each part: the engine picks an expert's entries with equal frequency."""
        model_state, _ = self._headrace_state()
        table, counts = model_state.logical_to_physical_map, model_state.logical_replica_count
        new_table, new_counts = torch.full(table.shape, -1, dtype=table.dtype), torch.zeros(counts.shape).to(counts)
        for layer, (row, row_parts) in enumerate(zip(slots, parts, strict=True)):
            for expert, entries in enumerate(entries_of(row, row_parts, counts.shape[1])):
                new_table[layer, expert, : len(entries)] = torch.tensor(entries, dtype=table.dtype)
                new_counts[layer, expert] = len(entries)
        table.copy_(new_table)
        counts.copy_(new_counts)

    def _headrace_state(self) -> tuple[Any, SlotCounters]:
        state = self.model_runner.eplb_state
        if state is None or not state.model_states:
            raise RuntimeError("this engine was started without EPLB")
        counters = counters_of(state)
        (model_state,) = state.model_states.values()
        return model_state, counters
