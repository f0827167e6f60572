"""A vLLM general plugin, loaded in each engine process. Does only what the supervisor asks for by environment.

Expert-parallel engines get their counters and, on CPU, what vLLM lacks there (workers/expert_rank.py, cpu_experts.py).

NIXL is kept from burning a core while nothing moves. Its Python agent hard-codes a progress thread that polls UCX with
a zero timeout. Once two engines are connected each of them spins one core for ever: on the two cores of a laptop a
decode step then took 0.7 s instead of 0.09 s. With a delay the same thread sleeps in poll(2) on UCX's event
descriptors, which wake it as soon as bytes arrive; the delay only bounds how long it sleeps without any.

vLLM's engine core and its worker talk through queues in shared memory, and who waits at one calls sched_yield for a
second before it sleeps. Two engines on two cores have four such processes. Linux 6.18 then left the decode engine's
worker, runnable, without a time slice for ten seconds and more, while the prefill engine, which waited for it, spun on
its core: it looked like a transfer that hung. With a pause who waits sleeps that long and looks again. An engine on one
GPU has no such queue, and one on several has cores that may spin.

A decode engine is kept from reading blocks whose lease may be over. vLLM's reads them, notes that they may have been
given to another prompt, and answers with what they hold. It has the check that is missing, for reads in the other
direction: with the lease's end in the hand-off's parameters, and the check on, it computes such a prompt itself.
"""

import functools
import importlib
import os
import time
from typing import Any

from workers.expert_placement import EXPERTS_ENV

DELAY_ENV = "HEADRACE_NIXL_PROGRESS_DELAY_US"
PAUSE_ENV = "HEADRACE_QUEUE_PAUSE_US"
LEASES_ENV = "HEADRACE_KV_LEASES"


def register() -> None:
    """Entry point `vllm.general_plugins`. What it raises ends the engine at its start; idempotent."""
    if os.environ.get(EXPERTS_ENV) == "1":
        _prepare_experts()
    _delay_nixl()
    _pause_queues()
    if os.environ.get(LEASES_ENV) == "1":
        _keep_leases()


def _prepare_experts() -> None:
    # Imported here: other engines need none of it, and vLLM only logs what a plugin's import raises.
    from vllm.platforms import current_platform

    from workers import cpu_experts, expert_rank

    if current_platform.is_cpu():
        cpu_experts.install()
    expert_rank.count_steps()


def _delay_nixl() -> None:
    delay_us = int(os.environ.get(DELAY_ENV, "0"))
    if delay_us <= 0:
        return
    try:
        api = importlib.import_module("nixl._api")
    except ImportError:
        return
    # `nixl` re-exports the agent of the wheel that matches the driver (nixl_cu12, nixl_cu13, ...).
    agent_module = importlib.import_module(api.nixl_agent.__module__)
    agent_module.nixlBind.nixlAgentConfig = _delayed(agent_module.nixlBind.nixlAgentConfig, delay_us)


def _delayed(config_type: type, delay_us: int) -> type:
    if hasattr(config_type, "headrace_delay_us"):
        return config_type
    native = config_type.pthrDelay  # type: ignore[attr-defined]

    def set_delay(self: object, value: int) -> None:
        native.__set__(self, max(value, delay_us))

    return type(
        "DelayedAgentConfig",
        (config_type,),
        {"headrace_delay_us": delay_us, "pthrDelay": property(native.__get__, set_delay)},
    )


def _pause_queues() -> None:
    pause_us = int(os.environ.get(PAUSE_ENV, "0"))
    if pause_us <= 0:
        return
    queues = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")
    queues.sched_yield = functools.partial(time.sleep, pause_us / 1e6)  # type: ignore[attr-defined]


def _keep_leases() -> None:
    # Imported here: only engines have vLLM.
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_scheduler import NixlPullConnectorScheduler
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker

    if hasattr(NixlPullConnectorScheduler, "headrace_leases"):
        return
    finish, start = NixlPullConnectorScheduler.request_finished, NixlPullConnectorWorker.__init__

    def request_finished(self: Any, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        is_delayed, params = finish(self, request, block_ids)
        if params is not None:
            # On the prefill engine's clock; vLLM measured the difference in its handshake, and keeps 5 s clear of it.
            params["remote_blocks_expiry_time"] = self._reqs_need_send.get(request.request_id)
        return is_delayed, params

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        start(self, *args, **kwargs)
        self._bidirectional_kv_xfer_enabled = True  # the worker asks it for this check alone

    NixlPullConnectorScheduler.headrace_leases = True
    NixlPullConnectorScheduler.request_finished = request_finished
    NixlPullConnectorWorker.__init__ = __init__
