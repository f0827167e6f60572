"""What pods are told: addresses, ports, times, probes, places, and what makes them start again."""

import math

import pytest

from tests.helm.chart import ALL, NAME, Manifest, render, render_values


@pytest.mark.parametrize("which", ["defaults", "trial", "gpu", "gateway", "external-redis"])
def test_numbers_follow_the_config(which: str) -> None:
    """Sizes, ports and times in manifests are the config's, defaults of the config types included."""
    rendered = render(which)
    config, deployments = rendered.config(), rendered.of("Deployment")
    scaled = {"router", "decode"} if which == "gpu" else set()
    sizes = {"router": config.router.replicas} | config.pools.model_dump(include={"prefill", "decode", "mixed"})
    assert {name: deployments[name]["spec"].get("replicas") for name in sizes if name in deployments} == {
        name: None if name in scaled else size for name, size in sizes.items() if size
    }
    router, worker = deployments["router"]["spec"]["template"]["spec"], _a_worker(deployments)
    assert router["terminationGracePeriodSeconds"] == math.ceil(5 + config.router.drain_s + 10)
    assert worker["terminationGracePeriodSeconds"] == math.ceil(2 * config.engine.shutdown_timeout_s + 15)
    ports = {port["name"]: port["containerPort"] for port in router["containers"][0]["ports"]}
    wanted = {"http": config.router.http.port, "grpc": config.router.grpc.port}
    if config.router.endpoint_picker.enabled:
        wanted["picker"] = config.router.endpoint_picker.port
    assert ports == wanted
    assert {port["name"]: port["containerPort"] for port in worker["containers"][0]["ports"]} == {
        "engine": config.engine.http_port,
        "health": config.health.port if config.health else None,
    }


def _a_worker(deployments: dict[str, Manifest]) -> Manifest:
    name = next(name for name in ("prefill", "mixed") if name in deployments)
    spec: Manifest = deployments[name]["spec"]["template"]["spec"]
    return spec


def test_probes() -> None:
    pods = render("trial").pods()
    router = pods["router"]["spec"]["containers"][0]
    assert router["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http", "scheme": "HTTP"}
    # A fleet whose engines are still loading makes no router restart.
    assert router["livenessProbe"]["httpGet"]["path"] == router["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert router["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
    worker = pods["decode"]["spec"]["containers"][0]
    assert worker["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert worker["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_clients_that_must_show_certificates_leave_tcp_probes() -> None:
    tls = {"cert_file": "/usr/tls.crt", "key_file": "/usr/tls.key", "client_ca_file": "/usr/ca.crt"}
    router = render_values({"config": {"router": {"http": {"tls": tls}}}}).pods()["router"]["spec"]["containers"][0]
    assert router["readinessProbe"]["tcpSocket"] == {"port": "http"}
    https = render("external-redis").pods()["router"]["spec"]["containers"][0]
    assert https["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_a_worker_has_its_pods_address_and_name() -> None:
    container = render("trial").pods()["prefill"]["spec"]["containers"][0]
    fields = {
        item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"] for item in container["env"] if "valueFrom" in item
    }
    assert fields == {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
    assert container["args"] == [
        *("run", "worker", "--role", "prefill", "--id", "$(POD_NAME)"),
        *("--set", "engine.host=$(POD_IP)", "--config", "/etc/headrace/headrace.yaml"),
    ]


@pytest.mark.parametrize("which", ALL)
def test_a_new_version_of_the_chart_alone_restarts_nobody(which: str) -> None:
    for name, pod in render(which).pods().items():
        version = {"app.kubernetes.io/version", "helm.sh/chart", "app.kubernetes.io/managed-by"}
        assert name == "test" or not version & set(pod["metadata"]["labels"])


def test_what_restarts_which_pods() -> None:
    """A change of sizes restarts nobody, one of classes no engine."""

    def checksums(config: Manifest) -> dict[str, str]:
        deployments = render_values({"config": config}, "trial").of("Deployment")
        annotations = {name: item["spec"]["template"]["metadata"]["annotations"] for name, item in deployments.items()}
        return {name: item["checksum/config"] for name, item in annotations.items()}

    before = checksums({})
    assert checksums({"pools": {"decode": 2}, "router": {"replicas": 3}}) == before
    after = checksums({"slo": {"safety_margin": 0.5}})
    assert after["router"] != before["router"]
    assert after["decode"] == before["decode"]
    after = checksums({"engine": {"threads": 2}})
    assert after["router"] != before["router"]
    assert after["decode"] != before["decode"]


def test_pools_differ_where_they_are_told_to() -> None:
    pods = render("gpu").pods()
    prefill, decode = pods["prefill"]["spec"], pods["decode"]["spec"]
    assert prefill["nodeSelector"] != decode["nodeSelector"]
    assert prefill["containers"][0]["resources"] == decode["containers"][0]["resources"]
    assert decode["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert decode["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in decode["volumes"]
    (spread,) = decode["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "decode"
    switched = {"worker": {"rdma": True, "pools": {"prefill": {"rdma": False, "tolerations": []}}}}
    pods = render_values(switched, "gpu").pods()
    assert "add" not in pods["prefill"]["spec"]["containers"][0]["securityContext"]["capabilities"]
    assert "tolerations" not in pods["prefill"]["spec"]
    assert "tolerations" in pods["decode"]["spec"]


def test_the_inference_pool_names_the_picker_and_the_engines() -> None:
    rendered = render("gateway")
    (pool,) = rendered.of("InferencePool").values()
    config = rendered.config()
    assert pool["spec"]["targetPorts"] == [{"number": config.engine.http_port}]
    assert pool["spec"]["endpointPickerRef"]["port"]["number"] == config.router.endpoint_picker.port
    service = rendered.of("Service")[""]
    assert pool["spec"]["endpointPickerRef"]["name"] == service["metadata"]["name"] == NAME
    assert any(port["port"] == config.router.endpoint_picker.port for port in service["spec"]["ports"])
    labels = rendered.pods()["mixed"]["metadata"]["labels"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    prefill = render("trial").pods()["prefill"]["metadata"]["labels"]
    assert "headrace-answers-clients" not in prefill
