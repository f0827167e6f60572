"""`headrace` as typed: every mistake is answered at once, with the key, the value and what is allowed."""

import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.stack import HEADRACE


def headrace(*arguments: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return subprocess.run([HEADRACE, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def write(path: Path, text: str) -> str:
    """A configuration file."""
    path.write_text(text)
    return str(path)


def test_config_check_accepts_what_config_show_prints(tmp_path: Path) -> None:
    shown = headrace("config", "show")
    assert shown.returncode == 0
    checked = headrace("config", "check", write(tmp_path / "headrace.yaml", shown.stdout))
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("router: {htpp: {port: 1}}", ["router.htpp", "did you mean 'http'"]),
        ("router: {http: {port: 99999}}", ["router.http.port", "99999", "65535"]),
        ("engine: {kv_cache_dtype: nvfp4}", ["engine.kv_cache_dtype", "nvfp4", "fp8_e4m3"]),
        ("engine: {extra_args: [--port, '1']}", ["engine.extra_args", "--port"]),
        ("engine: {env: {VLLM_SERVER_DEV_MODE: '1'}}", ["engine.env", "VLLM_SERVER_DEV_MODE"]),
        ("pools: {prefill: 2, decode: 0}", ["pools", "decode or mixed"]),
        ("redis: {url: 'http://x'}", ["redis.url", "http://x"]),
        ("nonsense", ["mapping"]),
        ("model: {name: a, name: b}", ["'name' is given twice"]),
        ("model: [", ["not valid YAML"]),
    ],
)
def test_config_mistakes_name_key_value_and_what_is_allowed(tmp_path: Path, text: str, words: list[str]) -> None:
    result = headrace("config", "check", write(tmp_path / "headrace.yaml", text))
    assert result.returncode == 2
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_config_show_masks_passwords() -> None:
    shown = headrace("config", "show", "--set", "redis.url=redis://user:hunter2@redis:6379/0")
    assert "hunter2" not in shown.stdout
    assert "redis://user:***@redis:6379/0" in shown.stdout


def test_up_refuses_a_shape_nobody_could_run() -> None:
    result = headrace("up", "--pools", "2X")
    assert result.returncode == 2
    assert "2P1D" in result.stderr


def test_up_refuses_a_taken_port_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began_at_s = time.monotonic()
        result = headrace("up", "--set", f"router.http.port={port}", "--set", "router.grpc.port=0")
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr
    assert "router.http.port" in result.stderr
    assert time.monotonic() - began_at_s < 60


def test_up_refuses_a_missing_model_folder(tmp_path: Path) -> None:
    free = ["--set", "router.http.port=0", "--set", "router.grpc.port=0", "--set", "admin.port=0"]
    result = headrace("up", *free, "--model", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "model.path" in result.stderr
    assert "nowhere" in result.stderr
    result = headrace("up", *free, "--model", str(tmp_path))
    assert result.returncode == 1
    assert "config.json" in result.stderr


def test_up_refuses_files_that_cannot_be_used(tmp_path: Path) -> None:
    free = "router: {http: {port: 0}, grpc: {port: 0}}\n"
    files = {
        "identity": "{keys_file: /nowhere/keys.yaml, salt_secret_file: /nowhere/salt}",
        "admin": "{port: 0, tokens_file: /nowhere/tokens.yaml}",
        "engine": "{tls: {ca_file: /nowhere/ca.crt}}",
    }
    text = free + "\n".join(f"{section}: {tree}" for section, tree in files.items())
    result = headrace("up", "--config", write(tmp_path / "headrace.yaml", text))
    assert result.returncode == 1
    for setting in ("identity.keys_file", "identity.salt_secret_file", "admin.tokens_file", "engine.tls.ca_file"):
        assert setting in result.stderr
    assert "Traceback" not in result.stderr


def test_up_says_that_redis_is_unreachable(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    free = ["--set", "router.http.port=0", "--set", "router.grpc.port=0", "--set", "admin.port=0"]
    result = headrace("up", *free, "--model", str(model), "--set", "redis.url=redis://:hunter2@127.0.0.1:9/0")
    assert result.returncode == 1
    assert "Redis at redis://:***@127.0.0.1:9/0 does not answer" in result.stderr
    assert "hunter2" not in result.stdout + result.stderr


def test_status_without_a_cluster_says_so() -> None:
    result = headrace("status", "--admin", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "is Headrace up" in result.stderr


def test_a_worker_id_is_no_path() -> None:
    result = headrace(
        "worker", "join", "--address", "http://127.0.0.1:9", "--redis", "redis://127.0.0.1:9/0", "--id", "a/1"
    )
    assert result.returncode == 2
    assert "'a/1'" in result.stderr


def test_join_without_an_engine_says_so() -> None:
    result = headrace("worker", "join", "--address", "http://127.0.0.1:9", "--redis", "redis://127.0.0.1:9/0")
    assert result.returncode == 1
    assert "127.0.0.1:9" in result.stderr
