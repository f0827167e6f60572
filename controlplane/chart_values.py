"""What the chart takes, as types, and the JSON schema that helm checks values with.

`python -m controlplane.chart_values` prints helm/headrace/values.schema.json. Field names are those of values.yaml.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from controlplane.config import Config

# What Kubernetes itself checks is left to it.
Object = dict[str, Any]
Objects = list[dict[str, Any]]


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class Image(_Values):
    """Container images."""

    repository: str = Field(min_length=1, description="registry and name")
    tag: str = Field("", description="of routers and control plane; empty: the chart's appVersion")
    engine_tag: str = Field("", description="of workers; empty: the same")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: list[str] = Field([], description="names of Secrets")


class Redis(_Values):
    """The Redis that comes with the chart, or the password of another."""

    bundled: bool = Field(True, description="run one server in the cluster, for trials")
    image: str = ""
    storage: str = Field("", pattern=r"^([0-9]+(Mi|Gi|Ti))?$", description="size of its volume; empty: memory only")
    password_secret: str = Field(
        "", description="Secret with the key `password`; empty: one is made for the bundled server"
    )


class SecretFiles(_Values):
    """One Secret, mounted as files."""

    secret: str = Field(min_length=1, description="its name")
    in_: list[Literal["router", "worker", "control-plane"]] = Field(
        ["router", "control-plane"], alias="in", description="who sees it"
    )


class Placement(_Values):
    """What a pod takes of its node, and which node."""

    resources: Object = {}
    node_selector: dict[str, str] = {}
    tolerations: Objects = []
    topology_spread: Objects = Field([], description="constraints without labelSelector; empty: spread over hosts")


class Service(_Values):
    """The routers' Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    annotations: dict[str, str] = {}


class Router(Placement):
    """Routers."""

    service: Service = Service()


class WorkerPod(Placement):
    """Pods of workers."""

    rdma: bool = Field(False, description="adds the capability IPC_LOCK, to register memory")
    shared_memory: str = Field("2Gi", pattern=r"^[0-9]+(Mi|Gi)$", description="size of /dev/shm")


class OnePool(_Values):
    """What is different in one pool."""

    resources: Object | None = None
    node_selector: dict[str, str] | None = None
    tolerations: Objects | None = None
    topology_spread: Objects | None = None
    rdma: bool | None = None
    shared_memory: str | None = Field(None, pattern=r"^[0-9]+(Mi|Gi)$")


class Pools(_Values):
    """By role."""

    prefill: OnePool = OnePool()
    decode: OnePool = OnePool()
    mixed: OnePool = OnePool()


class Worker(WorkerPod):
    """Workers."""

    pools: Pools = Pools()


class ControlPlane(_Values):
    """The control plane."""

    resources: Object = {}


class NetworkPolicy(_Values):
    """Who may reach what; each a list of NetworkPolicyPeer."""

    enabled: bool = True
    clients: Objects = Field([], description="of routers; empty: everybody")
    scrapers: Objects = Field([], description="of metrics")
    admins: Objects = Field([], description="of the admin port, where config.admin.host opens it; empty: nobody")


class Ingress(_Values):
    """An Ingress in front of the routers, or of the admin API."""

    host: str = Field("", description="empty: none")
    class_name: str = ""
    tls_secret: str = ""
    annotations: dict[str, str] = {}


class Gateway(_Values):
    """A route of a Gateway."""

    parent: Object = Field({}, description="parentRef: name, namespace, sectionName; empty: none")
    hostnames: list[str] = []
    inference_pool: bool = Field(False, description="the gateway carries the bytes, Headrace picks the endpoint")


class Monitoring(_Values):
    """Objects of the Prometheus operator and Grafana's sidecar."""

    pod_monitors: bool = False
    rules: bool = False
    dashboards: bool = False
    labels: dict[str, str] = Field({}, description="that Prometheus selects them by")
    runbooks: str = Field(
        "", pattern=r"^(https?://.*[^/])?$", description="where docs/ is published: alerts link to it"
    )
    token_secret: str = Field(
        "", description="Secret with a viewer's token in the key `token`; for config.router.public_metrics: false"
    )


class Autoscale(_Values):
    """The size of one kind of pods: by `metrics` of an HPA or `triggers` of KEDA."""

    min: int = Field(1, ge=0)
    max: int = Field(ge=1)
    metrics: Objects = []
    triggers: Objects = []


class Autoscaling(_Values):
    """By kind of pods; none: as large as config says."""

    router: Autoscale | None = None
    prefill: Autoscale | None = None
    decode: Autoscale | None = None
    mixed: Autoscale | None = None


class Kuberay(_Values):
    """The Ray head."""

    resources: Object = {}


class Test(_Values):
    """`helm test`."""

    api_key_secret: str = Field("", description="Secret with the key `key`, where clients need one")


class Values(_Values):
    """The whole of values.yaml."""

    mode: Literal["plain", "kuberay"] = "plain"
    config: Config = Field(Config(), description="headrace.yaml")
    image: Image
    model_volume: Object = Field({}, description="a volume source, mounted at /models; empty: the image's own /models")
    secrets: dict[str, SecretFiles] = Field({}, description="mounted at /run/secrets/headrace/KEY")
    redis: Redis = Redis()
    router: Router = Router()
    worker: Worker = Worker()
    control_plane: ControlPlane = ControlPlane()
    pod_annotations: dict[str, str] = {}
    disruption_budget: int | str = Field(
        1, description="pods of one kind that may be away at once: number or percentage"
    )
    network_policy: NetworkPolicy = NetworkPolicy()
    ingress: Ingress = Ingress()
    admin_ingress: Ingress = Ingress()
    gateway: Gateway = Gateway()
    monitoring: Monitoring = Monitoring()
    autoscaling: Autoscaling = Autoscaling()
    kuberay: Kuberay = Kuberay()
    test: Test = Test()
    global_: Object = Field({}, alias="global", description="helm's own")


def values_schema() -> dict[str, Any]:
    """JSON schema, draft 7: both Helm 3 and 4 read it. Defaults are left out: values.yaml has them."""
    schema = Values.model_json_schema(by_alias=True)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_without_defaults(schema)}


def render() -> str:
    """The committed file."""
    return json.dumps(values_schema(), indent=1, sort_keys=True) + "\n"


def _without_defaults(schema: Any, *, of_properties: bool = False) -> Any:
    """Defaults and generated titles say nothing here; a property may be called either."""
    if isinstance(schema, list):
        return [_without_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_defaults(value, of_properties=key in ("properties", "$defs"))
        for key, value in schema.items()
        if of_properties or key not in ("default", "title", "discriminator")
    }


if __name__ == "__main__":
    print(render(), end="")
