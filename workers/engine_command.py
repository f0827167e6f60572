"""From settings to the command line and environment of one vLLM server. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from workers.engine_plugin import DELAY_ENV, LEASES_ENV, PAUSE_ENV
from workers.engine_tls import engine_arguments
from workers.expert_placement import EXPERTS_ENV
from workers.settings import EngineSettings, ExpertParallelSettings
from workers.types import Role

# What a child may see of its parent's environment: enough to find programs, libraries, devices and a home.
INHERITED_ENV = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SSL_CERT_FILE",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_HOME",
)  # fmt: skip
INHERITED_ENV_PREFIXES = ("UCX_", "NCCL_", "NIXL_", "HF_")

KV_TOPIC = "kv"  # of the engine's KV events

# Not 0: then the API server hangs with its connections. The supervisor has drained the engine before it stops it.
_ENGINE_SHUTDOWN_S = "1"

# Forward passes until vLLM rebalances on its own account: never.
_NEVER_STEPS = 2**31 - 1

# Why: workers/engine_plugin.py. A step of 50 to 100 ms (two cores) ends two waits, each up to a pause too late.
_NIXL_PROGRESS_DELAY_US = "10000"
_QUEUE_PAUSE_US = "500"

_KV_ROLE = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer", Role.MIXED: "kv_both"}


@dataclass(frozen=True, slots=True)
class EnginePorts:
    """Ports of one engine, all on `EngineSettings.host`. Data-parallel rank r takes each but `http` plus r."""

    http: int
    nixl_side_channel: int
    kv_events: int
    kv_replay: int


@dataclass(frozen=True, slots=True)
class EngineTraces:
    """Where an engine sends its spans."""

    url: str  # as its exporter wants it
    protocol: Literal["grpc", "http"]
    sample_ratio: float  # of requests that come without a context; others are kept as it says


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What to start."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def build_engine_command(
    settings: EngineSettings,
    *,
    role: Role,
    model_path: str,
    model_name: str,
    ports: EnginePorts,
    parent_env: Mapping[str, str],
    traces: EngineTraces | None = None,
) -> EngineCommand:
    """The command of one engine. `argv` has no program: it follows `python -m`."""
    argv = [
        "vllm.entrypoints.openai.api_server",
        "--model", model_path,
        "--served-model-name", model_name,
        "--host", settings.host,
        "--port", str(ports.http),
        "--dtype", settings.dtype,
        "--kv-cache-dtype", settings.kv_cache_dtype,
        "--block-size", str(settings.block_size_tokens),
        "--shutdown-timeout", _ENGINE_SHUTDOWN_S,
        "--kv-transfer-config", json.dumps(_kv_transfer(settings, role)),
        "--kv-events-config", json.dumps(_kv_events(settings, ports)),
        "--enable-prompt-tokens-details",
    ]  # fmt: skip
    if settings.max_model_len_tokens is not None:
        argv += ["--max-model-len", str(settings.max_model_len_tokens)]
    if settings.device == "cpu":
        argv += ["--enforce-eager"]
    if settings.experts is not None:
        argv += _experts(settings.experts, settings.device)
    if settings.tls is not None:
        argv += engine_arguments(settings.tls)
    own_env: dict[str, str] = {}
    if traces is not None:
        argv += ["--otlp-traces-endpoint", traces.url]
        own_env = _traces_env(traces, role)
    return EngineCommand((*argv, *settings.extra_args), own_env | _env(settings, ports, parent_env))


def _traces_env(traces: EngineTraces, role: Role) -> dict[str, str]:
    """What vLLM has no arguments for, and OpenTelemetry's SDK reads itself. An operator's own values come after."""
    return {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc" if traces.protocol == "grpc" else "http/protobuf",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": f"{traces.sample_ratio:g}",
        "OTEL_SERVICE_NAME": "vllm",
        "OTEL_RESOURCE_ATTRIBUTES": f"headrace.role={role.value}",
    }


def _experts(experts: ExpertParallelSettings, device: str) -> list[str]:
    eplb: dict[str, object] = {
        "num_redundant_experts": experts.redundant_experts,
        "step_interval": _NEVER_STEPS,
        # workers/expert_rank.py counts; this window, [window_size, layers, slots], is only allocated.
        "window_size": 1,
        # A placement is in force when it is answered, and on all ranks at once.
        "use_async": False,
    }
    if device == "cpu":
        eplb["communicator"] = "torch_gloo"  # vLLM would take NIXL, for GPUs
    return [
        "--tensor-parallel-size", str(experts.tensor_parallel),
        "--data-parallel-size", str(experts.data_parallel),
        "--enable-expert-parallel",
        "--enable-eplb",
        "--eplb-config", json.dumps(eplb),
        "--worker-extension-cls", "workers.expert_rank.ExpertRank",
        "--middleware", "workers.expert_endpoint.ExpertEndpoint",
    ]  # fmt: skip


def _kv_transfer(settings: EngineSettings, role: Role) -> dict[str, object]:
    return {
        "kv_connector": "NixlConnector",
        "kv_role": _KV_ROLE[role],
        "kv_buffer_device": settings.device,
        # A decode that cannot read the blocks computes them itself: late, but right (architecture section 5).
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": settings.kv_lease_s},
    }


def _kv_events(settings: EngineSettings, ports: EnginePorts) -> dict[str, object]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://{settings.host}:{ports.kv_events}",
        "replay_endpoint": f"tcp://{settings.host}:{ports.kv_replay}",
        "topic": KV_TOPIC,
    }


def _env(settings: EngineSettings, ports: EnginePorts, parent_env: Mapping[str, str]) -> dict[str, str]:
    # Against a leak in UCX. vLLM sets it itself, but not once NIXL is imported, which our plugin does before it.
    env = {"UCX_RCACHE_MAX_UNRELEASED": "1024"}
    env |= {
        name: value
        for name, value in parent_env.items()
        if name in INHERITED_ENV or name.startswith(INHERITED_ENV_PREFIXES)
    }
    env |= {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # a served model is a folder; nothing is fetched at start
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": settings.host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(ports.nixl_side_channel),
        DELAY_ENV: _NIXL_PROGRESS_DELAY_US,
        LEASES_ENV: "1",
    }
    if settings.device == "cpu":
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_bytes >> 30),
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            PAUSE_ENV: _QUEUE_PAUSE_US,
        }
    if settings.experts is not None:
        env[EXPERTS_ENV] = "1"
    return env | settings.env
