"""What `engine.extra_args` and `engine.env` may not set, and why. Pure.

vLLM takes an argument's last occurrence, and extra arguments come last: without this check one of them would
silently undo what Headrace relies on.
"""

import re
from collections.abc import Iterable, Mapping

_CHOSEN = "Headrace chooses it for each engine"
_AUTH = "routers send engines no credentials"
_PLAIN_HTTP = "routers reach engines over HTTP"
_TLS = "it is part of engine.tls"
_PLACED = "it is part of engine.experts"
_RANKS = "a pool has workers for that (pools); ranks that share experts are engine.experts.data_parallel"

# Argument -> why it is reserved.
RESERVED_ARGS: Mapping[str, str] = {
    "--host": "it is engine.host",
    "--port": _CHOSEN,
    "--uds": _PLAIN_HTTP,
    "--grpc": _PLAIN_HTTP,
    "--headless": _PLAIN_HTTP,
    "--ssl-keyfile": _TLS,
    "--ssl-certfile": _TLS,
    "--ssl-ca-certs": _TLS,
    "--ssl-cert-reqs": _TLS,
    "--enable-ssl-refresh": _TLS,
    "--api-key": _AUTH,
    "--config": "a file could set any reserved argument",
    "--model": "it is model.path",
    "--served-model-name": "it is model.name",
    "--dtype": "it is engine.dtype",
    "--kv-cache-dtype": "it is engine.kv_cache_dtype",
    "--block-size": "it is engine.block_size_tokens",
    "--max-model-len": "it is engine.max_model_len_tokens",
    "--otlp-traces-endpoint": "it is telemetry.otlp_endpoint",
    "--shutdown-timeout": "the supervisor drains the engine before it stops it (engine.shutdown_timeout_s)",
    "--kv-transfer-config": _CHOSEN,
    "--kv-events-config": _CHOSEN,
    "--enable-expert-parallel": _PLACED,
    "--enable-eplb": _PLACED,
    "--eplb-config": _PLACED,
    "--data-parallel-size": _RANKS,
    "-dp": _RANKS,
    "--enable-prompt-tokens-details": "Headrace always sets it, to check its cache forecasts",
    "--enable-scale-out": "its routes have no authentication",
    "--disable-log-stats": "routers read the engine's load from /metrics",
    "--disable-fastapi-docs": "routers read the engine's routes from /openapi.json",
}
# The same, where engine.experts is set. A dense engine may be tensor-parallel as its owner likes.
RESERVED_EXPERT_ARGS: Mapping[str, str] = {
    "--tensor-parallel-size": "it is engine.experts.tensor_parallel",
    "-tp": "it is engine.experts.tensor_parallel",
    "-ep": _PLACED,
    "--pipeline-parallel-size": "experts are placed within one pipeline stage",
    "-pp": "experts are placed within one pipeline stage",
    "--enable-elastic-ep": "the number of ranks is that of engine.experts",
    "--worker-extension-cls": "Headrace's own counts tokens and places experts",
    "--speculative-config": "a draft model's experts are not placed",
}
# Environment variable -> why it is reserved.
RESERVED_ENV: Mapping[str, str] = {
    "VLLM_SERVER_DEV_MODE": "the engine's dev routes have no authentication",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "its routes have no authentication",
    "VLLM_PLUGINS": "it could switch off Headrace's own plugin",
    "VLLM_API_KEY": _AUTH,
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "it is engine.host",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": _CHOSEN,
}


def check_extra_args(args: Iterable[str]) -> None:
    """Raise ValueError that names the first reserved argument, in whatever spelling vLLM would take it."""
    _check(args, RESERVED_ARGS)


def check_expert_args(args: Iterable[str]) -> None:
    """The same for an engine whose experts are placed."""
    _check(args, RESERVED_EXPERT_ARGS)


def check_env(env: Iterable[str]) -> None:
    """Raise ValueError that names the first reserved variable."""
    for name in env:
        if name in RESERVED_ENV:
            raise ValueError(f"the variable {name} is reserved: {RESERVED_ENV[name]}")


def _check(args: Iterable[str], reserved_args: Mapping[str, str]) -> None:
    for arg in args:
        for reserved, reason in reserved_args.items():
            is_it = _means(arg, reserved) if arg.startswith("--") else _key(arg) == reserved
            if is_it:
                raise ValueError(f"the argument {_key(arg)} is reserved ({reserved}): {reason}")


def _key(arg: str) -> str:
    return re.split(r"[=\s]", arg, maxsplit=1)[0]


def _means(arg: str, reserved: str) -> bool:
    """vLLM's parser takes --port=1, --kv_transfer_config, --no-x, --kv-transfer-config.kv_role and abbreviations."""
    name = _key(arg).partition(".")[0].replace("_", "-")
    positive = f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else name
    return reserved.startswith(name) or positive == reserved
