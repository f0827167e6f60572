"""The chart renders what Kubernetes takes and what the pods can load."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from controlplane.chart_values import Values
from controlplane.cli import app
from controlplane.config import Config, load_config
from tests.documents import Document
from tests.helm.chart import (
    ALL,
    CHART,
    NAME,
    ROOT,
    HelmError,
    Manifest,
    helm,
    render,
    render_values,
    values_arguments,
)
from tests.helm.schemas import KUBERNETES_VERSIONS, problem

SECRETS = "/run/secrets/headrace"
OPENED = {
    "config": {"admin": {"host": "0.0.0.0", "tokens_file": f"{SECRETS}/operators/tokens.yaml"}},
    "secrets": {"operators": {"secret": "headrace-operators"}},
}
CLOSED_METRICS = {
    "config": {"admin": {"tokens_file": f"{SECRETS}/operators/tokens.yaml"}, "router": {"public_metrics": False}},
    "secrets": {"operators": {"secret": "headrace-operators"}},
}


@pytest.mark.parametrize("which", ALL)
def test_lint_finds_nothing(which: str) -> None:
    helm("lint", "--strict", str(CHART), *values_arguments(which))


@pytest.mark.parametrize(
    ("which", "version"),
    # Before 1.31 there are no volumes out of images.
    [(which, version) for which in ALL for version in KUBERNETES_VERSIONS if (which, version) != ("gateway", "1.30")],
)
def test_every_manifest_is_valid(which: str, version: str) -> None:
    manifests = render(which).manifests
    assert len(manifests) > 8
    assert [found for manifest in manifests if (found := problem(manifest, version))] == []


def test_schemas_are_strict() -> None:
    ray = json.loads(json.dumps(next(iter(render("kuberay").of("RayService").values()))))
    ray["spec"]["rayClusterConfig"]["workerGroupSpec"] = []
    assert "workerGroupSpec" in str(problem(ray, "1.37"))
    deployment = json.loads(json.dumps(render("trial").of("Deployment")["router"]))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    assert "imagePolicy" in str(problem(deployment, "1.37"))
    assert problem({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget"}, "1.37") is not None


@pytest.mark.parametrize("which", ALL)
def test_names_are_unique_and_selectors_select(which: str) -> None:
    rendered = render(which)
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered.manifests]
    assert len(names) == len(set(names))
    for deployment in rendered.of("Deployment").values():
        wanted, labels = (
            deployment["spec"]["selector"]["matchLabels"],
            deployment["spec"]["template"]["metadata"]["labels"],
        )
        assert wanted.items() <= labels.items()
    pods = [pod["metadata"]["labels"] for pod in rendered.pods().values()]
    for kind in ("Service", "PodDisruptionBudget"):
        for name, manifest in rendered.of(kind).items():
            selector = manifest["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            assert sum(selector.items() <= labels.items() for labels in pods) == 1, (kind, name)


@pytest.mark.parametrize("which", ALL)
def test_the_configmap_is_the_config_file(which: str, tmp_path: Path) -> None:
    rendered = render(which)
    path = tmp_path / "headrace.yaml"
    path.write_text(rendered.config_text)
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0, result.output
    config = load_config(path, ["engine.host=10.1.2.3"])
    values = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    assert config.router.http.host == values["router"]["http"]["host"]
    assert config.redis.url is not None
    if which == "gpu":
        assert config.slo.classes["interactive"].ttft_s == 0.4
        assert (config.pools.prefill, config.pools.decode) == (4, 8)


def test_large_numbers_reach_the_file_whole() -> None:
    config = render_values(
        {"config": {"index": {"budget_bytes": 17_179_869_184}, "redis": {"namespace": "1e3"}}}
    ).config()
    assert config.index.budget_bytes == 17_179_869_184
    assert config.redis.namespace == "1e3"


def test_every_value_can_be_set() -> None:
    """What no example shows, all at once, and where it ends up."""
    values = {
        "image": {"pullPolicy": "Always", "pullSecrets": ["registry"]},
        "podAnnotations": {"sidecar.istio.io/inject": "false"},
        "router": {
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "nodeSelector": {"pool": "cpu"},
            "tolerations": [{"key": "cpu", "operator": "Exists"}],
            "topologySpread": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        },
        "redis": {"storage": "2Gi", "passwordSecret": "mine"},
        "networkPolicy": {"clients": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "scrapers": []},
        "disruptionBudget": "50%",
        "gateway": {"parent": {"name": "web"}},
        "test": {"apiKeySecret": "my-key"},
    }
    rendered = render_values(values)
    assert [found for manifest in rendered.manifests if (found := problem(manifest, "1.37"))] == []
    for name, pod in rendered.pods().items():
        spec = pod["spec"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert ("nodeSelector" in spec) is (name not in ("prefill", "decode")), name
        assert name == "test" or pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
    assert "redis" not in rendered.of("Secret")
    (claim,) = rendered.of("StatefulSet")["redis"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    (backend,) = rendered.of("HTTPRoute")[""]["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": NAME, "port": 8000}
    test_pod = rendered.of("Pod")["test"]["spec"]["containers"][0]
    assert {item["name"] for item in test_pod["env"]} == {"URL", "API_KEY_FILE"}


def test_monitoring_wraps_what_is_there(tmp_path: Path) -> None:
    """The chart with rules and dashboards, and without any."""
    rendered = render_values({"monitoring": {"rules": True, "dashboards": True, "podMonitors": True}})
    rules = sorted((CHART / "files" / "rules").glob("*.yaml"))
    boards = sorted((CHART / "files" / "dashboards").glob("*.json"))
    wrapped = rendered.of("PrometheusRule")
    assert {name: rule["spec"] for name, rule in wrapped.items()} == {
        path.stem: yaml.safe_load(path.read_text()) for path in rules
    }
    maps = {name: item for name, item in rendered.of("ConfigMap").items() if name.startswith("dashboard-")}
    assert {name: json.loads(next(iter(item["data"].values()))) for name, item in maps.items()} == {
        f"dashboard-{path.stem}": json.loads(path.read_text()) for path in boards
    }
    assert [found for manifest in rendered.manifests if (found := problem(manifest, "1.37"))] == []


def test_closed_metrics_are_scraped_with_a_token() -> None:
    monitors = render_values({**CLOSED_METRICS, "monitoring": {"podMonitors": True, "tokenSecret": "viewer"}})
    (monitor,) = monitors.of("PodMonitor").values()
    (http,) = [one for one in monitor["spec"]["podMetricsEndpoints"] if one["port"] == "http"]
    assert http["authorization"] == {"credentials": {"name": "viewer", "key": "token"}}
    assert [found for manifest in monitors.manifests if (found := problem(manifest, "1.37"))] == []


def test_alerts_link_to_where_the_runbooks_are() -> None:
    links = {
        rule["annotations"]["runbook_url"].rpartition("/")[0]
        for manifest in render_values({"monitoring": {"rules": True, "runbooks": "https://wiki.acme/hr"}})
        .of("PrometheusRule")
        .values()
        for group in manifest["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert links == {"https://wiki.acme/hr"}


def test_defaults_in_templates_are_those_of_the_config() -> None:
    """`dig "router" "drain_s" 10.0 .Values.config` and the like say what the config types say."""
    config = Config().model_dump()
    digs = re.findall(
        r'dig ((?:"[a-z_]+" )+)("[^"]*"|[0-9.]+|false|nil) \.Values\.config',
        "".join(path.read_text() for path in (CHART / "templates").iterdir()),
    )
    compared = 0
    for path, default in digs:
        found: Any = config
        for key in re.findall(r'"([a-z_]+)"', path):
            found = found[key] if isinstance(found, dict) else None
        if default not in ("nil", '""', "0"):  # the checks want a value
            assert found == json.loads(default), path
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"config": {"engine": {"http_port": None}}}, "config.engine.http_port has to be set"),
        ({"config": {"health": None}}, "config.health has to be set"),
        ({"redis": {"bundled": False}}, "config.redis.url has to say where Redis is"),
        ({"gateway": {"inferencePool": True}}, "gateway.parent has to name the Gateway"),
        ({"gateway": {"inferencePool": True, "parent": {"name": "g"}}}, "config.router.endpoint_picker has to be"),
        ({"autoscaling": {"decode": {"max": 3}}}, "autoscaling.decode has to have either metrics"),
        ({"autoscaling": {"mixed": {"max": 3, "triggers": [{"type": "cpu"}]}}}, "config.pools.mixed is 0"),
        ({"mode": "kuberay", "autoscaling": {"decode": {"max": 3}}}, "works with mode: plain only"),
        ({"config": {"admin": {"host": "0.0.0.0"}}}, "config.admin.tokens_file has to say who may"),
        ({"config": {"router": {"public_metrics": False}}}, "config.admin.tokens_file has to say who reads metrics"),
        ({**CLOSED_METRICS, "monitoring": {"podMonitors": True}}, "monitoring.tokenSecret has to name"),
        ({"mode": "kuberay", **OPENED}, "with mode: kuberay it stays on loopback"),
        ({"adminIngress": {"host": "a.example"}}, "config.admin.host has to be 0.0.0.0"),
        ({**OPENED, "adminIngress": {"host": "a.example"}}, "adminIngress.tlsSecret has to be"),
        (
            {**OPENED, "adminIngress": {"host": "a.example", "tlsSecret": "t"}},
            "networkPolicy.admins has to let the ingress controller's pods in",
        ),
        ({"config": {"identity": {"keys_file": "/run/secrets/keys.yaml"}}}, "keys.yaml, which no pod has"),
        (
            {"config": {"identity": {"keys_file": f"{SECRETS}/keys/keys.yaml"}}},
            "secrets.keys has to name the Secret: {secret: ..., in: [router, control-plane]}",
        ),
        (
            {**OPENED, "secrets": {"operators": {"secret": "s", "in": ["router"]}}},
            "secrets.operators.in has to have control-plane",
        ),
        (
            {
                "config": {"engine": {"tls": {"ca_file": f"{SECRETS}/engines/ca.crt"}}},
                "secrets": {"engines": {"secret": "s", "in": ["router", "control-plane"]}},
            },
            "secrets.engines.in has to have worker",
        ),
    ],
)
def test_mistakes_that_no_schema_sees_are_told(values: Manifest, said: str) -> None:
    with pytest.raises(HelmError) as raised:
        render_values(values)
    assert said in str(raised.value)


def test_values_in_the_documentation_render() -> None:
    deploy = Document(ROOT / "docs" / "deploy.md")
    own = set(Values.model_json_schema()["properties"]) - set(Config.model_fields)
    blocks = [values for text in deploy.blocks("yaml") if own & set(values := yaml.safe_load(text))]
    assert len(blocks) >= 2
    for values in blocks:
        rendered = render_values(values)
        assert [found for manifest in rendered.manifests if (found := problem(manifest, "1.37"))] == []


def _files_in(model: type[BaseModel], before: str = "") -> list[str]:
    """Settings that name a file which pods read: keys, certificates, passwords."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        nested = [item for item in (field.annotation, *get_args(field.annotation)) if isinstance(item, type)]
        sections = [item for item in nested if issubclass(item, BaseModel)]
        found += [path for section in sections for path in _files_in(section, f"{before}{name}.")]
        if name.endswith("_file") or (before == "redis." and name.endswith("_path")):
            found.append(before + name)
    return found


def _tree(path: str, value: str) -> dict[str, Any]:
    """The section with this one, and what else it cannot be without."""
    *sections, leaf = path.split(".")
    tree: dict[str, Any] = {leaf: value}
    if sections[-1] == "tls" and sections[0] != "engine":
        tree = {"cert_file": "/usr/c", "key_file": "/usr/k", **tree}
    if sections[-1] == "jwt":
        tree |= {"issuer": "i", "audience": "a"}
    for section in reversed(sections):
        tree = {section: tree}
    return tree


@pytest.mark.parametrize("setting", _files_in(Config))
def test_no_file_is_named_that_pods_do_not_have(setting: str) -> None:
    """The chart knows every such setting there is."""
    with pytest.raises(HelmError, match=f"config.{setting} is /run/secrets/headrace/nowhere/it, so secrets.nowhere"):
        render_values({"config": _tree(setting, f"{SECRETS}/nowhere/it")})
    mounted = {"nowhere": {"secret": "s", "in": ["router", "worker", "control-plane"]}}
    assert render_values({"config": _tree(setting, f"{SECRETS}/nowhere/it"), "secrets": mounted}).manifests
