"""A vLLM general plugin, loaded in each engine process. Does only what the supervisor asks for by environment.

Expert-parallel engines get their counters and, on CPU, what vLLM lacks there (workers/expert_rank.py, cpu_experts.py).

NIXL is kept from burning a core while nothing moves. Its Python agent hard-codes a progress thread that polls UCX with
a zero timeout. Once two engines are connected each of them spins one core for ever: on the two cores of a laptop a
decode step then took 0.7 s instead of 0.09 s. With a delay the same thread sleeps in poll(2) on UCX's event
descriptors, which wake it as soon as bytes arrive; the delay only bounds how long it sleeps without any.
"""

import importlib
import os

from workers.expert_placement import EXPERTS_ENV

DELAY_ENV = "HEADRACE_NIXL_PROGRESS_DELAY_US"


def register() -> None:
    """Entry point `vllm.general_plugins`. What it raises ends the engine at its start; idempotent."""
    if os.environ.get(EXPERTS_ENV) == "1":
        _prepare_experts()
    _delay_nixl()


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
