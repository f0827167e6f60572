"""A release's whole life, with real helm against a fake API server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helm.chart import ALL, CHART, NAME, RELEASE, HelmError, helm, render, values_arguments
from tests.helm.fake_api.objects import Key
from tests.helm.fake_api.server import FakeApi, fake_api
from tests.helm.schemas import problem

_VERSION = "1.37"
_WAIT = ("--wait", "--timeout", "20s")


class Cluster:
    """A fake one, and helm talking to it."""

    def __init__(self, api: FakeApi, kubeconfig: Path) -> None:
        self.api = api
        self._kubeconfig = kubeconfig

    def helm(self, *arguments: str) -> str:
        """In the namespace `llm`."""
        return helm(*arguments, "--namespace", "llm", kubeconfig=self._kubeconfig)

    def install(self, which: str, *more: str) -> str:
        """The chart, into a new namespace."""
        values = values_arguments(which)
        return self.helm("install", RELEASE, str(CHART), "--create-namespace", *values, *more)

    def replicas(self, name: str) -> int:
        """Of a Deployment."""
        return int(self.deployment(name)["replicas"])

    def deployment(self, name: str) -> dict[str, Any]:
        """Its spec, as it was sent."""
        spec: dict[str, Any] = self.api.store.objects[Key("apps/v1", "deployments", "llm", f"{NAME}-{name}")]["spec"]
        return spec

    def password(self) -> str:
        """Of the bundled Redis."""
        return str(self.api.store.objects[Key("v1", "secrets", "llm", f"{NAME}-redis")]["data"]["password"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A new one for each test."""
    with fake_api(tmp_path, lambda manifest: problem(manifest, _VERSION), _VERSION) as (api, kubeconfig):
        yield Cluster(api, kubeconfig)


@pytest.mark.parametrize("which", ALL)
def test_install_and_uninstall(cluster: Cluster, which: str) -> None:
    said = cluster.install(which)
    assert "STATUS: deployed" in said
    assert "helm -n llm test rel" in said
    wanted: dict[str, set[str]] = {}
    for manifest in render(which).manifests:
        if manifest["kind"] != "Pod":  # the test's
            wanted.setdefault(manifest["kind"], set()).add(manifest["metadata"]["name"])
    assert cluster.api.store.kinds("llm") == wanted
    assert cluster.api.refused == []
    cluster.helm("uninstall", RELEASE)
    assert cluster.api.store.kinds("llm") == {}


def test_upgrade_test_and_roll_back(cluster: Cluster) -> None:
    cluster.install("trial")
    password = cluster.password()
    assert cluster.replicas("decode") == 1
    volumes = cluster.deployment("router")["template"]["spec"]["volumes"]
    assert {volume["secret"]["defaultMode"] for volume in volumes if "secret" in volume} == {0o440}
    upgrade = ("upgrade", RELEASE, str(CHART), *values_arguments("trial"), *_WAIT)
    cluster.helm(*upgrade, "--set", "config.pools.decode=3", "--set", "config.pools.mixed=1")
    assert cluster.replicas("decode") == 3
    assert cluster.replicas("mixed") == 1
    assert cluster.password() == password  # or every pod would have to be restarted
    assert "Phase:          Succeeded" in cluster.helm("test", RELEASE, "--timeout", "20s")
    assert f"{NAME}-test" in cluster.api.store.kinds("llm")["Pod"]
    cluster.helm("rollback", RELEASE, "1")
    assert cluster.replicas("decode") == 1
    assert f"{NAME}-mixed" not in cluster.api.store.kinds("llm")["Deployment"]
    history = json.loads(cluster.helm("history", RELEASE, "--output", "json"))
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]


def test_from_the_trial_to_tenants_as_written(cluster: Cluster) -> None:
    cluster.install("trial")
    upgrade = ("upgrade", RELEASE, str(CHART), *values_arguments("tenants"), *_WAIT)
    with pytest.raises(HelmError, match=f"kubectl -n llm delete statefulset {NAME}-redis"):
        cluster.helm(*upgrade)
    del cluster.api.store.objects[Key("apps/v1", "statefulsets", "llm", f"{NAME}-redis")]
    said = cluster.helm(*upgrade)
    assert "keys create TENANT --token-file /dev/stdin < operator.token" in said
    assert f"{NAME}-redis" in cluster.api.store.kinds("llm")["StatefulSet"]
    cluster.helm(*upgrade)  # nothing is new


def test_an_engine_that_does_not_come_up_fails_the_upgrade(cluster: Cluster) -> None:
    cluster.install("trial")
    cluster.api.store.broken.add("decode")
    upgrade = ("upgrade", RELEASE, str(CHART), *values_arguments("trial"), "--set", "config.engine.threads=2")
    with pytest.raises(HelmError, match=f"(?s){NAME}-decode.*not ready|not ready.*{NAME}-decode|{NAME}-decode"):
        cluster.helm(*upgrade, "--wait", "--timeout", "1s")
    assert json.loads(cluster.helm("status", RELEASE, "--output", "json"))["info"]["status"] == "failed"


def test_the_fake_refuses_what_kubernetes_refuses(cluster: Cluster) -> None:
    with pytest.raises(HelmError, match="invalid"):
        cluster.install(
            "trial", "--set", "worker.nodeSelector.disk=ssd", "--set", "router.topologySpread[0].maxSkew=one"
        )
    assert any("maxSkew" in problem for problem in cluster.api.refused)
