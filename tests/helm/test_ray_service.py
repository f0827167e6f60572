"""The RayService: what it says to Serve, read by Ray itself in a process of its own."""

import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.helm.chart import ROOT, render

_READ = """
import importlib, json, sys
from ray.serve.schema import ServeDeploySchema
served = ServeDeploySchema.model_validate(json.loads(sys.argv[1]))
(application,) = served.applications
module, _, name = application.import_path.partition(":")
graph = getattr(importlib.import_module(module), name)({**application.args, "config": sys.argv[2]})
with open(sys.argv[2] + ".other", "w") as other:
    other.write("pools: {decode: 1}")
try:
    getattr(importlib.import_module(module), name)({"config": other.name})
    said = ""
except Exception as error:
    said = str(error)
root = graph._bound_deployment
nodes = [root, *(child._bound_deployment for child in root.init_args[3:])]
from ray.util import get_node_ip_address
from workers.deployment import _at_home
plan = root.init_args[4]._bound_deployment.init_args[0]
print(json.dumps({
    "host": [plan.engine.host, _at_home(plan).engine.host, get_node_ip_address()],
    "overridden": {each.name: each.num_replicas for each in application.deployments},
    "http": [served.http_options.host, served.http_options.port],
    "built": {node.name: [node.num_replicas, node.ray_actor_options] for node in nodes},
    "without_redis": said,
}))
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Ray makes of the example's serveConfigV2 and of the application that it imports."""
    rendered = render("kuberay")
    path = tmp_path_factory.mktemp("ray") / "headrace.yaml"
    path.write_text(rendered.config_text)
    (ray,) = rendered.of("RayService").values()
    serve_config = json.dumps(yaml.safe_load(ray["spec"]["serveConfigV2"]))
    command = [sys.executable, "-W", "ignore", "-c", _READ, serve_config, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_sizes_and_resources_meet(read: dict[str, Any]) -> None:
    """Each replica asks for the one unit of its kind's resource that a pod of its group offers."""
    (ray,) = render("kuberay").of("RayService").values()
    groups = {group["groupName"]: group for group in ray["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    head = ray["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]
    assert {name: group["replicas"] for name, group in groups.items()} == {"router": 2, "prefill": 2, "decode": 2}
    offered = {name: json.loads(json.loads(group["rayStartParams"]["resources"])) for name, group in groups.items()}
    assert offered == {name: {f"headrace_{name}": 1} for name in groups}
    wanted = {"Router": "router", "PrefillWorker": "prefill", "DecodeWorker": "decode"}
    built = read["built"]
    assert set(built) == {"ControlPlane", *wanted}
    for deployment, group in wanted.items():
        replicas, options = built[deployment]
        assert replicas == groups[group]["replicas"] == read["overridden"][deployment]
        assert options["resources"] == offered[group]
    (place,) = json.loads(json.loads(head["resources"]))
    assert place in built["ControlPlane"][1]["resources"]  # where its files are
    gpus = groups["decode"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert built["DecodeWorker"][1]["num_gpus"] == gpus == 1


def test_ray_and_the_admin_port_are_those_of_the_package(read: dict[str, Any]) -> None:
    rendered = render("kuberay")
    config = rendered.config()
    assert config.engine.host == "node"
    assert read["http"] == [config.admin.host, config.admin.port] == ["127.0.0.1", 8002]
    (ray,) = rendered.of("RayService").values()
    lock = (ROOT / "requirements-cpu.lock").read_text()
    assert f"\nray=={ray['spec']['rayClusterConfig']['rayVersion']}\n" in lock


def test_engines_listen_at_the_address_of_their_node(read: dict[str, Any]) -> None:
    configured, used, address_of_node = read["host"]
    assert configured == "node"
    assert used == address_of_node != "node"


def test_the_application_needs_a_redis(read: dict[str, Any]) -> None:
    assert "redis.url: none is given" in read["without_redis"]
