"""The dashboards are those that helm/dashboards.py writes, and their expressions are PromQL."""

import importlib.util
import json

import pytest

from tests.prometheus import DASHBOARDS, dashboard_queries, selectors

SCRIPT = DASHBOARDS.parents[2] / "dashboards.py"


def test_the_files_are_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("dashboards", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.files() == {path.name: path.read_text() for path in DASHBOARDS.iterdir()}


def test_expressions_are_promql() -> None:
    for title, expression in dashboard_queries():
        assert list(selectors(expression)), title


@pytest.mark.parametrize("path", sorted(DASHBOARDS.iterdir()), ids=lambda path: str(path.stem))
def test_panels_have_names_and_places_of_their_own(path: "object") -> None:
    page = json.loads((DASHBOARDS / str(path)).read_text())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in page["panels"]]
    titles = [panel["title"] for panel in page["panels"]]
    assert page["uid"] == (DASHBOARDS / str(path)).stem
    assert len(set(places)) == len(set(titles)) == len(page["panels"])
    assert all(x + panel["gridPos"]["w"] <= 24 for (x, _), panel in zip(places, page["panels"], strict=True))
