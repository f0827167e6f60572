"""Prometheus for tests: its own promtool and server where they are installed, and what its expressions name."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from workers.ports import free_ports

FILES = Path(__file__).parents[1] / "helm" / "headrace" / "files"
RULES = FILES / "rules" / "headrace.yaml"
DASHBOARDS = FILES / "dashboards"


def installed(program: str) -> str:
    """Where a program of Prometheus is. Skips the test where it is not: PyPI and npm have none."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian, Ubuntu: apt-get install prometheus)")
    return path


def promtool(*arguments: str | Path) -> None:
    """Run it; fails with what it says."""
    ran = subprocess.run([installed("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def rules() -> list[dict[str, Any]]:
    """Every rule of the rule file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[tuple[str, str]]:
    """Where it is and what it asks, of every expression of every dashboard, with Grafana's own variables filled in."""
    found = []
    for path in sorted(DASHBOARDS.iterdir()):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "10s").replace("$namespace", ".*")
                found.append((f"{path.stem}: {panel['title']}", expression))
    return found


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    """The series that an expression reads. Raises ValueError for what is no PromQL."""
    yield from _selectors(promql_parser.parse(expression))


def _selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    parts += getattr(node, "args", None) or []
    for part in parts:
        if part is not None and not isinstance(part, str):
            yield from _selectors(part)


def shown_series(expositions: Iterable[str]) -> dict[str, set[str]]:
    """Names of samples, histograms' parts among them, with the names of their labels; also of families without one."""
    shown: dict[str, set[str]] = {}
    for text in expositions:
        for family in text_string_to_metric_families(text):
            suffix = "_total" if family.type == "counter" else ""
            shown.setdefault(re.sub("_total$", "", family.name) + suffix, set())
            for sample in family.samples:
                shown.setdefault(sample.name, set()).update(sample.labels)
    return shown


@contextmanager
def running_prometheus(program: str, folder: Path, target: str, rule_file: Path) -> Iterator[str]:
    """A server that scrapes `target` twice a second; its address."""
    (port,) = free_ports("127.0.0.1", 1)
    jobs = [{"job_name": "headrace", "static_configs": [{"targets": [target.partition("://")[2]]}]}]
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(rule_file)],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    arguments = [
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)
