"""Expert parallelism on vLLM's CPU backend: what upstream lacks, one function for each gap.

vLLM 0.32 has expert parallelism and its load balancer (EPLB) for GPUs only. On CPU the engine refuses EPLB; without
EPLB it starts, looks healthy and dies at its first request. Each `_fix_*` function below fills one gap and checks
first that it finds what it knows: a vLLM that has moved on fails at start with UnsupportedVllmError, never later.
Loaded by workers/engine_plugin.py in each process of an expert-parallel engine on the CPU platform.
"""

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed

# Knuth's multiplicative hash, as vLLM's GPU kernel uses it to choose among an expert's slots.
_HASH_MULTIPLIER = 2654435769
_HASH_MASK = 0xFFFFFFFF
_PATCHED = "_headrace_patched"


class UnsupportedVllmError(RuntimeError):
    """This vLLM is not the one that the fixes were written for."""


def install() -> None:
    """Apply all fixes. Idempotent; raises UnsupportedVllmError."""
    _fix_platform_check()
    _fix_local_experts()
    _fix_uneven_collectives()
    _fix_slot_choice()
    _fix_rearrange_events()
    _fix_model_runner()


def expect_parameters(function: Callable[..., Any], *names: str) -> None:
    """Raise UnsupportedVllmError unless `function` takes exactly these parameters."""
    found = tuple(inspect.signature(function).parameters)
    if found != names:
        raise UnsupportedVllmError(
            f"{function.__module__}.{function.__qualname__} takes {found}, expected {names}: "
            "expert parallelism on CPU was written for vLLM 0.32"
        )


def _is_patched(owner: Any, name: str) -> bool:
    return hasattr(getattr(owner, name), _PATCHED)


def _replace(owner: Any, name: str, new: Callable[..., Any]) -> None:
    setattr(new, _PATCHED, True)
    setattr(owner, name, new)


def _fix_platform_check() -> None:
    """vllm/config/parallel.py: ParallelConfig._validate_parallel_config lets EPLB through on GPUs only.

    The module sees a platform that says it is CUDA-like; that check is the only use of the answer there.
    Upstream has fixed it when `ParallelConfig(enable_eplb=True, ...)` on CPU no longer raises.
    """
    import vllm.config.parallel as module

    platform = module.current_platform
    if isinstance(platform, _EplbCapablePlatform):
        return
    if inspect.getsource(module).count("is_cuda_alike()") != 1:
        raise UnsupportedVllmError("vllm/config/parallel.py asks is_cuda_alike() elsewhere than in its EPLB check")
    module.current_platform = _EplbCapablePlatform(platform)


class _EplbCapablePlatform:
    """A platform in all but one answer."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cuda_alike(self) -> bool:
        """As vLLM's EPLB check wants to hear it."""
        return True


def _fix_local_experts() -> None:
    """experts/cpu_moe.py: CPUUnquantizedExperts.apply ignores expert_map, and its kernel then reads past its weights.

    Only the pairs (token, expert) whose expert lives on this rank are computed, so that a rank's work follows its
    load. Upstream has fixed it when `apply` uses `expert_map`.
    """
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts as Experts

    if _is_patched(Experts, "apply"):
        return
    apply = Experts.apply
    expect_parameters(
        apply,
        *("self", "output", "hidden_states", "w1", "w2", "topk_weights", "topk_ids", "activation"),
        *("global_num_experts", "expert_map", "a1q_scale", "a2_scale", "workspace13", "workspace2"),
        *("expert_tokens_meta", "apply_router_weight_on_input"),
    )
    if inspect.getsource(apply).count("expert_map") != 1:
        raise UnsupportedVllmError("CPUUnquantizedExperts.apply uses expert_map now: remove _fix_local_experts")
    bound = inspect.signature(apply)

    @functools.wraps(apply)
    def apply_local(*args: Any, **kwargs: Any) -> None:
        call = bound.bind(*args, **kwargs)
        expert_map = call.arguments["expert_map"]
        if expert_map is None:
            apply(*args, **kwargs)
            return
        output, hidden = call.arguments["output"], call.arguments["hidden_states"]
        tokens, ids, weights = local_pairs(call.arguments["topk_ids"], call.arguments["topk_weights"], expert_map)
        if tokens.numel() == 0:
            output.zero_()
            return
        partial = hidden.new_empty((tokens.shape[0], output.shape[1]))
        call.arguments |= {
            "output": partial,
            "hidden_states": hidden[tokens],
            "topk_ids": ids,
            "topk_weights": weights,
        }
        apply(*call.args, **call.kwargs)
        total = torch.zeros(output.shape, dtype=torch.float32).index_add_(0, tokens, partial.float())
        output.copy_(total)

    _replace(Experts, "apply", apply_local)


def local_pairs(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token, local expert and weight of each choice whose expert is on this rank (others have -1 in `expert_map`)."""
    local = expert_map[topk_ids.long()]
    tokens, choices = torch.nonzero(local >= 0, as_tuple=True)
    ids = local[tokens, choices].to(topk_ids.dtype).unsqueeze(1)
    return tokens, ids.contiguous(), topk_weights[tokens, choices].unsqueeze(1).contiguous()


def _fix_uneven_collectives() -> None:
    """cpu_communicator.py: CpuCommunicator has no all_gatherv and reduce_scatterv, which data-parallel experts need.

    Upstream has fixed it when CpuCommunicator defines them itself.
    """
    from vllm.distributed.device_communicators.base_device_communicator import DeviceCommunicatorBase
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    if "all_gatherv" in vars(CpuCommunicator) and _is_patched(CpuCommunicator, "all_gatherv"):
        return
    if {"all_gatherv", "reduce_scatterv"} & vars(CpuCommunicator).keys():
        raise UnsupportedVllmError("CpuCommunicator has its own all_gatherv now: remove _fix_uneven_collectives")
    expect_parameters(DeviceCommunicatorBase.all_gatherv, "self", "input_", "dim", "sizes")
    expect_parameters(DeviceCommunicatorBase.reduce_scatterv, "self", "input_", "dim", "sizes")

    def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
        """Concatenate tensors of different lengths: gloo needs equal ones, so they are padded and cut."""
        if dim != 0:
            raise NotImplementedError("all_gatherv on CPU: dimension 0 only")
        if isinstance(input_, list | tuple):
            return [all_gatherv(self, tensor, dim, sizes) for tensor in input_]
        sizes = sizes or [input_.shape[0]] * self.world_size
        padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
        padded[: input_.shape[0]] = input_
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=self.device_group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatterv(self: Any, input_: torch.Tensor, dim: int = -1, sizes: list[int] | None = None) -> torch.Tensor:
        """Sum over ranks, of which each keeps its own rows (gloo has no reduce_scatter)."""
        if dim != 0:
            raise NotImplementedError("reduce_scatterv on CPU: dimension 0 only")
        total = input_.contiguous().clone()
        torch.distributed.all_reduce(total, group=self.device_group)
        sizes = sizes or [input_.shape[0] // self.world_size] * self.world_size
        begin = sum(sizes[: self.rank_in_group])
        return total[begin : begin + sizes[self.rank_in_group]].contiguous()

    _replace(CpuCommunicator, "all_gatherv", all_gatherv)
    _replace(CpuCommunicator, "reduce_scatterv", reduce_scatterv)


def _fix_slot_choice() -> None:
    """router/base_router.py: on CPU eplb_map_to_physical_and_record returns its ids unchanged and counts nothing.

    Upstream has fixed it when the CPU branch of that file maps ids.
    """
    import vllm.model_executor.layers.fused_moe.router.base_router as module

    if _is_patched(module, "eplb_map_to_physical_and_record"):
        return
    function = module.eplb_map_to_physical_and_record
    expect_parameters(
        function,
        *("topk_ids", "expert_load_view", "logical_to_physical_map", "logical_replica_count"),
        *("record_enabled", "num_unpadded_tokens"),
    )
    if inspect.getsource(function).count("expert_load_view") != 1:
        raise UnsupportedVllmError("eplb_map_to_physical_and_record records on CPU now: remove _fix_slot_choice")
    _replace(module, "eplb_map_to_physical_and_record", choose_slots)


def choose_slots(
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Slot of each chosen expert, by the same hash of the token's place in the batch as the GPU kernel; counts them."""
    ids = topk_ids.long()
    hashes = (torch.arange(ids.shape[0]) * _HASH_MULTIPLIER) & _HASH_MASK
    replica = hashes.unsqueeze(1) % logical_replica_count[ids].clamp_min(1)
    slots = logical_to_physical_map[ids, replica]
    if bool(record_enabled):
        counted = slots if num_unpadded_tokens is None else slots[: int(num_unpadded_tokens)]
        counts = torch.bincount(counted.flatten(), minlength=expert_load_view.shape[0])
        expert_load_view.add_(counts.to(expert_load_view.dtype))
    return slots.to(topk_ids.dtype)


class _WallClockEvent:
    """In place of a GPU event: on CPU everything has happened when the call returns."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._at_s = 0.0

    def record(self, *_: Any) -> None:
        self._at_s = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is outstanding."""

    def elapsed_time(self, other: "_WallClockEvent") -> float:
        """Milliseconds from this event to the other."""
        return (other._at_s - self._at_s) * 1000


class _NoStream:
    def synchronize(self) -> None:
        """Nothing is outstanding."""


@contextlib.contextmanager
def _no_accelerator() -> Iterator[None]:
    event, stream = torch.Event, torch.accelerator.current_stream
    torch.Event, torch.accelerator.current_stream = _WallClockEvent, lambda *_: _NoStream()  # type: ignore
    try:
        yield
    finally:
        torch.Event, torch.accelerator.current_stream = event, stream  # type: ignore[misc]


def _fix_rearrange_events() -> None:
    """eplb_state.py: EplbState.rearrange and the gloo communicator below it record device events and wait for a stream.

    PyTorch's CPU build has neither ("cpu backend doesn't support events"). They are replaced while a rearrangement
    runs, as upstream's CPUModelRunner does while it is built. Upstream has fixed it when rearrange works without.
    """
    from vllm.distributed.eplb.eplb_state import EplbState

    if _is_patched(EplbState, "rearrange"):
        return
    rearrange = EplbState.rearrange
    expect_parameters(rearrange, "self", "is_profile", "rank_mapping", "use_last_expert_load")

    @functools.wraps(rearrange)
    def rearrange_on_cpu(*args: Any, **kwargs: Any) -> Any:
        with _no_accelerator():
            return rearrange(*args, **kwargs)

    _replace(EplbState, "rearrange", rearrange_on_cpu)


def _fix_model_runner() -> None:
    """v1/worker/cpu_model_runner.py: CPUModelRunner.load_model, unlike its GPU parent, never builds the EPLB state.

    It also checks what the other fixes rely on: kernels of the patched class, and no ZenDNN in their place.
    Upstream has fixed it when CPUModelRunner.load_model mentions EPLB.
    """
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if _is_patched(CPUModelRunner, "load_model"):
        return
    load_model = CPUModelRunner.load_model
    expect_parameters(load_model, "self", "load_dummy_weights")
    if "eplb" in inspect.getsource(inspect.unwrap(load_model)):
        raise UnsupportedVllmError("CPUModelRunner.load_model builds the EPLB state now: remove _fix_model_runner")
    expect_parameters(EplbState.add_model, "self", "model", "model_config", "model_name")

    @functools.wraps(load_model)
    def load_model_with_eplb(self: Any, load_dummy_weights: bool = False) -> None:
        load_model(self, load_dummy_weights)
        if not self.parallel_config.enable_eplb:
            return
        model = get_mixture_of_experts_model(self.model)
        if model is None:
            raise UnsupportedVllmError(f"{self.model_config.model} has no experts that EPLB could place")
        for layer in model.moe_layers:
            _check_kernel(layer)
        self._moe_model = model
        self.eplb_state = EplbState(self.parallel_config, self.device)
        self.eplb_state.add_model(model, self.model_config)

    _replace(CPUModelRunner, "load_model", load_model_with_eplb)


def _check_kernel(layer: Any) -> None:
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    kernel = getattr(getattr(layer, "_quant_method", None), "moe_kernel", None)
    experts = getattr(kernel, "fused_experts", None)
    if not isinstance(experts, CPUUnquantizedExperts) or experts._use_zentorch:
        raise UnsupportedVllmError(
            f"expert parallelism on CPU knows vLLM's unquantised experts only, not {type(experts).__name__}: "
            "use a model in bfloat16 or float32, without ZenDNN"
        )
