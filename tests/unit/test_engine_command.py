"""The command line and environment of a vLLM server, and what an operator may not change about them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from workers.engine_args import (
    RESERVED_ARGS,
    RESERVED_ENV,
    RESERVED_EXPERT_ARGS,
    check_env,
    check_expert_args,
    check_extra_args,
)
from workers.engine_command import INHERITED_ENV, EngineCommand, EnginePorts, EngineTraces, build_engine_command
from workers.engine_plugin import DELAY_ENV, LEASES_ENV, PAUSE_ENV
from workers.expert_placement import EXPERTS_ENV
from workers.settings import EngineSettings, ExpertParallelSettings
from workers.types import Role

PORTS = EnginePorts(http=1001, nixl_side_channel=1002, kv_events=1003, kv_replay=1004)
TRACES = EngineTraces("http://c:4317", "grpc", 0.25)


def build(
    settings: EngineSettings | None = None,
    role: Role = Role.MIXED,
    parent_env: dict[str, str] | None = None,
    traces: EngineTraces | None = None,
) -> EngineCommand:
    return build_engine_command(
        settings or EngineSettings(),
        role=role,
        model_path="/models/x",
        model_name="x",
        ports=PORTS,
        parent_env=parent_env or {},
        traces=traces,
    )


def value_of(argv: Sequence[str], name: str) -> str:
    assert argv.count(name) == 1
    return argv[argv.index(name) + 1]


def test_the_engine_is_told_where_to_listen_and_what_to_serve() -> None:
    argv = build(EngineSettings(host="127.0.0.9")).argv
    assert argv[0] == "vllm.entrypoints.openai.api_server"
    assert value_of(argv, "--host") == "127.0.0.9"
    assert value_of(argv, "--port") == "1001"
    assert value_of(argv, "--model") == "/models/x"
    assert value_of(argv, "--served-model-name") == "x"


@pytest.mark.parametrize(
    ("role", "kv_role"),
    [(Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer"), (Role.MIXED, "kv_both")],
)
def test_the_role_decides_the_direction_of_the_hand_off(role: Role, kv_role: str) -> None:
    config = json.loads(value_of(build(EngineSettings(kv_lease_s=77), role).argv, "--kv-transfer-config"))
    assert (config["kv_connector"], config["kv_role"]) == ("NixlConnector", kv_role)
    assert config["kv_load_failure_policy"] == "recompute"
    assert config["kv_connector_extra_config"]["kv_lease_duration"] == 77


def test_kv_events_are_published_on_the_given_ports() -> None:
    config = json.loads(value_of(build().argv, "--kv-events-config"))
    assert config["endpoint"] == "tcp://127.0.0.1:1003"
    assert config["replay_endpoint"] == "tcp://127.0.0.1:1004"
    assert config["enable_kv_cache_events"] is True


def test_settings_reach_the_command_line() -> None:
    settings = EngineSettings(dtype="float32", block_size_tokens=64, max_model_len_tokens=512, kv_cache_dtype="fp8")
    argv = build(settings).argv
    assert value_of(argv, "--dtype") == "float32"
    assert value_of(argv, "--block-size") == "64"
    assert value_of(argv, "--max-model-len") == "512"
    assert value_of(argv, "--kv-cache-dtype") == "fp8"
    assert "--max-model-len" not in build().argv
    assert value_of(build(traces=TRACES).argv, "--otlp-traces-endpoint") == "http://c:4317"
    assert "--otlp-traces-endpoint" not in build().argv


def test_engines_trace_by_the_protocol_of_the_routers_and_draw_only_what_no_router_drew() -> None:
    env = build(traces=TRACES).env
    assert env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "grpc"
    assert (env["OTEL_TRACES_SAMPLER"], env["OTEL_TRACES_SAMPLER_ARG"]) == ("parentbased_traceidratio", "0.25")
    env = build(traces=EngineTraces("http://c:4318/v1/traces", "http", 1.0)).env
    assert env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    chosen = EngineSettings(env={"OTEL_SERVICE_NAME": "mine"})
    assert build(chosen, traces=TRACES).env["OTEL_SERVICE_NAME"] == "mine"
    assert not any(name.startswith("OTEL") for name in build().env)


def test_extra_arguments_come_last_as_they_are() -> None:
    extra = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    assert build(EngineSettings(extra_args=extra)).argv[-3:] == extra


def test_a_cpu_engine_gets_its_memory_and_threads_and_a_cuda_engine_does_not() -> None:
    env = build(EngineSettings(kv_cache_bytes=3 << 30, threads=4)).env
    assert (env["VLLM_CPU_KVCACHE_SPACE"], env["OMP_NUM_THREADS"]) == ("3", "4")
    assert "--enforce-eager" in build().argv
    cuda = build(EngineSettings(device="cuda"))
    assert "VLLM_CPU_KVCACHE_SPACE" not in cuda.env
    assert "--enforce-eager" not in cuda.argv


def test_the_child_sees_no_more_of_the_parents_environment_than_it_needs() -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "s", "REDIS_PASSWORD": "s", "PYTHONPATH": "/x", "VLLM_LOGGING_LEVEL": "DEBUG"}
    inherited = {"PATH": "/bin", "HOME": "/root", "UCX_TLS": "tcp", "HF_HOME": "/hf"}
    env = build(parent_env={**secrets, **inherited, **dict.fromkeys(RESERVED_ENV, "1")}).env
    assert inherited.items() <= env.items()
    assert not secrets.keys() & env.keys()
    assert not {"VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_PLUGINS"} & env.keys()
    assert (env["VLLM_NIXL_SIDE_CHANNEL_HOST"], env["VLLM_NIXL_SIDE_CHANNEL_PORT"]) == ("127.0.0.1", "1002")


def test_configured_environment_wins_over_what_is_inherited() -> None:
    settings = EngineSettings(env={"UCX_TLS": "all", "VLLM_LOGGING_LEVEL": "DEBUG"})
    env = build(settings, parent_env={"UCX_TLS": "tcp"}).env
    assert (env["UCX_TLS"], env["VLLM_LOGGING_LEVEL"]) == ("all", "DEBUG")


def test_nothing_in_an_engine_spins_on_the_cores_that_its_model_computes_on() -> None:
    env = build().env
    assert (env[DELAY_ENV], env[PAUSE_ENV]) == ("10000", "500")
    assert PAUSE_ENV not in build(EngineSettings(device="cuda")).env
    assert build(EngineSettings(env={PAUSE_ENV: "0"})).env[PAUSE_ENV] == "0"


def test_engines_keep_to_their_leases() -> None:
    assert build().env[LEASES_ENV] == build(EngineSettings(device="cuda")).env[LEASES_ENV] == "1"


def test_ucx_is_kept_from_leaking_unless_the_operator_says_otherwise() -> None:
    name = "UCX_RCACHE_MAX_UNRELEASED"
    assert build().env[name] == "1024"
    assert build(parent_env={name: "inf"}).env[name] == "inf"
    assert build(EngineSettings(env={name: "7"}), parent_env={name: "inf"}).env[name] == "7"


def test_nothing_reserved_is_inherited() -> None:
    assert not RESERVED_ENV.keys() & set(INHERITED_ENV)


def test_everything_the_command_itself_sets_by_value_is_reserved() -> None:
    """Except what is harmless to override. A new argument of the command has to be thought about here."""
    argv = build(EngineSettings(max_model_len_tokens=512), traces=TRACES).argv
    ours = {arg for arg in argv if arg.startswith("--")}
    assert ours - RESERVED_ARGS.keys() == {"--enforce-eager"}


EXPERTS = ExpertParallelSettings(tensor_parallel=2, redundant_experts=2)


def test_experts_are_divided_over_ranks_and_stay_where_they_are_put() -> None:
    command = build(EngineSettings(experts=EXPERTS))
    assert value_of(command.argv, "--tensor-parallel-size") == "2"
    assert value_of(command.argv, "--data-parallel-size") == "1"
    assert "--enable-expert-parallel" in command.argv
    assert "--enable-eplb" in command.argv
    eplb = json.loads(value_of(command.argv, "--eplb-config"))
    assert (eplb["num_redundant_experts"], eplb["use_async"], eplb["communicator"]) == (2, False, "torch_gloo")
    assert eplb["step_interval"] > 10**9, "vLLM never rebalances on its own"
    assert eplb["window_size"] == 1, "it is allocated, and not used"
    assert command.env[EXPERTS_ENV] == "1"
    cuda = json.loads(value_of(build(EngineSettings(device="cuda", experts=EXPERTS)).argv, "--eplb-config"))
    assert "communicator" not in cuda
    assert EXPERTS_ENV not in build().env
    assert "--enable-eplb" not in build().argv


def test_everything_that_experts_set_by_value_is_reserved_where_they_are_set() -> None:
    """Except --middleware, which adds up."""
    ours = {arg for arg in build(EngineSettings(experts=EXPERTS)).argv if arg.startswith("--")}
    assert ours - RESERVED_ARGS.keys() - RESERVED_EXPERT_ARGS.keys() == {"--enforce-eager", "--middleware"}


def test_the_classes_that_vllm_loads_by_name_exist() -> None:
    import importlib.util

    argv = build(EngineSettings(experts=EXPERTS)).argv
    for flag in ("--worker-extension-cls", "--middleware"):
        module, _, name = value_of(argv, flag).rpartition(".")
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        assert f"class {name}" in Path(spec.origin).read_text()


@pytest.mark.parametrize("name", RESERVED_EXPERT_ARGS)
def test_what_would_undo_the_placement_is_refused_with_experts_only(name: str) -> None:
    check_extra_args([name])  # without, it is the operator's
    with pytest.raises(ValueError, match=f"the argument {name} is reserved"):
        check_expert_args(["--seed", "1", name])
    with pytest.raises(ValidationError, match="is reserved"):
        EngineSettings(extra_args=(f"{name}=2",), experts=EXPERTS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "tensor_parallel x data_parallel is 1"),
        ({"tensor_parallel": 2, "data_parallel": 2}, "experts.tensor_parallel is 2 and experts.data_parallel is 2"),
        ({"tensor_parallel": 0}, "greater than or equal to 1"),
        ({"data_parallel": 2, "redundant_experts": 1024}, "less than or equal to 1023"),
        ({"data_parallel": 2, "policy": "x"}, "Extra inputs"),
    ],
)
def test_experts_that_cannot_run_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineSettings.model_validate({"experts": fields})


def test_both_kinds_of_ranks_are_for_cuda() -> None:
    experts = ExpertParallelSettings(tensor_parallel=2, data_parallel=4)
    assert EngineSettings(device="cuda", experts=experts).experts is not None
    assert experts.ranks == 8


SPELLINGS = [
    ["--port", "1"],
    ["--port=1"],
    ["--port 1"],
    ["--por", "1"],  # the parser completes it
    ["--kv_transfer_config", "{}"],
    ["--kv-transfer-config={}"],
    ["--kv_transfer_config.kv_role", "kv_both"],
    ["--kv-events-config.publisher=null"],
    ["--no-enable-prompt-tokens-details"],
    ["--no_enable_prompt_tokens_details"],
    ["--seed", "1", "--disable-log-stats"],
    ["--config", "/tmp/x.yaml"],
]


@pytest.mark.parametrize("args", SPELLINGS, ids=str)
def test_a_reserved_argument_is_refused_in_every_spelling_that_the_engine_takes(args: list[str]) -> None:
    named = next(arg for arg in args if arg not in ("--seed", "1")).split("=")[0].split(" ")[0]
    with pytest.raises(ValueError, match=f"the argument {named} is reserved"):
        check_extra_args(args)


@pytest.mark.parametrize("name", RESERVED_ARGS)
def test_every_reserved_argument_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ValueError, match="is reserved") as caught:
        check_extra_args([name])
    assert str(caught.value).endswith(RESERVED_ARGS[name])


ALLOWED = [
    ["--seed", "1"],
    ["--chat-template=/x/port"],
    ["--kv-cache-dtype-skip-layers", "1"],
    ["--kv-cache-memory-bytes=1000"],
    ["--config-format", "hf"],
    ["--host-name-like"],
    ["-tp", "2"],
    ["--no-enable-prefix-caching"],
    ["--root-path", "--port-like-value"],
    ["--enable-prompt-embeds"],
    ["port", "1"],
]


@pytest.mark.parametrize("args", ALLOWED, ids=str)
def test_other_arguments_are_let_through(args: list[str]) -> None:
    check_extra_args(args)


@pytest.mark.parametrize("name", RESERVED_ENV)
def test_a_reserved_variable_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"the variable {name} is reserved") as caught:
        check_env({"UCX_TLS": "tcp", name: "1"})
    assert str(caught.value).endswith(RESERVED_ENV[name])


def test_the_settings_refuse_what_is_reserved() -> None:
    with pytest.raises(ValidationError, match="the argument --port is reserved") as caught:
        EngineSettings(extra_args=("--seed", "1", "--port=1"))
    assert caught.value.errors()[0]["loc"] == ("extra_args",)
    with pytest.raises(ValidationError, match="the variable VLLM_PLUGINS is reserved") as caught:
        EngineSettings(env={"VLLM_PLUGINS": ""})
    assert caught.value.errors()[0]["loc"] == ("env",)


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [
        ({"device": "cuda"}, 0.0),
        ({"device": "cuda", "num_gpus": 2}, 2.0),
        ({"device": "cuda", "experts": {"data_parallel": 8}}, 8.0),
        ({"device": "cuda", "experts": {"data_parallel": 8}, "num_gpus": 4}, 4.0),
        ({"device": "cpu", "experts": {"tensor_parallel": 2}}, 0.0),
    ],
)
def test_an_expert_parallel_engine_is_placed_with_a_gpu_for_each_rank(fields: dict[str, object], gpus: float) -> None:
    assert EngineSettings.model_validate(fields).reserved_gpus == gpus
