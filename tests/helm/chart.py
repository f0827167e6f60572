"""The chart, as helm renders it."""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controlplane.config import Config, load_config

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "headrace"
EXAMPLES = tuple(sorted((CHART / "examples").glob("*.yaml")))
DEFAULTS = "defaults"
ALL = (DEFAULTS, *(path.stem for path in EXAMPLES))
RELEASE = "rel"
NAME = "rel-headrace"

Manifest = dict[str, Any]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class HelmError(Exception):
    """What helm said."""


@dataclass(frozen=True)
class Rendered:
    """All manifests of one rendering."""

    manifests: tuple[Manifest, ...]

    def of(self, kind: str) -> dict[str, Manifest]:
        """By name, without the release's."""
        return {
            manifest["metadata"]["name"].removeprefix(NAME).removeprefix("-"): manifest
            for manifest in self.manifests
            if manifest["kind"] == kind
        }

    def pods(self) -> dict[str, Manifest]:
        """Every pod spec, by the name of what makes it."""
        specs: dict[str, Manifest] = {}
        for kind in ("Deployment", "StatefulSet"):
            specs |= {name: manifest["spec"]["template"] for name, manifest in self.of(kind).items()}
        specs |= self.of("Pod")
        for ray in self.of("RayService").values():
            cluster = ray["spec"]["rayClusterConfig"]
            specs["ray-head"] = cluster["headGroupSpec"]["template"]
            specs |= {f"ray-{group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
        return specs

    @property
    def config_text(self) -> str:
        """headrace.yaml."""
        return str(self.of("ConfigMap")[""]["data"]["headrace.yaml"])

    def config(self) -> Config:
        """headrace.yaml as the pods load it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "headrace.yaml"
            path.write_text(self.config_text)
            return load_config(path)


def helm(*arguments: str, kubeconfig: Path | None = None) -> str:
    """Run helm; its output. Raises HelmError."""
    binary = Path(sys.executable).with_name("helm")
    assert binary.exists(), f"{binary} is missing: `make venv`, or python -m tests.helm.fetch_helm {binary.parent}"
    more = ["--kubeconfig", str(kubeconfig)] if kubeconfig else []
    done = subprocess.run([str(binary), *arguments, *more], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def values_arguments(which: str) -> Sequence[str]:
    """Of helm, for the defaults or an example."""
    return () if which == DEFAULTS else ("--values", str(CHART / "examples" / f"{which}.yaml"))


@functools.cache
def render(which: str) -> Rendered:
    """The defaults, or an example by name."""
    return _parsed(helm("template", RELEASE, str(CHART), *values_arguments(which)))


def render_values(values: Mapping[str, Any], which: str = DEFAULTS) -> Rendered:
    """With these values on top."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(dict(values), file, ensure_ascii=False)  # not PyYAML: it leaves 1e3 bare, a number in YAML 1.2
        file.flush()
        return _parsed(helm("template", RELEASE, str(CHART), *values_arguments(which), "--values", file.name))


def _parsed(text: str) -> Rendered:
    return Rendered(tuple(manifest for manifest in yaml.load_all(text, _Loader) if manifest))
