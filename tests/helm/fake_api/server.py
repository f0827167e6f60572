"""A Kubernetes API server for tests: enough of one for real `helm` to install, upgrade, roll back, test and uninstall.

Modelled: discovery, storage, watches, server-side apply, strict schemas (422). Not modelled: RBAC, admission, defaults,
strategic merges, owner references, and pods that run. What passes here may still fail in a cluster.
"""

import asyncio
import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.helm.fake_api import protobuf
from tests.helm.fake_api.objects import Key, Manifest, ObjectStore, Watcher, merge

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
# group/version -> plural -> kind, all of them namespaced but namespaces
_RESOURCES: dict[str, dict[str, str]] = {
    "v1": {
        "namespaces": "Namespace", "configmaps": "ConfigMap", "secrets": "Secret", "services": "Service", "pods": "Pod",
        "serviceaccounts": "ServiceAccount", "persistentvolumeclaims": "PersistentVolumeClaim", "events": "Event",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet", "replicasets": "ReplicaSet"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "gateway.networking.k8s.io/v1": {"httproutes": "HTTPRoute"},
    "inference.networking.k8s.io/v1": {"inferencepools": "InferencePool"},
    "monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
    "ray.io/v1": {"rayservices": "RayService"},
}  # fmt: skip


class FakeApi:
    """One cluster. `check(manifest)` says what is wrong with one, or nothing."""

    def __init__(self, check: Callable[[Manifest], str | None], version: str) -> None:
        self.store = ObjectStore()
        self.refused: list[str] = []
        self._check = check
        self._version = version

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        parts = [part for part in request.path.split("/") if part]
        discovered = self._discover(parts)
        if discovered is not None:
            return web.json_response(discovered)
        if not parts or parts[0] not in ("api", "apis"):
            return _status(404, "NotFound", request.path)
        group_version, rest = (parts[1], parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        if rest[0] not in _RESOURCES.get(group_version, {}):
            return _status(404, "NotFound", f"no resource {rest[0]} in {group_version}")
        key = Key(group_version, rest[0], namespace, rest[1] if len(rest) > 1 else "")
        if rest[2:] == ["log"]:
            return web.Response(text="what a pod prints\n")
        match request.method:
            case "GET":
                return await self._get(request, key)
            case "DELETE":
                return self._delete(key)
            case _:
                return await self._write(request, key)

    def _discover(self, parts: list[str]) -> Manifest | None:
        match parts:
            case ["version"]:
                major, minor = self._version.split(".")
                return {"major": major, "minor": minor, "gitVersion": f"v{self._version}.0", "platform": "linux/amd64"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                groups = [_group(name) for name in _RESOURCES if "/" in name]
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
            case ["api", "v1"]:
                return _resource_list("v1")
            case ["apis", group, version] if f"{group}/{version}" in _RESOURCES:
                return _resource_list(f"{group}/{version}")
            case ["openapi", "v3"]:
                paths = {_root(name): {"serverRelativeURL": f"/openapi/v3/{_root(name)}"} for name in _RESOURCES}
                return {"paths": paths}
            case ["openapi", "v3", _, *group_version]:
                return _openapi("/".join(group_version), self._version)
        return None

    async def _get(self, request: web.Request, key: Key) -> web.StreamResponse:
        if key.name:
            obj = self.store.objects.get(key)
            return web.json_response(obj) if obj is not None else _missing(key)
        query = request.query
        selectors = [part for part in query.get("labelSelector", "").split(",") if part]
        selectors += [f"F:{part}" for part in query.get("fieldSelector", "").split(",") if part]
        items = list(self.store.select(key.group_version, key.plural, key.namespace, selectors))
        if query.get("watch") not in ("1", "true"):
            kind = f"{_RESOURCES[key.group_version][key.plural]}List"
            meta = {"resourceVersion": str(self.store.version)}
            return web.json_response({"kind": kind, "apiVersion": key.group_version, "metadata": meta, "items": items})
        watcher = Watcher(key.group_version, key.plural, key.namespace, selectors)
        return await self._watch(request, watcher, items)

    async def _watch(self, request: web.Request, watcher: Watcher, items: list[Manifest]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        since = request.query.get("resourceVersion", "")
        for obj in items:
            if since in ("", "0") or int(obj["metadata"]["resourceVersion"]) > int(since):
                watcher.changes.put_nowait({"type": "ADDED", "object": copy.deepcopy(obj)})
        if request.query.get("sendInitialEvents") == "true":
            watcher.changes.put_nowait(self._bookmark(watcher))
        self.store.watchers.append(watcher)
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", 300))):
                while (change := await watcher.changes.get()) is not None:
                    await response.write(json.dumps(change).encode() + b"\n")
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self.store.watchers.remove(watcher)
        return response

    async def stop(self) -> None:
        """End all watches."""
        for watcher in self.store.watchers:
            watcher.changes.put_nowait(None)

    def _bookmark(self, watcher: Watcher) -> Manifest:
        kind = _RESOURCES[watcher.group_version][watcher.plural]
        annotations = {"k8s.io/initial-events-end": "true"}
        meta = {"resourceVersion": str(self.store.version), "annotations": annotations}
        return {"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": watcher.group_version, "metadata": meta}}

    def _delete(self, key: Key) -> web.Response:
        if key not in self.store.objects:
            return _missing(key)
        gone = self.store.delete(key)
        details = {"name": key.name, "kind": key.plural, "uid": gone["metadata"]["uid"]}
        return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success", "details": details})

    async def _write(self, request: web.Request, key: Key) -> web.Response:
        content_type = request.content_type
        raw = await request.read()
        try:
            body: Manifest = protobuf.decode(raw) if "protobuf" in content_type else yaml.safe_load(raw)
        except (ValueError, KeyError) as error:
            return _status(415, "UnsupportedMediaType", f"{content_type}: {error}")
        dry_run = request.query.get("dryRun") == "All"
        code = 200
        match request.method:
            case "POST":
                key = Key(key.group_version, key.plural, key.namespace, body["metadata"]["name"])
                if key in self.store.objects:
                    return _status(409, "AlreadyExists", f"{key.plural} {key.name!r} already exists")
                wanted, code = body, 201
            case "PUT" if key in self.store.objects:
                wanted = body
            case "PATCH" if content_type == "application/apply-patch+yaml":
                code = 200 if key in self.store.objects else 201
                manager = request.query.get("fieldManager", "")
                wanted = self.store.apply(key, manager, body, dry_run=dry_run)
            case "PATCH" if key in self.store.objects:
                wanted = merge(copy.deepcopy(self.store.objects[key]), body)
            case _:
                return _missing(key)
        if key.namespace and Key("v1", "namespaces", "", key.namespace) not in self.store.objects:
            return _status(404, "NotFound", f"namespaces {key.namespace!r} not found")
        return self._stored(key, wanted, code, dry_run=dry_run)

    def _stored(self, key: Key, wanted: Manifest, code: int, *, dry_run: bool) -> web.Response:
        problem = self._check({name: value for name, value in wanted.items() if name != "status"})
        if problem is not None:
            self.refused.append(problem)
            return _status(422, "Invalid", f"{wanted['kind']} {key.name!r} is invalid: {problem}")
        return web.json_response(wanted if dry_run else self.store.put(key, wanted), status=code)


@contextmanager
def fake_api(folder: Path, check: Callable[[Manifest], str | None], version: str) -> Iterator[tuple[FakeApi, Path]]:
    """Run one on loopback, in a thread of its own; yields it and a kubeconfig."""
    api = FakeApi(check, version)
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address: Any = runner.addresses[0]
        return int(address[1])

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(port)))
        yield api, kubeconfig
    finally:
        for ending in (api.stop(), runner.cleanup()):
            asyncio.run_coroutine_threadsafe(ending, loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _kubeconfig(port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "fake", "user": {}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        "current-context": "fake",
    }


def _root(group_version: str) -> str:
    return f"apis/{group_version}" if "/" in group_version else f"api/{group_version}"


def _group(group_version: str) -> Manifest:
    group, version = group_version.split("/")
    served = {"groupVersion": group_version, "version": version}
    return {"name": group, "versions": [served], "preferredVersion": served}


def _resource_list(group_version: str) -> Manifest:
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "namespaced": plural != "namespaces",
            "kind": kind,
            "verbs": _VERBS,
        }
        for plural, kind in _RESOURCES[group_version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _openapi(group_version: str, version: str) -> Manifest:
    """Just what client-go looks for: whether the server validates fields."""
    group, _, api_version = group_version.rpartition("/")
    field_validation = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths = {}
    for plural, kind in _RESOURCES.get(group_version, {}).items():
        named = {"group": group, "version": api_version, "kind": kind}
        operation = {"parameters": [field_validation], "x-kubernetes-group-version-kind": named, "responses": {}}
        paths[f"/{_root(group_version)}/{plural}/{{name}}"] = {"patch": operation, "post": operation}
    info = {"title": "fake", "version": version}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


def _missing(key: Key) -> web.Response:
    return _status(404, "NotFound", f"{key.plural} {key.name!r} not found")


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }
    return web.json_response(body, status=code)
