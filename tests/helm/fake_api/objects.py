"""What the fake API server stores, and what controllers would make of it.

Invariants
 1. A resource version rises with every change, and no two changes have the same.
 2. A watcher hears every change of what it selects, in order.
"""

import asyncio
import copy
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """Where an object is."""

    group_version: str
    plural: str
    namespace: str
    name: str


@dataclass(eq=False)
class Watcher:
    """One open watch."""

    group_version: str
    plural: str
    namespace: str
    selectors: Sequence[str]
    changes: "asyncio.Queue[Manifest | None]" = field(default_factory=asyncio.Queue)  # None: it ends


class ObjectStore:
    """All objects of one fake cluster. `broken`: kinds of pods that never become ready."""

    def __init__(self) -> None:
        self.objects: dict[Key, Manifest] = {}
        self.watchers: list[Watcher] = []
        self.broken: set[str] = set()
        self.version = 1
        self._applied: dict[tuple[Key, str], Manifest] = {}
        for name in ("default", "kube-system"):
            self.put(Key("v1", "namespaces", "", name), {"apiVersion": "v1", "kind": "Namespace"})

    def put(self, key: Key, obj: Manifest) -> Manifest:
        """Store; returns what is stored."""
        change = "MODIFIED" if key in self.objects else "ADDED"
        self.version += 1
        meta = obj.setdefault("metadata", {})
        meta["name"] = key.name
        if key.namespace:
            meta["namespace"] = key.namespace
        meta.setdefault("uid", str(uuid.uuid4()))
        meta.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        meta["resourceVersion"] = str(self.version)
        meta["generation"] = meta.get("generation", 0) + 1
        self._control(key, obj)
        self.objects[key] = obj
        self._tell(key, change, obj)
        return obj

    def apply(self, key: Key, manager: str, wanted: Manifest, *, dry_run: bool) -> Manifest:
        """Server-side apply: what this manager no longer names goes, what it names is set."""
        current = copy.deepcopy(self.objects.get(key, {}))
        _prune(current, self._applied.get((key, manager), {}), wanted)
        merge(current, wanted)
        if not dry_run:
            self._applied[key, manager] = copy.deepcopy(wanted)
        return current

    def delete(self, key: Key) -> Manifest:
        """Remove; raises KeyError."""
        gone = self.objects.pop(key)
        self._applied = {applied: value for applied, value in self._applied.items() if applied[0] != key}
        self.version += 1
        self._tell(key, "DELETED", gone)
        return gone

    def select(self, group_version: str, plural: str, namespace: str, selectors: Sequence[str]) -> Iterator[Manifest]:
        """Objects of one resource; no namespace: of all."""
        for key in sorted(self.objects, key=lambda key: (key.namespace, key.name)):
            if (key.group_version, key.plural) == (group_version, plural) and namespace in ("", key.namespace):
                obj = self.objects[key]
                if _matches(obj, selectors):
                    yield obj

    def kinds(self, namespace: str) -> dict[str, set[str]]:
        """Names by kind of what is in a namespace; helm's own records are left out."""
        found: dict[str, set[str]] = {}
        for key, obj in self.objects.items():
            if key.namespace == namespace and obj.get("type") != "helm.sh/release.v1":
                found.setdefault(obj["kind"], set()).add(key.name)
        return found

    def _tell(self, key: Key, change: str, obj: Manifest) -> None:
        for watcher in self.watchers:
            selected = (watcher.group_version, watcher.plural) == (key.group_version, key.plural)
            if selected and watcher.namespace in ("", key.namespace) and _matches(obj, watcher.selectors):
                watcher.changes.put_nowait({"type": change, "object": copy.deepcopy(obj)})

    def _control(self, key: Key, obj: Manifest) -> None:
        """Everything becomes ready at once, or never."""
        generation, spec = obj["metadata"]["generation"], obj.get("spec") or {}
        component = (obj["metadata"].get("labels") or {}).get("app.kubernetes.io/component", "")
        size = spec.get("replicas", 1)
        ready = 0 if component in self.broken else size
        counts = {"observedGeneration": generation, "replicas": size, "updatedReplicas": size, "readyReplicas": ready}
        match key.plural:
            case "deployments":
                available = {"type": "Available", "status": "True" if ready == size else "False"}
                progressing = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
                obj["status"] = {**counts, "availableReplicas": ready, "conditions": [available, progressing]}
            case "statefulsets":
                obj["status"] = {**counts, "currentReplicas": size, "availableReplicas": ready}
            case "services":
                spec.setdefault("clusterIP", f"10.96.0.{self.version % 250 + 1}")
            case "pods":
                phase = "Succeeded" if spec.get("restartPolicy") == "Never" else "Running"
                obj["status"] = {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]}


def merge(into: Manifest, patch: Mapping[str, Any]) -> Manifest:
    """RFC 7386."""
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
    return into


def _prune(current: Manifest, before: Manifest, now: Manifest) -> None:
    for key, old in before.items():
        if key not in now:
            current.pop(key, None)
        elif isinstance(old, dict) and isinstance(now[key], dict) and isinstance(current.get(key), dict):
            _prune(current[key], old, now[key])


def _matches(obj: Manifest, selectors: Sequence[str]) -> bool:
    """Equality selectors of labels, and `F:metadata.name=...` for fields."""
    labels = obj["metadata"].get("labels") or {}
    for selector in selectors:
        if selector.startswith("F:"):
            path, _, wanted = selector[2:].partition("=")
            if path == "metadata.name" and obj["metadata"]["name"] != wanted:
                return False
            continue
        name, _, wanted = selector.replace("==", "=").partition("=")
        if labels.get(name) != wanted:
            return False
    return True
