"""What pods may do, and who may reach them."""

from typing import Any

import pytest

from tests.helm.chart import ALL, Manifest, render, render_values
from tests.helm.schemas import problem

PROFILE = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "fsGroup": 10001,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
ALLOWED_VOLUMES = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "image"}  # of the restricted profile


@pytest.mark.parametrize("which", ALL)
def test_pods_keep_to_the_restricted_profile(which: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, and a read-only root besides. What the
    examples ask for beyond it is asked for by name: RDMA, a folder of the host."""
    for name, pod in render(which).pods().items():
        spec = pod["spec"]
        assert spec["securityContext"] == PROFILE, name
        assert spec["automountServiceAccountToken"] is False
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "initContainers"))
        for volume in spec.get("volumes", []):
            (source,) = set(volume) - {"name"}
            assert source in ALLOWED_VOLUMES | ({"hostPath"} if which == "external-redis" else set()), (name, volume)
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            added = context["capabilities"].get("add", [])
            assert context["capabilities"]["drop"] == ["ALL"]
            assert added == (["IPC_LOCK"] if which == "gpu" and name in ("prefill", "decode") else [])
            assert not {"privileged", "procMount", "runAsUser", "seccompProfile"} & set(context)
            assert container["resources"]["limits"]["memory"]
            assert not any(port.get("hostPort") for port in container.get("ports", []))


@pytest.mark.parametrize("which", ALL)
def test_what_is_written_to_is_a_volume(which: str) -> None:
    """Home, state and temporary files: the root is read-only."""
    rendered = render(which)
    state = rendered.config().state_dir
    for name, pod in rendered.pods().items():
        for container in pod["spec"]["containers"]:
            if name == "test":
                continue  # it writes nothing
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            assert {mount["name"] for mount in mounts.values()} <= set(volumes) | {"data"}
            writable = ["/tmp", "/data"] if name == "redis" else ["/tmp", state]
            assert all(not mounts[path].get("readOnly") for path in writable)
            env = {item["name"]: item.get("value") for item in container.get("env", [])}
            assert name == "redis" or env["HOME"] == state


def test_no_role_is_asked_of_kubernetes() -> None:
    for which in ALL:
        kinds = {manifest["kind"] for manifest in render(which).manifests}
        assert not {kind for kind in kinds if "Role" in kind or "Webhook" in kind}
        (account,) = render(which).of("ServiceAccount").values()
        assert account["automountServiceAccountToken"] is False


def test_passwords_are_in_secrets_only() -> None:
    rendered = render("trial")
    config = rendered.config()
    assert config.redis.password_file == "/run/secrets/redis/password"
    assert config.redis.url is not None
    assert "@" not in config.redis.url
    password = rendered.of("Secret")["redis"]["data"]["password"]
    for manifest in rendered.manifests:
        assert manifest["kind"] == "Secret" or password not in str(manifest)


def test_secrets_are_mounted_where_they_are_asked_for() -> None:
    pods = render("external-redis").pods()
    mounted = {name: {volume["name"] for volume in pod["spec"].get("volumes", [])} for name, pod in pods.items()}
    assert {name for name, volumes in mounted.items() if "secret-tls" in volumes} == {"router"}
    with_ca = {name for name, volumes in mounted.items() if "secret-redis-ca" in volumes}
    assert with_ca == {"router", "control-plane", "prefill", "decode"}


def _reaches(policies: dict[str, Manifest], labels: dict[str, str], port: str, peer: dict[str, Any]) -> bool:
    """Whether some policy lets `peer` (labels of a pod, a namespace's name) reach the port."""
    selecting = [policy["spec"] for policy in policies.values() if _selects(policy["spec"]["podSelector"], labels)]
    assert selecting, f"no policy is about {labels}"
    for spec in selecting:
        for rule in spec.get("ingress") or []:
            ports = [item["port"] for item in rule.get("ports", [])]
            if ports and port not in ports:
                continue
            if "from" not in rule or any(_is_peer(each, peer) for each in rule["from"]):
                return True
    return False


def _is_peer(rule: dict[str, Any], peer: dict[str, Any]) -> bool:
    if "namespaceSelector" in rule:
        wanted = rule["namespaceSelector"].get("matchLabels", {})
        is_there = "namespace" in peer and wanted.items() <= {"kubernetes.io/metadata.name": peer["namespace"]}.items()
    else:
        is_there = "namespace" not in peer
    return is_there and ("podSelector" not in rule or _selects(rule["podSelector"], peer.get("labels", {})))


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    matched = selector.get("matchLabels", {}).items() <= labels.items()
    return matched and all(labels.get(item["key"]) in item["values"] for item in selector.get("matchExpressions", []))


@pytest.mark.parametrize("which", ["defaults", "gpu", "gateway", "kuberay"])
def test_who_reaches_whom(which: str) -> None:
    """Engines: only ours. Redis: only ours. Admin: nobody. Metrics: the namespace of monitoring. Routers: clients."""
    rendered = render(which)
    policies = rendered.of("NetworkPolicy")
    pods = {name.removeprefix("ray-"): pod["metadata"]["labels"] for name, pod in rendered.pods().items()}
    stranger = {"labels": {"app": "stranger"}}
    outside = {"namespace": "elsewhere"}
    monitoring = {"namespace": "monitoring"}
    ours = {name: {"labels": labels} for name, labels in pods.items()}
    engine = next(name for name in ("decode", "mixed") if name in pods)
    assert _reaches(policies, pods[engine], "engine", ours["router"])
    assert _reaches(policies, pods[engine], "37123", ours[engine])  # UCX's own choice
    assert not _reaches(policies, pods[engine], "37123", stranger)
    assert not _reaches(policies, pods[engine], "engine", stranger)
    assert _reaches(policies, pods[engine], "engine", {"namespace": "gateways"}) is (which == "gateway")
    assert not _reaches(policies, pods[engine], "engine", outside)
    assert not _reaches(policies, pods[engine], "engine", monitoring)
    assert _reaches(policies, pods["router"], "http", {"namespace": "gateways"})
    assert _reaches(policies, pods["router"], "http", outside) is (which != "gateway")
    assert _reaches(policies, pods["redis"], "redis", ours["router"])
    assert not _reaches(policies, pods["redis"], "redis", stranger)
    assert not _reaches(policies, pods["redis"], "redis", ours["test"])
    if which == "kuberay":
        operator = {"namespace": "kuberay", "labels": {"app.kubernetes.io/name": "kuberay-operator"}}
        assert _reaches(policies, pods["head"], "dashboard", operator)
        assert not _reaches(policies, pods["head"], "dashboard", outside)
        assert not _reaches(policies, pods["head"], "gcs-server", stranger)
    else:
        assert _reaches(policies, pods[engine], "health", monitoring)
        assert _reaches(policies, pods["control-plane"], "health", monitoring)
        assert not any(_reaches(policies, pods["control-plane"], "admin", peer) for peer in (*ours.values(), stranger))


def test_admin_is_opened_on_purpose_only() -> None:
    assert "admin" not in render("defaults").of("Service")
    admins = [{"podSelector": {"matchLabels": {"app": "portal"}}}]
    tokens = "/run/secrets/headrace/operators/tokens.yaml"
    opened: dict[str, Any] = {
        "config": {"admin": {"host": "0.0.0.0", "port": 8002, "tokens_file": tokens}},
        "secrets": {"operators": {"secret": "headrace-operators"}},
    }
    rendered = render_values({**opened, "networkPolicy": {"admins": admins}})
    assert rendered.of("Service")["admin"]["spec"]["ports"][0]["port"] == 8002
    labels = rendered.pods()["control-plane"]["metadata"]["labels"]
    policies = rendered.of("NetworkPolicy")
    assert _reaches(policies, labels, "admin", {"labels": {"app": "portal"}})
    assert not _reaches(policies, labels, "admin", {"labels": {"app": "stranger"}})
    assert not rendered.of("Ingress")
    closed = render_values(opened).of("NetworkPolicy")
    assert not _reaches(closed, labels, "admin", {"labels": {"app": "portal"}})
    page = {"host": "headrace.example", "tlsSecret": "page-tls"}
    with_page = render_values({**opened, "networkPolicy": {"admins": admins}, "adminIngress": page})
    spec = with_page.of("Ingress")["admin"]["spec"]
    (path,) = spec["rules"][0]["http"]["paths"]
    assert spec["tls"] == [{"hosts": ["headrace.example"], "secretName": "page-tls"}]
    service = with_page.of("Service")["admin"]
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "admin"}}
    assert service["spec"]["ports"][0]["name"] == "admin"
    assert [found for manifest in with_page.manifests if (found := problem(manifest, "1.37"))] == []
