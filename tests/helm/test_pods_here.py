"""docs/deploy.md without a cluster: what pods would run runs here, down to the first token for a tenant's key.

The processes, their files, Redis and the wire are real; the engines are fake ones.
"""

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.fake_vllm import write_fake_vllm
from tests.helm.chart import ROOT, render_values
from tests.helm.pods_here import PodsHere

OPERATOR, KEY = "hra-operator", "hr-of-the-test"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SECRETS = {
    "headrace-operators": {"tokens.yaml": f"{_sha256(OPERATOR)}: {{name: olga, role: operator}}\n"},
    "headrace-keys": {"keys.yaml": f"{_sha256(KEY)}: {{tenant: acme}}\n"},
    "headrace-test-key": {"key": KEY + "\n"},
}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodsHere]:
    """All of the example's, started as a cluster would: in no order."""
    folder = tmp_path_factory.mktemp("cluster")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    engine = {"env": {"PYTHONPATH": write_fake_vllm(folder, {})}}
    rendered = render_values({"config": {"engine": engine, "model": {"name": "fake"}}}, "tenants")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
        made = PodsHere(rendered, folder, SECRETS, model, stack)
        made.start("redis")
        _until(
            made, lambda: b"Ready to accept" in made.logs["redis"].read_bytes()
        )  # kubelets restart who comes too early
        for name in ("router", "control-plane", "decode", "prefill"):
            made.start(name)
        _until(made, lambda: _ask(f"http://{made.address('router')}:8000/readyz")[0] == 200)
        yield made


def _until(pods: PodsHere, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, pods.said()
        time.sleep(0.1)


def _ask(url: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError as error:
        return 0, str(error)


def test_from_rendered_pods_to_the_first_token_and_the_first_key(pods: PodsHere) -> None:
    router = f"http://{pods.address('router')}:8000"
    asked = {"model": "fake", "prompt": "Hello", "max_tokens": 4}
    assert _ask(f"{router}/v1/completions", None, asked)[0] == 401
    smoke = pods.run("test")  # `helm test`, with its key
    assert smoke.returncode == 0, smoke.stderr
    # `kubectl exec -i deploy/...-control-plane -- headrace ...`
    token = ("--token-file", "/dev/stdin")
    closed = pods.run("control-plane", "headrace", "keys", "list")
    assert b"give it with --token-file" in closed.stderr
    created = pods.run("control-plane", "headrace", "keys", "create", "zenith", *token, read=OPERATOR.encode())
    assert created.returncode == 0, created.stderr
    _until(pods, lambda: _ask(f"{router}/v1/completions", created.stdout.decode().strip(), asked)[0] == 200)
    status = pods.run("control-plane", "headrace", "status", *token, read=OPERATOR.encode())
    assert b"prefill" in status.stdout
    listed = pods.run("control-plane", "headrace", "keys", "list", *token, read=OPERATOR.encode())
    assert b"acme" in listed.stdout  # of the mounted file
    assert b"zenith" in listed.stdout
    tenants = pods.run("control-plane", "headrace", "tenants", "list", *token, read=OPERATOR.encode())
    assert b"classes=[batch]" in tenants.stdout


def test_helm_test_says_that_it_needs_a_key(pods: PodsHere) -> None:
    pods.secrets = {**SECRETS, "headrace-test-key": {"key": "hr-of-nobody"}}
    smoke = pods.run("test")
    assert smoke.returncode == 1
    assert b"/v1/models answers 401" in smoke.stderr
    assert b"test.apiKeySecret" in smoke.stderr
